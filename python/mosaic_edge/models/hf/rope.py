"""How a transformers language model rotates, read from its module and checked against what one theta
gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers

from mosaic_edge.models.vlm import ModelError, RopeSpec


def rope_of(name: str, language: Any, axes: int) -> RopeSpec:
    """RopeSpec of a language model (`rotary_emb`, `config`). axes: 3 under M-RoPE, else 1.

    ModelError for what the memory cannot rotate by: scaled frequencies (linear, dynamic, yarn, longrope,
    llama3) and tables that are not 1 at position zero, where queries and keys must arrive as they were.
    """
    config, rotary = language.config, language.rotary_emb
    settings = dict(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {})
    theta = float(settings.get("rope_theta") or getattr(config, "rope_theta", None) or 1e4)
    kind = str(settings.get("rope_type") or settings.get("type") or "default")
    frequencies = rotary.inv_freq.detach().float().cpu().numpy().astype(np.float64)
    n = len(frequencies)
    expected = theta ** (-np.arange(n) / n)
    # A dynamic type looks like the default one until a stream is long.
    if kind not in ("default", "mrope"):
        raise ModelError(
            f"{name}: rope_type={kind!r} scales the rotary frequencies; the memory rotates by one "
            "theta (rope_type 'default', or 'mrope' for Qwen-VL). Use the checkpoint's unscaled form."
        )
    if not np.allclose(frequencies, expected, rtol=1e-4, atol=0):  # 4 reads over what 5 wrote
        raise ModelError(
            f"{name}: its rotary frequencies are not those of rope_theta={theta:g} in config.json: "
            f"transformers {transformers.__version__} does not read that config as it is meant; use the "
            "version that wrote it, or a newer one"
        )
    cos, sin = rotary(
        torch.zeros(1, dtype=torch.float32, device=rotary.inv_freq.device), zero_positions(language, 1, axes)
    )
    if not (bool((cos == 1).all()) and bool((sin == 0).all())):
        raise ModelError(
            f"{name}: rope_type={kind!r} scales attention by {float(cos.flatten()[0]):g} "
            "(attention_scaling); the memory needs 1"
        )
    sections = (0, 0, 0)
    if axes == 3:
        t, h, w = settings.get("mrope_section") or rotary.mrope_section
        sections = (int(t), int(h), int(w))
    return RopeSpec(2 * n, theta, "half", sections)


def zero_positions(language: Any, tokens: int, axes: int) -> torch.Tensor:
    """Position zero for every token, [1, T] or [3, 1, T]: the rotary step is then the identity."""
    shape = (3, 1, tokens) if axes == 3 else (1, tokens)
    return torch.zeros(shape, dtype=torch.long, device=language.rotary_emb.inv_freq.device)
