"""How long answers are, from when they are read, and that none is lost to another's error: run and live."""

from __future__ import annotations

import json
import os
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from mosaic_edge import cli
from mosaic_edge.cli.output import clock, show_evidence
from mosaic_edge.engine import Engine
from mosaic_edge.session import Session
from numpy_vlm import NumpyVlm
from videos import MakeVideo

QUESTION = "what colour was the ball ?"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The command with --json, on a small model: its exit code and document."""
    monkeypatch.setattr(Engine, "load", lambda *_, **__: Engine(NumpyVlm()))

    def call(*arguments: str) -> tuple[int, dict[str, Any]]:
        code = cli.main([*arguments, "--json", "--memory", "1MiB", "--policy", "window"])
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        return code, document

    return call


@pytest.mark.parametrize("most", [1, 3])
def test_run_draws_an_answer_of_so_many_tokens(run: Any, make_video: MakeVideo, most: int) -> None:
    code, document = run("run", "--source", str(make_video()), "--ask", QUESTION, "--max-tokens", str(most))
    assert code == 0
    assert document["answers"][0]["tokens"] == most
    assert document["answers"][0]["finish"] == "length"


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--max-tokens", "0", "max_tokens=0"),
        ("--top-p", "2", "top_p=2"),
        ("--temperature", "-1", "temperature=-1"),
        ("--since", "-1", "since=-1"),
    ],
)
@pytest.mark.parametrize("command", ["run", "live"])
def test_what_an_answer_cannot_be_is_refused_before_a_frame_is_read(
    run: Any, make_video: MakeVideo, command: str, option: str, value: str, named: str
) -> None:
    ask = ["--ask", QUESTION] if command == "run" else []
    code, document = run(command, "--source", str(make_video()), *ask, option, value)
    assert code == 2
    assert named in document["error"]


def test_a_question_there_is_no_room_for_is_refused_before_a_frame_is_read(
    run: Any, make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "append", lambda *_: pytest.fail("a frame was read"))
    long = " ".join([QUESTION] * 200)
    code, document = run("run", "--source", str(make_video()), "--ask", QUESTION, "--ask", long)
    assert code == 2
    assert "ask: question: 1200 tokens" in document["error"]


def test_the_first_answer_is_not_lost_to_the_seconds_error(
    run: Any, make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Session.ask

    def ask(self: Session, question: str, **keywords: Any) -> Any:
        if question == "ball ?":
            raise OSError("the spill file is gone")
        return real(self, question, **keywords)

    monkeypatch.setattr(Session, "ask", ask)
    questions = ["--ask", QUESTION, "--ask", "ball ?", "--ask", "what colour ?"]
    code, document = run("run", "--source", str(make_video()), *questions)
    assert code == 1
    assert document["error"] == "the spill file is gone"
    assert ["answer" in answer for answer in document["answers"]] == [True, False, True]


def test_a_rate_beyond_all_rates_is_every_frame(run: Any, make_video: MakeVideo) -> None:
    code, document = run("run", "--source", str(make_video()), "--ask", QUESTION, "--fps", "1e308")
    assert (code, document["frames"]) == (0, 20)


def test_run_reads_a_pipe_once(run: Any, make_video: MakeVideo, tmp_path: Path) -> None:
    data = make_video("a.mkv").read_bytes()
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_bytes, args=(data,), daemon=True)
    writer.start()
    code, document = run("run", "--source", str(fifo), "--ask", QUESTION, "--fps", "5")
    assert (code, document["frames"]) == (0, 10)


def test_times_of_the_world_are_shown_as_such() -> None:
    moment = 1_795_000_000.0
    shown = datetime.fromtimestamp(moment).isoformat(" ", "seconds")
    assert clock(moment) == shown
    assert shown in show_evidence([{"start": moment, "end": moment + 4, "score": 0.5}])
    assert clock(47 * 86400.0) == "1128:00:00"


@pytest.mark.parametrize("claimed", [2.5e11, 1e12, 1e18])
def test_times_that_no_calendar_has_are_shown_all_the_same(claimed: float) -> None:
    hours = int(claimed) // 3600
    assert clock(claimed).startswith(f"{hours}:")
    assert f"{hours}:" in show_evidence([{"start": claimed, "end": claimed + 4, "score": 0.5}])
