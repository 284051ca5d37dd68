"""The attention that a transformers model is registered with: during a run it is the memory's, else plain
SDPA.

transformers asks AttentionInterface for the function and AttentionMaskInterface for its mask, by name. Which
session a call belongs to is known from a context variable that `attending` sets for the run of one block, so
that any number of engines and threads share the one registered function and nothing is left on a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mosaic_edge.models.vlm import Attend, DeviceAttend

NAME = "mosaic_edge"

_lock = Lock()
_taken: WeakKeyDictionary[Any, tuple[int, str]] = WeakKeyDictionary()
"""Decoders that were taken over: how often, and how they attended before."""
_attend: ContextVar[Attend | DeviceAttend | None] = ContextVar("mosaic_edge_attend", default=None)


@contextmanager
def attending(attend: Attend | DeviceAttend) -> Iterator[None]:
    """Inside, attention calls of this thread (and context) go to `attend`."""
    token = _attend.set(attend)
    try:
        yield
    finally:
        _attend.reset(token)


def take_over(language: Any) -> None:
    """Have a decoder attend by the registered function, until all who took it over have given it back."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)
    with _lock:
        count, before = _taken.get(language) or (0, str(language.config._attn_implementation))
        _taken[language] = (count + 1, before)
        language.set_attn_implementation(NAME)


def give_back(language: Any) -> None:
    """Let a decoder attend as it did, if nobody else has taken it over."""
    with _lock:
        count, before = _taken.pop(language)
        if count > 1:
            _taken[language] = (count - 1, before)
        else:
            language.set_attn_implementation(before)


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """query [1, H_q, T, D], key and value [1, H_kv, T, D] -> out [1, T, H_q, D] of the query's type."""
    attend = _attend.get()
    if attend is None:
        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
        return out, None
    for name in ("sliding_window", "softcap", "s_aux"):
        if settings.get(name) is not None:
            raise ValueError(
                f"attention with {name}={settings[name]!r}: the memory has none; use another model"
            )
    device = getattr(attend, "device", None)
    if device != query.device.type:  # a memory elsewhere, or one that takes NumPy arrays alone
        read = attend(int(module.layer_idx), *(_rows(x, "cpu").numpy() for x in (query, key, value)))
        return torch.from_numpy(read).to(query.device, query.dtype)[None], None
    q, k, v = (_rows(x, device) for x in (query, key, value))
    out = torch.empty_like(q)
    stream = torch.cuda.current_stream(query.device).cuda_stream if device == "cuda" else None
    cast(DeviceAttend, attend)(int(module.layer_idx), q, k, v, out=out, stream=stream)
    return out.to(query.dtype)[None], None


def _mask(*args: Any, **settings: Any) -> torch.Tensor | None:
    """The memory knows what a token may see: no mask."""
    return sdpa_mask(*args, **settings) if _attend.get() is None else None


def _rows(x: torch.Tensor, device: str) -> torch.Tensor:
    """[1, H, T, D] -> float32 [T, H, D] on `device`: a view where that is what lies there already."""
    return x[0].transpose(0, 1).to(device, torch.float32).contiguous()
