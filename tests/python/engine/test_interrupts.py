"""Ctrl-C inside append or ask, wherever Python looks for signals: the session works on, nothing is half done.

MOSAIC_INTERRUPTS=1000 tries more places.
"""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
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

    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


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
