"""Weights of a decoder rounded to 4 or 8 bits as it is loaded; activations stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from mosaic_edge.models.hf.mapped import MappedWeights
from mosaic_edge.models.vlm import ModelError

_GROUP = 32
"""Inputs that share a scale, in 4 bits."""
_ROUNDED_AT_ONCE = 1 << 18
_MULTIPLIED_AT_ONCE = 1 << 19
"""Weights that are held as floats at a time: of a large layer all of them would take more than the layer."""


class RoundedLinear(torch.nn.Module):
    """A linear layer with a byte a weight, and a scale for each group of inputs of an output."""

    def __init__(self, layer: torch.nn.Linear, bits: int, group: int) -> None:
        """bits: of a weight. group: inputs that share a scale."""
        super().__init__()
        weight, most = layer.weight.data, 1 << (bits - 1)
        numbers = torch.empty_like(weight, dtype=torch.int8)
        scale = weight.new_empty(len(weight), weight.shape[1] // group)
        for rows in _blocks(weight, _ROUNDED_AT_ONCE):
            floats = weight[rows].float().unflatten(1, (-1, group))
            scale[rows] = floats.abs().amax(-1) / (most - 0.5)
            step = scale[rows].float()[..., None]
            # NaN and infinity stay in the scale, and so in what it gives.
            steps = floats * (1.0 / step.where(step != 0, 1.0))
            steps.round_().clamp_(-most, most - 1)
            numbers[rows] = steps.flatten(1).to(torch.int8)
        self.numbers = torch.nn.Parameter(numbers, requires_grad=False)
        self.scale = torch.nn.Parameter(scale, requires_grad=False)
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        blocks = _blocks(self.numbers, _MULTIPLIED_AT_ONCE)
        made = torch.cat([self._product(x, rows) for rows in blocks], dim=-1)
        return made if self.bias is None else made + self.bias

    def _product(self, x: torch.Tensor, rows: slice) -> torch.Tensor:
        floats, scale = self.numbers[rows].to(x.dtype), self.scale[rows]
        if scale.shape[1] == 1:
            return torch.nn.functional.linear(x, floats) * scale[:, 0]
        floats.unflatten(1, (scale.shape[1], -1)).mul_(scale[..., None])
        return torch.nn.functional.linear(x, floats)


def quantise(model: Any, how: str, weights: MappedWeights) -> None:
    """Weights of the decoder's linear layers in 4 or 8 bits, one by one. Vision tower and head stay.

    int8: one scale an output channel. int4: groups of 32 inputs. On a GPU by torchao, int4 in four bits a
    weight where it is in bfloat16; elsewhere in a byte: the rounding is int4's, the memory int8's.
    """
    for layer in (getattr(model.model, "text_model", None) or model.model.language_model).layers:
        for name in [name for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)]:
            module = layer.get_submodule(name)
            if how == "int4" and module.in_features % _GROUP:
                continue
            weights.settle(module)  # one at a time: nothing else of the model is held twice
            before = module.weight.data
            if before.is_cuda:
                _by_torchao(module, how)
            else:
                rule = (8, module.in_features) if how == "int8" else (4, _GROUP)
                layer.set_submodule(name, RoundedLinear(module, *rule))
            weights.let_go(before)
            del module, before
            weights.tidy()


def _by_torchao(module: torch.nn.Linear, how: str) -> None:
    try:
        from torchao import quantization as ao
    except ImportError:
        raise ModelError(f"quantization={how!r} needs torchao: pip install 'mosaic_edge[hf]'") from None
    config: Any
    if how == "int8":
        config = ao.Int8WeightOnlyConfig()
    elif module.weight.dtype == torch.bfloat16:
        config = ao.Int4WeightOnlyConfig(group_size=_GROUP, int4_packing_format="tile_packed_to_4d")
    else:
        config = ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.PerGroup(_GROUP))
    ao.quantize_(module, config, filter_fn=lambda *_: True)


def _blocks(weight: torch.Tensor, most: int) -> Iterator[slice]:
    """Rows that hold so many numbers at most, or one row."""
    rows = max(1, most // weight.shape[1])
    return (slice(first, first + rows) for first in range(0, len(weight), rows))
