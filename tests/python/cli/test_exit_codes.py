"""Every error carries the code that the command line ends with."""

from __future__ import annotations

import pytest

import mosaic_edge
from mosaic_edge import _core, cli
from mosaic_edge.errors import exit_code_of
from mosaic_edge.models.onnx.sites import GraphCutError
from mosaic_edge.models.vlm import ModelError
from mosaic_edge.sources import SourceError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (_core.MemoryCapError("too small"), 3),
        (_core.InvalidInput("nonsense"), 2),
        (_core.SpillError("no space"), 1),
        (_core.InvariantError("broken"), 1),
        (_core.DeviceError("gone"), 1),
        (_core.NoThreadError("none left"), 1),
        (SourceError("a.mp4", None, "it is empty"), 1),
        (ModelError("no such model"), 2),
        (GraphCutError("cannot be cut"), 2),
        (ValueError("memory='lots'"), 2),
        (FileNotFoundError("there"), 1),
        (ModuleNotFoundError("onnx"), 1),
        (MemoryError("none left"), 1),
        (RuntimeError("FAIL : Failed to allocate memory for requested buffer of size 9"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_an_error_ends_the_command_line_with_its_code_and_one_line(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fails)
    assert exit_code_of(error) == code
    assert cli.main(["plan"]) == code
    assert capsys.readouterr().err == f"mosaic-edge: {error}\n"


@pytest.mark.parametrize(
    "error", [AssertionError("a defect"), RuntimeError("a defect"), KeyError("a defect")]
)
def test_a_defect_is_not_made_to_look_like_an_error_of_the_user(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(type(error), match="a defect"):
        cli.main(["plan"])


def test_the_public_errors_are_the_cores() -> None:
    assert mosaic_edge.MemoryCapError is _core.MemoryCapError
    assert mosaic_edge.MemoryCapError.exit_code == 3
