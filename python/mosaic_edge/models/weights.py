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
    unpacked = config.get("quantization_config", {}).get("quant_method") == "fp8" or _HALF.fullmatch(said)
    return Weights(taken, stored, stored * 2 if unpacked else stored)
