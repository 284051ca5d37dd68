"""Checkpoints whose decoder a library of their format quantised: loaded here, they answer as by that
library."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from checked_models import write_llava
from fixtures_hf import picture
from mosaic_edge import Engine, cli
from mosaic_edge.evaluation.check.row import NAMES
from mosaic_edge.sampling import SamplingParams
from quantised_models import said_method, write_quantised

VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
FORMATS = (
    "compressed-tensors",
    # transformers 4 pickles the one, and up to 5.2 has the other on a GPU alone
    *(() if VERSION < (5,) else ("torchao",)),
    *(() if VERSION < (5, 3) else ("fp8",)),
    # 60 MB: not in the extra `dev`, only in `quantized`
    *(("bitsandbytes",) if find_spec("bitsandbytes") else ()),
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield write_llava(tmp_path_factory.mktemp("plain"), hidden_size=192, intermediate_size=128)
    torch.set_num_threads(before)


def answer(folder: Path) -> np.ndarray:
    engine = Engine.load(folder, device="cpu")
    with engine.session(memory="8MiB", exact="fp32", policy="full", kernel_threads=1) as session:
        for i in range(3):
            session.append(picture(i), float(i))
        return session.ask("what?", sampling=SamplingParams(max_tokens=2)).logits


@pytest.mark.parametrize("how", FORMATS)
def test_a_checkpoint_that_comes_quantised_answers_as_by_its_library(
    how: str, plain: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_quantised(how, plain, tmp_path / "model")
    assert said_method(folder) == how
    code = cli.main(["check", "--device", "cpu", "--steps", "4", "--json", "--model", str(folder)])
    said: dict[str, Any] = json.loads(capfd.readouterr().out)
    assert {row["what"]: row["equal"] for row in said["rows"]} == dict.fromkeys(NAMES, True)
    assert code == 0
    near = float(np.corrcoef(answer(folder), answer(plain))[0, 1])
    assert 0.9 < near < 1 - 1e-7  # the same model, rounded
