"""Weights of a decoder quantised as it is loaded, by torchao; activations stay as they are."""

from __future__ import annotations

from typing import Any

import torch

from mosaic_edge.models.hf.mapped import MappedWeights
from mosaic_edge.models.vlm import ModelError

_GROUP = 32
"""Inputs that share a scale, in 4 bits."""


def quantise(model: Any, how: str, weights: MappedWeights) -> None:
    """Weights of the decoder's linear layers in 4 or 8 bits, one by one. Vision tower and head stay.

    int8: one scale an output channel. int4: groups of 32 inputs; on a GPU in bfloat16 four bits a weight,
    elsewhere torchao holds each in a byte: the rounding is int4's, the memory int8's.
    """
    try:
        from torchao import quantization as ao
    except ImportError:
        raise ModelError(f"quantization={how!r} needs torchao: pip install 'mosaic_edge[hf]'") from None

    for layer in (getattr(model.model, "text_model", None) or model.model.language_model).layers:
        for module in layer.modules():
            if not isinstance(module, torch.nn.Linear) or (how == "int4" and module.in_features % _GROUP):
                continue
            weights.settle(module)  # one at a time: nothing else of the model is held twice
            before = module.weight.data
            ao.quantize_(module, _config(ao, how, before), filter_fn=lambda *_: True)
            weights.let_go(before)
            weights.tidy()  # torchao leaves cycles that hold what it calculated with


def _config(ao: Any, how: str, weight: torch.Tensor) -> Any:
    if how == "int8":
        return ao.Int8WeightOnlyConfig()
    if weight.is_cuda and weight.dtype == torch.bfloat16:
        return ao.Int4WeightOnlyConfig(group_size=_GROUP, int4_packing_format="tile_packed_to_4d")
    return ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.PerGroup(_GROUP))
