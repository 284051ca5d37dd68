"""What a model's weights are in bytes, by the sizes of its files alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mosaic_edge.models.layout import Layout, chosen, layout_of

_HALF = re.compile(r"(torch\.)?float16")


@dataclass(frozen=True)
class Weights:
    """Of the layout that would be taken."""

    layout: Layout
    stored: int
    """Bytes of the files."""
    loaded: int
    """Bytes in memory, on a CPU, as they are loaded by default."""


def weights_of(
    sizes: Mapping[str, int],
    config: Mapping[str, Any],
    layout: str | None,
    graphs: Callable[[list[str]], list[str]],
) -> Weights:
    """sizes: of all files, by their names. config: config.json. graphs: of the files, those that a model in
    the ONNX layout is made of."""
    taken = chosen(layout, layout_of(sizes))
    if taken == "onnx":
        stored = sum(sizes[name] for name in graphs(list(sizes)))
        return Weights(taken, stored, stored)
    tensors = [n for n in sizes if n.endswith(".safetensors") and "/" not in n and not n.startswith("._")]
    stored = sum(sizes[name] for name in tensors)
    text = config.get("text_config") or {}
    said = next((str(c[k]) for c in (config, text) for k in ("dtype", "torch_dtype") if c.get(k)), "")
    grown = _unpacked(config.get("quantization_config") or text.get("quantization_config") or {})
    return Weights(taken, stored, stored * (grown or (2 if _HALF.fullmatch(said) else 1)))


def _unpacked(how: Mapping[str, Any]) -> int:
    """How many times its bytes a quantised checkpoint takes where it is unpacked to 16 bits a weight; 0 where
    it is not."""
    method = how.get("quant_method")
    if method in ("fp8", "mxfp4"):
        return 2 if method == "fp8" else 4
    groups = how.get("config_groups") if method == "compressed-tensors" else None
    said = [group.get("weights") for group in groups.values()] if isinstance(groups, Mapping) else []
    bits = [int(weights["num_bits"]) for weights in said if weights and weights.get("num_bits")]
    return 16 // min(bits) if bits and 0 < min(bits) <= 16 else 0
