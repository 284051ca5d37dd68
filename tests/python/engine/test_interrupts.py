"""Ctrl-C inside append or ask, wherever Python looks for signals: the session works on, nothing is half done.

MOSAIC_INTERRUPTS=1000 tries more places.
"""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from mosaic_edge.engine import Engine, Session
from numpy_vlm import NumpyVlm, picture

QUESTION = "what colour was the ball ?"
PLACES = int(os.environ.get("MOSAIC_INTERRUPTS", "60"))


@pytest.fixture(params=["window", "edge"])
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    with Engine(NumpyVlm()).session(memory="1MiB", policy=request.param, kernel_threads=1) as opened:
        opened.append(picture(0), 0.0)
        yield opened


def stopped_by(trace: Callable[[FrameType, str, Any], Any], work: Callable[[], object]) -> bool:
    """Run `work` under a trace that may interrupt it; whether it did."""
    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def interrupted(work: Callable[[], object], at: int) -> bool:
    """Run `work`, interrupted as by a signal's handler when function number `at` is entered; whether it
    got so far."""
    calls = 0

    def trace(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            sys.settrace(None)
            raise KeyboardInterrupt

    return stopped_by(trace, work)


def works_on(session: Session, pts: float) -> None:
    """In another thread, as a turn that is kept would hang."""
    done: list[str] = []

    def again() -> None:
        session.append(picture(int(pts) % 24), pts)
        session.check_invariants()
        done.append(session.ask(QUESTION).text)

    thread = threading.Thread(target=again, daemon=True)
    thread.start()
    thread.join(60)
    assert done, "it hangs, or failed"


def test_an_interrupt_anywhere_in_append_or_ask_leaves_a_session_that_works(session: Session) -> None:
    generator = random.Random(11)
    pts = 1.0
    works = [
        lambda: session.append(picture(1), pts),
        lambda: session.ask(QUESTION),
        lambda: list(session.ask(QUESTION, stream=True)),
        lambda: session.ask(QUESTION, dialogue=True),
    ]
    met = 0
    for _ in range(PLACES):
        before = session.memory()["frames"]
        met += interrupted(generator.choice(works), int(2 ** generator.uniform(0, 9)))
        assert session.memory()["frames"] - before in (0, 1)
        works_on(session, pts + 1)
        pts += 2.0
    assert met > PLACES // 3


def interrupted_at_opcode(
    work: Callable[[], object], at: int, files: tuple[str, ...], function: str | None = None
) -> bool:
    """Run `work`, interrupted before the opcode number `at` of those files, or of one function in them;
    whether it got so far."""
    opcodes = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal opcodes
        code = frame.f_code
        if not code.co_filename.endswith(files) or function not in (None, code.co_name):
            return None
        frame.f_trace_opcodes = True
        opcodes += event == "opcode"
        if opcodes == at:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    return stopped_by(trace, work)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # where a file is forgotten
def test_an_interrupt_anywhere_in_opening_or_closing_a_traced_session_leaves_no_trace_and_no_file(
    tmp_path: Path,
) -> None:
    path = tmp_path / "trace.json"
    files = ("trace.py", "output_file.py")
    settings: dict[str, Any] = {"memory": "1MiB", "trace": str(path), "kernel_threads": 1}
    opened: list[Session] = []
    for at in range(1, 10_000):
        met = interrupted_at_opcode(lambda: opened.append(Engine(NumpyVlm()).session(**settings)), at, files)
        if not met:
            break
        assert not list(tmp_path.iterdir()), at
    assert at > 20
    opened.pop().close()
    for at in range(1, 10_000):
        path.write_text("of before")
        session = Engine(NumpyVlm()).session(**settings)
        session.append(picture(0), 0.0)
        met = interrupted_at_opcode(session.close, at, files)
        session.close()
        assert "encode_frame" in path.read_text()
        assert list(tmp_path.iterdir()) == [path], at
        if not met:
            break
    assert at > 20


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # where a file is forgotten
def test_an_interrupt_anywhere_in_a_fork_leaves_no_thread_that_holds_the_session() -> None:
    session = Engine(NumpyVlm()).session(memory="4MiB", policy="full", kernel_threads=1)
    for i in range(150):  # more than a pipe holds
        session.append(picture(i % 24), float(i))
    for at in range(1, 1000):
        met = interrupted_at_opcode(lambda: session.fork().close(), at, ("snapshot.py",), "piped")
        works_on(session, 1000.0 + at)
        if not met:
            break
    assert at > 20
    session.close()  # not where it failed: it would wait for that thread
