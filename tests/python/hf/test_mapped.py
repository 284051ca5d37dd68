"""Weights that are converted while a checkpoint loads: the same as the library's, and no page of the files is
left behind."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from checked_models import write_llava
from fixtures_hf import FAMILIES, write_checkpoint
from mosaic_edge import Engine
from mosaic_edge.models.hf import weight_only
from mosaic_edge.models.hf.load import load_parts
from mosaic_edge.models.hf.mapped import MappedWeights

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def stored(folder: Path, dtype: torch.dtype) -> Path:
    """A checkpoint once more, all its numbers in one type."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)
    model.to(dtype).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "files", "read"),
    [
        *((kind, "fp16", "fp32") for kind in FAMILIES),
        ("qwen2_5_vl", "fp32", "bf16"),
        ("internvl", "bf16", "fp16"),
    ],
)
def test_weights_and_tables_are_those_that_the_library_converts(
    kind: str, files: str, read: str, tmp_path: Path
) -> None:
    folder = stored(write_checkpoint(kind, tmp_path), HALF[files])
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=HALF[read])
    ours = load_parts(folder, read, "cpu", None, False).model
    expected = {**dict(theirs.named_parameters()), **dict(theirs.named_buffers())}
    found = {**dict(ours.named_parameters()), **dict(ours.named_buffers())}
    assert {name: x.dtype for name, x in found.items()} == {name: x.dtype for name, x in expected.items()}
    assert not [name for name, x in found.items() if not torch.equal(x, expected[name])]
    assert ours.dtype == theirs.dtype == HALF[read]
    assert ours.config.to_dict()["text_config"] == theirs.config.to_dict()["text_config"]


def resident(folder: Path) -> int:
    """Bytes of a folder's files that are mapped into this process and in its memory."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    found, here = 0, False
    for line in lines:
        if "-" in line.split()[0]:
            here = str(folder) in line
        elif here and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


@pytest.mark.parametrize("how", [{"dtype": "fp32"}, {"dtype": "bf16", "quantization": "int8"}])
def test_no_page_of_what_was_converted_stays(
    how: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stored(write_llava(tmp_path, hidden_size=384, intermediate_size=1536), torch.bfloat16)
    let_go, seen = MappedWeights.let_go, []

    def watched(self: MappedWeights, x: torch.Tensor) -> None:
        let_go(self, x)
        seen.append(resident(folder))

    monkeypatch.setattr(MappedWeights, "let_go", watched)
    engine = Engine.load(folder, device="cpu", threads=1, **how)
    assert engine.model.family.model.dtype == HALF[how["dtype"]]
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert len(seen) > 10 and max(seen) < size / 4
    # In int8 tower and embeddings are the files' own.
    assert resident(folder) < size / 4


class LargestFloats(TorchDispatchMode):
    """Of the tensors of floats that are made while it is on, the numbers of the largest."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain = (torch.Tensor, torch.nn.Parameter)
        made = func(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if type(x) in plain]
        here = {x.untyped_storage().data_ptr() for x in given}  # what shares it is a view
        for x in tree_leaves(made):
            if type(x) in plain and x.is_floating_point() and x.untyped_storage().data_ptr() not in here:
                self.numbers = max(self.numbers, x.numel())
        return made


def quantised(linear: torch.nn.Linear, how: str) -> torch.nn.Module:
    """What becomes of a decoder's layer."""
    layer = torch.nn.Sequential(linear)
    decoder = SimpleNamespace(layers=[layer])
    whole = SimpleNamespace(model=SimpleNamespace(language_model=decoder))
    weight_only.quantise(whole, how, MappedWeights(layer, "cpu", None))
    return layer[0]


@pytest.mark.parametrize("how", ["int8", "int4"])
def test_no_more_than_a_part_of_the_weights_is_floats_again(how: str) -> None:
    linear = torch.nn.Linear(1024, 1536, bias=False, dtype=torch.bfloat16)
    x = torch.ones(3, 1024, dtype=torch.bfloat16)
    with torch.inference_mode(), LargestFloats() as seen:
        quantised(linear, how)(x)
    assert 1024 < seen.numbers <= 1024 * 1024


@pytest.mark.parametrize("how", ["int8", "int4"])
def test_weights_are_rounded_as_by_torchao(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchao import quantization as ao

    for most in ("_ROUNDED_AT_ONCE", "_MULTIPLIED_AT_ONCE"):
        monkeypatch.setattr(weight_only, most, 7 * 64)
    torch.manual_seed(3)
    linear = torch.nn.Linear(64, 45)
    linear.weight.data[11] = 0
    made = quantised(linear, how)
    theirs = ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.PerGroup(32))
    ao.quantize_(linear, ao.Int8WeightOnlyConfig() if how == "int8" else theirs)
    numbers = linear.weight.dequantize().double()
    x = torch.randn(2, 5, 64)
    expected = x.double() @ numbers.T + linear.bias.double()
    assert torch.allclose(made(x).double(), expected, rtol=1e-5, atol=1e-5)
    assert made(x).dtype == torch.float32 and not torch.equal(numbers[10], numbers[11])


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_not_rounded_to_one(broken: float) -> None:
    linear = torch.nn.Linear(64, 8)
    linear.weight.data[2, 5] = broken
    made = quantised(linear, "int8")(torch.ones(64))
    assert made.isfinite().tolist() == [i != 2 for i in range(8)]
