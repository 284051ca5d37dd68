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
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mosaic_edge.models.vlm import Attend, FloatArray

NAME = "mosaic_edge"

_attend: ContextVar[Attend | None] = ContextVar("mosaic_edge_attend", default=None)


@contextmanager
def attending(attend: Attend) -> Iterator[None]:
    """Inside, attention calls of this thread (and context) go to `attend`."""
    token = _attend.set(attend)
    try:
        yield
    finally:
        _attend.reset(token)


def register() -> None:
    """Make the attention known to transformers; doing it again changes nothing."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)


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
    read = attend(int(module.layer_idx), _rows(query), _rows(key), _rows(value))
    return torch.from_numpy(read).to(query.device, query.dtype)[None], None


def _mask(*args: Any, **settings: Any) -> torch.Tensor | None:
    """The memory knows what a token may see: no mask."""
    return sdpa_mask(*args, **settings) if _attend.get() is None else None


def _rows(x: torch.Tensor) -> FloatArray:
    """[1, H, T, D] -> float32 [T, H, D]: a view where that is what lies there already."""
    rows = x[0].transpose(0, 1).to("cpu", torch.float32)
    return np.ascontiguousarray(rows.numpy())
