"""Finished cells are kept under contents: of the model, and of the code that their numbers come from. A
folder that cannot hold them, and a file that is none of theirs, are named before anything is measured."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mosaic_edge.engine import Engine
from mosaic_edge.evaluation import finished, runner
from mosaic_edge.evaluation.finished import FinishedCells, fingerprint, sources_of
from mosaic_edge.evaluation.settings import EvalSettings
from mosaic_edge.evaluation.variants import parse_policies
from numpy_vlm import NumpyVlm

PACKAGE = Path(finished.__file__).resolve().parents[1]
TINY = PACKAGE / "models" / "tiny"


def test_a_model_is_known_by_what_its_files_hold_wherever_and_whatever_they_are(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(TINY, tmp_path / "another name"))
    known = fingerprint("mosaic-tiny")
    assert fingerprint(str(TINY)) == fingerprint(str(copy)) == known
    (copy / "tokenizer.json").rename(copy / "words.json")
    assert fingerprint(str(copy)) == known
    config = copy / "config.json"
    config.write_text(config.read_text() + " ")
    assert fingerprint(str(copy)) != known


def test_models_of_the_hub_are_known_by_their_id() -> None:
    assert fingerprint("someone/model") != fingerprint("someone/other")


def test_the_code_of_a_cell_is_all_that_it_imports_and_no_view_of_it() -> None:
    names = {
        path.relative_to(PACKAGE).as_posix()
        for path in sources_of("mosaic_edge.evaluation.cells", "mosaic_edge.evaluation.recording")
    }
    for part in ("session.py", "config.py", "evidence.py", "models/onnx/decoder.py", "models/hf/attention.py",
                 "world/questions.py", "evaluation/replay.py", "models/__init__.py"):  # fmt: skip
        assert part in names
    assert not {name for name in names if name.startswith(("cli/", "serve/", "evaluation/plots"))}
    assert "evaluation/report.py" not in names


@pytest.mark.parametrize("place", ["a file", "in a file", "proc", "nothing", "nul"])
def test_results_without_a_place_are_refused_before_anything_is_measured(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    out = {
        "a file": tmp_path / "file",
        "in a file": tmp_path / "file" / "x",
        "proc": Path("/proc/x"),
        "nothing": "",
        "nul": "a\0b",
    }[place]
    monkeypatch.setattr(runner.Engine, "load", lambda *_, **__: Engine(NumpyVlm()))
    monkeypatch.setattr(runner, "record_stream", lambda *_, **__: pytest.fail("a stream is recorded"))
    with pytest.raises((ValueError, OSError), match="out="):
        runner.evaluate(EvalSettings(policies=parse_policies("window")), out)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "line", ["x", "[]", "{}", '{"key": 3, "cell": {}}', '{"key": "k", "cell": 1}', "[" * 99_999, "\udcff"]
)
def test_a_line_that_is_no_finished_cell_is_named_and_force_measures_anew(line: str, tmp_path: Path) -> None:
    FinishedCells(tmp_path, EvalSettings(), "code", False).add("key", {"error": "no room"}, None)
    assert FinishedCells(tmp_path, EvalSettings(), "code", False).finished == {"key": {"error": "no room"}}
    with (tmp_path / "cells.jsonl").open("a", errors="surrogateescape") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"out=: line 2 of .*cells\.jsonl is no finished cell") as error:
        FinishedCells(tmp_path, EvalSettings(), "code", False)
    assert "\n" not in str(error.value)
    assert not FinishedCells(tmp_path, EvalSettings(), "code", True).finished
