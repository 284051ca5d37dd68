"""What is refused of a checkpoint by what its config says, before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from mosaic_edge.models.vlm import ModelError

HAS: Mapping[str, str] = {
    "gemma3": "sliding-window layers",
    "gemma3n": "sliding-window layers and layers that share keys and values",
    "paligemma": "attention that sees its prefix in both directions",
    "qwen3_5": "linear-attention layers",
    "qwen3_5_moe": "linear-attention layers",
    "lfm2_vl": "convolution layers",
    "minicpmv4_6": "linear-attention layers",
    "mllama": "cross-attention layers",
}
"""Of families that users try: the part that is no attention over everything kept."""

_NEEDS: Mapping[str, str] = {
    "awq": "gptqmodel",
    "gptq": "gptqmodel",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed_tensors",
    "torchao": "torchao",
}
"""By quant_method: the module that transformers reads such weights with."""


def check_layers(name: str, text: Mapping[str, Any]) -> None:
    """ModelError for a decoder with layers that are not attention over everything."""
    kinds = text.get("layer_types")
    if kinds:
        others = sorted({str(kind) for kind in kinds} - {"full_attention"})
    else:
        window = text.get("sliding_window") if text.get("use_sliding_window", True) else None
        others = ["sliding_attention"] if window is not None else []
    if others:
        said = (
            "sliding-window layers"
            if others == ["sliding_attention"]
            else f"layers of type {', '.join(others)}"
        )
        raise ModelError(f"{name}: its decoder has {said}; the memory attends to all it keeps")


def check_quantised(name: str, said: Mapping[str, Any]) -> None:
    """ModelError naming the package for weights in a form that is not installed here."""
    method = str(said.get("quant_method", ""))
    module = _NEEDS.get(method)
    if module is not None and find_spec(module) is None:
        raise ModelError(
            f"{name}: its weights are quantised ({method}), which needs {module.replace('_', '-')}: "
            "pip install 'mosaic_edge[quantized]'"
        )
