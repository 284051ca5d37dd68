"""Weights of a decoder quantised as it is loaded, by torchao; activations stay as they are."""

from __future__ import annotations

from typing import Any

import torch

from mosaic_edge.models.hf.mapped import MappedWeights
from mosaic_edge.models.vlm import ModelError

_GROUP = 32
"""Inputs that share a scale, in 4 bits."""
_BLOCK = 1 << 18
"""Numbers that are quantised at a time."""


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
            config = _config(ao, how, before)
            made = None if before.is_cuda else _by_rows(ao, config, before, weights)
            if made is None:
                ao.quantize_(module, config, filter_fn=lambda *_: True)
            else:
                module.weight = torch.nn.Parameter(made, requires_grad=False)
            del made
            weights.let_go(before)
            weights.tidy()


def _by_rows(ao: Any, config: Any, weight: torch.Tensor, weights: MappedWeights) -> torch.Tensor | None:
    """A weight quantised some rows at a time: torchao calculates with six times what it is given, and no row
    has to do with another. None where its tensors are not made of rows (before 0.14)."""
    made: list[Any] = []
    for rows in weight.split(max(1, _BLOCK // weight.shape[1])):
        part = torch.nn.Linear(weight.shape[1], len(rows), bias=False, device="meta")
        part.weight = torch.nn.Parameter(rows, requires_grad=False)
        ao.quantize_(part, config, filter_fn=lambda *_: True)
        made.append(part.weight.data)
        names, context = made[-1].__tensor_flatten__()
        inner = [getattr(made[-1], name) for name in names]
        if any(type(x) is not torch.Tensor or len(x) != len(rows) for x in inner):
            return None
    weights.let_go(weight)
    joined = {name: torch.cat([getattr(block, name) for block in made]) for name in names}
    whole: torch.Tensor = type(made[0]).__tensor_unflatten__(joined, context, weight.shape, weight.stride())
    return whole


def _config(ao: Any, how: str, weight: torch.Tensor) -> Any:
    if how == "int8":
        return ao.Int8WeightOnlyConfig()
    if weight.is_cuda and weight.dtype == torch.bfloat16:
        return ao.Int4WeightOnlyConfig(group_size=_GROUP, int4_packing_format="tile_packed_to_4d")
    return ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.PerGroup(_GROUP))
