"""Finished cells are kept under contents: of the model, and of the code that their numbers come from."""

from __future__ import annotations

import shutil
from pathlib import Path

from mosaic_edge.evaluation import finished
from mosaic_edge.evaluation.finished import fingerprint, sources_of

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
