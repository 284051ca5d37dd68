"""stream_live takes a robot's own frames: its socket answers, its account is written, it ends well."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mosaic_edge import SamplingParams, SourceError, stream_live
from mosaic_edge.engine import Engine, Session
from mosaic_edge.sources import Frame
from numpy_vlm import NumpyVlm, picture

QUESTION = "what colour was the ball ?"


@pytest.fixture
def session() -> Iterator[Session]:
    with Engine(NumpyVlm()).session(memory="1MiB", policy="window", kernel_threads=1) as opened:
        yield opened


class Robot:
    """Frames of a camera that someone else holds; `at` is called before a frame is given."""

    def __init__(self, count: int, at: dict[int, object] | None = None) -> None:
        self.count, self.at, self.closed = count, at or {}, 0

    def __iter__(self) -> Iterator[Frame]:
        for i in range(self.count):
            if i in self.at:
                self.at[i]()  # type: ignore[operator]
            yield Frame(picture(i), 10.0 + i / 4, i)

    def close(self) -> None:
        self.closed += 1


def ask(place: Path, question: str) -> dict[str, object]:
    with socket.socket(socket.AF_UNIX) as asked:
        asked.settimeout(60)
        asked.connect(str(place))
        with asked.makefile("rw") as line:
            line.write(question + "\n")
            line.flush()
            answer: dict[str, object] = json.loads(line.readline())
            return answer


def test_frames_of_ones_own_are_asked_about_while_they_arrive(session: Session, tmp_path: Path) -> None:
    place = Path(tempfile.gettempdir()) / f"mosaic-live-{os.getpid()}.sock"  # a socket's path holds 107 bytes
    answers: list[dict[str, object]] = []
    ticks: list[tuple[float, int]] = []
    robot = Robot(
        13, {7: lambda: answers.append(ask(place, QUESTION)), 9: lambda: answers.append(ask(place, "flurb"))}
    )
    account = tmp_path / "account.csv"
    ended = stream_live(
        session, robot, socket=place, account=account, every=1e-9, progress=lambda *tick: ticks.append(tick)
    )
    assert (ended.frames, ended.error, robot.closed) == (13, None, 1)
    assert ticks == [(10.0 + i / 4, i + 1) for i in range(13)]
    assert answers[0]["question"] == QUESTION and answers[0]["answer"]
    assert "unknown word 'flurb'" in str(answers[1]["error"])
    assert not place.exists()
    rows = list(csv.DictReader(account.open()))
    assert [int(row["frames"]) for row in rows] == list(range(1, 14))
    assert int(rows[-1]["taken_bytes"]) == session.memory()["taken_bytes"]
    assert session.ask(QUESTION).text, "the session is the caller's, and goes on"


def test_the_socket_answers_as_it_was_told_to(session: Session) -> None:
    place = Path(tempfile.gettempdir()) / f"mosaic-asking-{os.getpid()}.sock"
    answers: list[dict[str, object]] = []
    robot = Robot(9, {5: lambda: answers.append(ask(place, QUESTION))})
    asking = {"sampling": SamplingParams(max_tokens=2), "since": 10.9}
    stream_live(session, robot, socket=place, asking=asking)
    assert answers[0]["tokens"] == 2
    assert min(moment["start"] for moment in answers[0]["evidence"]) >= 10.9  # type: ignore[attr-defined]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_stream_and_leaves_the_handlers_as_they_were(
    session: Session, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    robot = Robot(1000, {5: lambda: os.kill(os.getpid(), number)})
    ended = stream_live(session, robot)
    assert (ended.frames, ended.error, robot.closed) == (5, None, 1)
    assert signal.getsignal(number) is before
    session.check_invariants()


def test_a_stream_may_run_in_a_thread_of_the_robots(session: Session) -> None:
    ended: list[int] = []
    thread = threading.Thread(target=lambda: ended.append(stream_live(session, Robot(5)).frames))
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert ended == [5]


def test_a_source_that_breaks_off_is_told_and_any_other_error_is_raised(session: Session) -> None:
    def broken() -> None:
        raise SourceError("robot", 11.0, "the cable is out")

    robot = Robot(9, {4: broken})
    ended = stream_live(session, robot)
    assert (ended.frames, ended.error) == (4, "robot: read up to 11.00 s: the cable is out")
    assert robot.closed == 1
    wrong = Robot(9)
    wrong.at = {2: lambda: 1 / 0}
    session.close()
    with pytest.raises(ValueError, match="session is closed"):
        stream_live(session, wrong)
    assert wrong.closed == 1


def test_rows_of_an_account_need_time_between_them(session: Session) -> None:
    with pytest.raises(ValueError, match="every=0"):
        stream_live(session, Robot(1), every=0)
