"""How a transformers language model rotates, read from its module and checked against what one theta
gives."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
import transformers

from mosaic_edge.models.vlm import ModelError, RopeSpec

_PLAIN = ("default", "mrope", "dynamic")
"""Those of one theta: a dynamic type changes it only past the model's context, where no position of ours
is."""
_SCALED = ("linear", "llama3", "longrope", "yarn")
"""Those with frequencies of their own, which the library computed when it built the module."""


def rope_of(name: str, language: Any, axes: int) -> RopeSpec:
    """RopeSpec of a language model (`rotary_emb`, `config`). axes: 3 under M-RoPE, else 1.

    What a type scales attention by arrives with queries and keys, which are rotated by position zero.
    ModelError for types that are not known, and for a module that does not do what its config says.
    """
    rotary = language.rotary_emb
    settings = rope_settings(language.config)
    theta = float(settings.get("rope_theta") or getattr(language.config, "rope_theta", None) or 1e4)
    kind = check_rope_type(name, settings)
    # Two types change the module's table while a long text is read: what it began with is kept beside it.
    table = (
        getattr(rotary, "original_inv_freq", rotary.inv_freq)
        if kind in ("dynamic", "longrope")
        else rotary.inv_freq
    )
    frequencies = table.detach().float().cpu().numpy().astype(np.float64)
    n = len(frequencies)
    expected = theta ** (-np.arange(n) / n)
    if kind in _PLAIN and not np.allclose(
        frequencies, expected, rtol=1e-4, atol=0
    ):  # 4 reads over what 5 wrote
        raise ModelError(
            f"{name}: its rotary frequencies are not those of rope_theta={theta:g} in config.json: "
            f"transformers {transformers.__version__} does not read that config as it is meant; use the "
            "version that wrote it, or a newer one"
        )
    cos, sin = rotary(
        torch.zeros(1, dtype=torch.float32, device=rotary.inv_freq.device), zero_positions(language, 1, axes)
    )
    if bool((sin != 0).any()) or bool((cos != cos.flatten()[0]).any()):
        raise ModelError(
            f"{name}: rope_type={kind!r} rotates what stands at position zero; "
            "the memory needs that it does not"
        )
    sections = (0, 0, 0)
    if axes == 3:
        t, h, w = settings.get("mrope_section") or rotary.mrope_section
        sections = (int(t), int(h), int(w))
    scaled = tuple(float(f) for f in frequencies) if kind in _SCALED else ()
    return RopeSpec(
        2 * n, theta, _pairs(name, language, n) if axes == 1 else "half", sections, frequencies=scaled
    )


def check_rope_type(name: str, settings: Mapping[str, Any]) -> str:
    """The type that a config says. ModelError for one that is not known."""
    kind = rope_type(settings)
    if kind not in (*_PLAIN, *_SCALED):
        raise ModelError(
            f"{name}: rope_type={kind!r} is not known to the memory; "
            f"there are {', '.join((*_PLAIN, *_SCALED))}"
        )
    return kind


def _pairs(name: str, language: Any, n: int) -> Literal["half", "interleaved"]:
    """Which channels the library turns together, seen by turning the first one."""
    attention = language.layers[0].self_attn
    turn = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
    if turn is None:
        return "half"
    rotary = language.rotary_emb
    device = rotary.inv_freq.device
    x = torch.zeros(1, 1, 1, int(attention.head_dim), device=device)
    x[..., 0] = 1
    cos, sin = rotary(x[0], torch.ones(1, 1, dtype=torch.long, device=device))
    turned = turn(x, x, cos, sin)[0].flatten().abs() > 1e-3
    partner = [i for i in turned.nonzero().flatten().tolist() if i != 0]
    if partner == [n]:
        return "half"
    if partner == [1]:
        return "interleaved"
    raise ModelError(f"{name}: its rotary step turns channel 0 with {partner}; the memory knows {n} and 1")


def longest_context(config: Any) -> int:
    """Positions up to which the library rotates as rope_of() says; 0: not said. longrope has other
    frequencies past the original length of its training, and takes them for all that was read before as
    well."""
    settings = rope_settings(config)
    said = int(getattr(config, "max_position_embeddings", None) or 0)
    original = settings.get("original_max_position_embeddings") or getattr(
        config, "original_max_position_embeddings", None
    )
    return min(said, int(original)) if said and original and rope_type(settings) == "longrope" else said


def rope_settings(config: Any) -> Mapping[str, Any]:
    """What a config says of its rotary positions, under the name of transformers 5 or 4."""
    return dict(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {})


def rope_type(settings: Mapping[str, Any]) -> str:
    """The type's name, under the newer key or the older."""
    return str(settings.get("rope_type") or settings.get("type") or "default")


def zero_positions(language: Any, tokens: int, axes: int) -> torch.Tensor:
    """Position zero for every token, [1, T] or [3, 1, T]: the rotary step is then the identity, or one
    factor."""
    shape = (3, 1, tokens) if axes == 3 else (1, tokens)
    return torch.zeros(shape, dtype=torch.long, device=language.rotary_emb.inv_freq.device)
