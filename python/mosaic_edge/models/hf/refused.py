"""What is refused of a checkpoint by what its config says, before any weight is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mosaic_edge.models.vlm import ModelError

HAS: Mapping[str, str] = {
    "gemma3": "sliding-window layers",
    "gemma3n": "sliding-window layers and layers that share keys and values",
    "gemma4": "sliding-window layers",
    "cohere2_vision": "sliding-window layers",
    "paligemma": "attention that sees its prefix in both directions",
    "qwen3_5": "linear-attention layers",
    "qwen3_5_moe": "linear-attention layers",
    "lfm2_vl": "convolution layers",
    "minicpmv4_6": "linear-attention layers",
    "mllama": "cross-attention layers",
    "llama4": "layers that attend in chunks and layers without rotation",
    "kimi_vl": "keys and values in a compressed form",
}
"""Of families that users try: the part that is no attention over everything kept."""


def _windows(text: Mapping[str, Any]) -> bool:
    """Where layer_types are not listed: one window for all, or for those that a pattern names."""
    on = text.get("sliding_window") is not None and text.get("use_sliding_window", True)
    return bool(on and not text.get("layer_types"))


def _fewer(text: Mapping[str, Any], key: str) -> bool:
    """Whether a list of the layers that attend is shorter than the decoder."""
    listed = text.get(key)
    return isinstance(listed, list) and len(set(map(str, listed))) < int(text.get("num_hidden_layers") or 0)


_LAYERS: tuple[tuple[str, Callable[[Mapping[str, Any]], bool]], ...] = (
    ("sliding-window layers", _windows),
    ("layers that attend in chunks (attention_chunk_size)", lambda t: bool(t.get("attention_chunk_size"))),
    ("convolution layers (full_attn_idxs)", lambda t: _fewer(t, "full_attn_idxs")),
    ("layers that do not attend (attn_layer_indices)", lambda t: _fewer(t, "attn_layer_indices")),
    (
        "linear-attention layers (full_attention_interval)",
        lambda t: (t.get("full_attention_interval") or 1) > 1 and not t.get("layer_types"),
    ),
    (
        "layers with a state (layers_block_type)",
        lambda t: bool(set(t.get("layers_block_type") or ()) - {"attention"}),
    ),
    ("layers with a state (hybrid_override_pattern)", lambda t: bool(t.get("hybrid_override_pattern"))),
    ("cross-attention layers (cross_attention_layers)", lambda t: bool(t.get("cross_attention_layers"))),
    (
        "layers that share keys and values (num_kv_shared_layers)",
        lambda t: bool(t.get("num_kv_shared_layers")),
    ),
    ("keys and values in a compressed form (kv_lora_rank)", lambda t: bool(t.get("kv_lora_rank"))),
    (
        "attention in both directions (use_bidirectional_attention)",
        lambda t: bool(t.get("use_bidirectional_attention")),
    ),
    (
        "soft caps on its attention (attn_logit_softcapping)",
        lambda t: bool(t.get("attn_logit_softcapping")),
    ),
    ("layers without rotation (no_rope_layers)", lambda t: 0 in (t.get("no_rope_layers") or ())),
    (
        "layers without rotation (no_rope_layer_interval)",
        lambda t: bool(t.get("no_rope_layer_interval")) and "no_rope_layers" not in t,
    ),
)
"""What a decoder's config may say that the memory has no part for, by the keys that say it."""


def check_layers(name: str, text: Mapping[str, Any]) -> None:
    """ModelError for a decoder with layers that are not attention over everything, all turned alike."""
    kinds = sorted({str(kind) for kind in text.get("layer_types") or ()} - {"full_attention"})
    found = [said for said, has in _LAYERS if has(text)]
    if kinds:
        windows = kinds == ["sliding_attention"]
        found.insert(0, "sliding-window layers" if windows else f"layers of type {', '.join(kinds)}")
    if found:
        raise ModelError(f"{name}: its decoder has {found[0]}; the memory attends to all it keeps")
