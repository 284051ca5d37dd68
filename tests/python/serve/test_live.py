"""stream_live takes a robot's own frames: its socket answers, its account is written, it ends well."""

from __future__ import annotations

import csv
import json
import os
import resource
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from http_service import PATIENCE, GatedVlm, until
from mosaic_edge import SamplingParams, SourceError, stream_live
from mosaic_edge.ends import SAME_SECONDS
from mosaic_edge.engine import Engine, Session
from mosaic_edge.sampling import Sampler
from mosaic_edge.serve.state import SavedStream, StateFolder
from mosaic_edge.snapshot_file import replaced
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_stream_and_leaves_the_handlers_as_they_were(
    session: Session, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    robot = Robot(1000, {5: lambda: os.kill(os.getpid(), number)})
    ended = stream_live(session, robot)
    assert (ended.frames, ended.error, robot.closed) == (5, None, 1)
    assert signal.getsignal(number) is before
    session.check_invariants()


def test_a_stream_under_nohup_outlives_its_terminal(session: Session) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        ended = stream_live(session, Robot(9, {5: lambda: os.kill(os.getpid(), signal.SIGHUP)}))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (ended.frames, ended.error) == (9, None)


def when(holds: Callable[[], object], *numbers: signal.Signals) -> threading.Thread:
    """Send this process the signals, one after the other, each as soon as holds() is true."""

    def send() -> None:
        for number in numbers:
            until(holds)
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_a_frame_that_takes_too_long_when_a_signal_comes_is_taken_back_and_the_others_are_saved(
    tmp_path: Path,
) -> None:
    model, folder = GatedVlm(), StateFolder(tmp_path, 3600)
    with Engine(model).session(memory="1MiB", policy="window", kernel_threads=1) as session:
        runs: list[int] = []
        robot = Robot(1000, {5: lambda: (runs.append(model.runs), model.gate.clear())})
        sending = when(lambda: runs and model.runs > runs[0], signal.SIGTERM)
        ended = stream_live(session, robot, state=SavedStream(folder, "live", session))
        sending.join()
        assert (ended.frames, ended.error, robot.closed) == (5, None, 1)
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
        model.gate.set()
        session.check_invariants()
        session.append(picture(9))
        assert session.ask(QUESTION).text
    with Engine(model).restore(folder.file("live")) as again:
        assert again.memory()["frames"] == 5


def unheard(place: Path) -> None:
    with suppress(OSError, ValueError):  # the stream ends before its answer
        ask(place, QUESTION)


def test_an_answer_that_is_being_made_when_a_signal_comes_ends_after_its_token(session: Session) -> None:
    place = Path(tempfile.gettempdir()) / f"mosaic-ends-{os.getpid()}.sock"
    asking = threading.Thread(target=unheard, args=(place,))
    drawn = [0]

    class Told(Sampler):
        """The signal comes with its third token."""

        def next(self, logits: Any) -> int:
            drawn[0] += 1
            if drawn[0] == 3:
                os.kill(os.getpid(), signal.SIGTERM)
                until(lambda: session.ending)
            return 5

    robot = Robot(1 << 30, {5: asking.start, 6: lambda: until(lambda: drawn[0])})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mosaic_edge.session.Sampler", Told)
        ended = stream_live(session, robot, socket=place, asking={"sampling": SamplingParams(max_tokens=30)})
    asking.join()
    assert (drawn[0], ended.error) == (3, None)
    assert session.ending is False
    assert session.ask(QUESTION).text, "the session is the caller's, and goes on"


def test_a_second_signal_ends_the_saving_and_leaves_what_was_saved_before(
    session: Session, tmp_path: Path
) -> None:
    folder = StateFolder(tmp_path, 3600)
    state = SavedStream(folder, "live", session)
    state.save()
    before, saving = folder.file("live").read_bytes(), threading.Event()

    class Slow(SavedStream):
        def save(self) -> None:
            with replaced(folder.file("live")) as descriptor:
                os.write(descriptor, b"half")
                time.sleep(2 * SAME_SECONDS)
                saving.set()
                time.sleep(PATIENCE)

    robot = Robot(1000, {5: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    sending = when(saving.is_set, signal.SIGTERM)
    ended = stream_live(session, robot, state=Slow(folder, "live", session))
    sending.join()
    assert (ended.frames, ended.error) == (5, None)
    assert list(tmp_path.iterdir()) == [folder.file("live")] and folder.file("live").read_bytes() == before


def test_a_signal_that_comes_twice_at_once_cuts_no_saving_short(session: Session, tmp_path: Path) -> None:
    folder, pid = StateFolder(tmp_path, 3600), os.getpid()

    class Told(SavedStream):
        def save(self) -> None:
            os.kill(pid, signal.SIGTERM)
            super().save()

    robot = Robot(1000, {5: lambda: os.kill(pid, signal.SIGTERM)})
    assert stream_live(session, robot, state=Told(folder, "live", session)).frames == 5
    assert folder.names() == ["live"]


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


def test_an_account_that_the_disk_has_no_room_for_is_named_and_leaves_nothing(
    session: Session, tmp_path: Path
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9, before[1]))
    try:
        with pytest.raises(OSError, match=r"account=: File too large: '.*a\.csv'"):
            stream_live(session, Robot(3), account=tmp_path / "a.csv")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_rows_of_an_account_need_time_between_them(session: Session) -> None:
    with pytest.raises(ValueError, match="every=0"):
        stream_live(session, Robot(1), every=0)
