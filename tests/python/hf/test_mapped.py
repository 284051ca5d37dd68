"""Weights that are converted while a checkpoint loads: the same as the library's, and no page of the files is
left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

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


@pytest.mark.parametrize("how", ["int8", "int4"])
def test_weights_that_are_quantised_by_rows_are_those_that_are_at_once(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchao import quantization as ao

    monkeypatch.setattr(weight_only, "_BLOCK", 7 * 64)
    torch.manual_seed(3)
    whole = torch.nn.Linear(64, 45, dtype=torch.bfloat16)
    weight = whole.weight.data.clone()
    config = weight_only._config(ao, how, weight)
    made = weight_only._by_rows(ao, config, weight, MappedWeights(whole, "cpu", None))
    ao.quantize_(whole, config)
    assert made is not None and made.shape == whole.weight.shape
    assert torch.equal(made.dequantize(), whole.weight.data.dequantize())
    x = torch.randn(5, 64, dtype=torch.bfloat16)
    assert torch.equal(torch.nn.functional.linear(x, made, whole.bias), whole(x))
