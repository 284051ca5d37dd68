"""close() while a frame or an answer is worked on, by another thread or by a policy that is being asked.
The step in hand is finished first, what was to come is refused, nothing hangs and no error is raw."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mosaic_edge import Policy
from mosaic_edge.engine import Engine, Session
from mosaic_edge.sampling import SamplingParams
from numpy_vlm import NumpyVlm, picture

QUESTION = "what colour was the ball ?"
SHORT = SamplingParams(max_tokens=4)
CLOSED = ["the session is closed"]
SAYS_SO = rf"^{CLOSED[0]}$"


class Gated(NumpyVlm):
    """Stops in the pass number `at` of its decoder from now on until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.at = 0
        self.stands, self.go_on = threading.Event(), threading.Event()

    def forward(self, embeds: Any, attend: Any, want_logits: bool = True) -> Any:
        self.at -= 1
        if self.at == 0:
            self.stands.set()
            assert self.go_on.wait(60)
        return super().forward(embeds, attend, want_logits)


def started(work: Callable[[], object], said: list[str]) -> threading.Thread:
    """`work` in a thread; what it raises as text, or "done", is added to `said`."""

    def call() -> None:
        try:
            work()
            said.append("done")
        except ValueError as error:
            said.append(str(error))
        except BaseException as error:
            said.append(repr(error))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


def ended(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "it hangs"


def refused(session: Session) -> None:
    """Every call says that it is closed, and closing once more is fine."""
    for call in (
        lambda: session.append(picture(1)),
        lambda: session.ask(QUESTION),
        session.memory,
        session.check_invariants,
        session.fork,
    ):
        with pytest.raises(ValueError, match=SAYS_SO):
            call()
    session.close()


@pytest.mark.parametrize(
    ("what", "at", "comes"),
    [
        ("append", 1, ["done"]),
        ("ask", 1, CLOSED),
        ("ask", 2, CLOSED),
        ("ask", 4, ["done"]),  # the pass of the last token: nothing is to come
        ("dialogue", 4, CLOSED),
        ("dialogue", 5, ["done"]),
    ],
)
@pytest.mark.parametrize("disk", [None, "64KiB"])
def test_close_waits_for_the_step_in_hand_of_another_thread_and_the_rest_is_refused(
    what: str, at: int, comes: list[str], disk: str | None, tmp_path: Path
) -> None:
    model = Gated()
    session = Engine(model).session(
        memory="300KiB", policy="mosaic", kernel_threads=2, disk=disk, spill_dir=str(tmp_path)
    )
    for number in range(20):
        session.append(picture(number))
    model.at = at
    said: list[str] = []
    closing: list[str] = []
    works = {
        "append": lambda: session.append(picture(20)),
        "ask": lambda: session.ask(QUESTION, sampling=SHORT),
        "dialogue": lambda: session.ask(QUESTION, sampling=SHORT, dialogue=True),
    }
    worker = started(works[what], said)
    assert model.stands.wait(60)
    closer = started(session.close, closing)
    while not session._blocks.is_closed:
        closer.join(0.001)
    assert not closing, "it does not wait"
    model.go_on.set()
    ended(worker, closer)
    assert (said, closing) == (comes, ["done"])
    refused(session)
    assert not list(tmp_path.iterdir())


def test_close_between_two_pieces_of_an_answer_ends_it_and_the_session() -> None:
    session = Engine(NumpyVlm()).session(memory="1MiB")
    session.append(picture(0))
    stream = session.ask(QUESTION, stream=True)
    pieces = iter(stream)
    next(pieces)
    closing: list[str] = []
    ended(started(session.close, closing))
    assert closing == ["done"]
    with pytest.raises(ValueError, match=SAYS_SO):
        next(pieces)
    stream.close()
    refused(session)


def test_close_at_any_moment_among_four_threads_neither_hangs_nor_crashes(tmp_path: Path) -> None:
    engine, generator = Engine(NumpyVlm()), random.Random(3)
    for round_ in range(12):
        session = engine.session(
            memory="300KiB",
            policy=generator.choice(["edge", "mosaic", "rekv"]),
            disk=generator.choice([None, "64KiB"]),
            spill_dir=str(tmp_path),
            kernel_threads=2,
        )
        calls = 0

        def until_closed(call: Callable[[], object]) -> None:
            nonlocal calls
            while True:
                call()
                calls += 1

        said: list[str] = []
        saved = tmp_path / f"saved{round_}"
        threads = [
            started(lambda call=call: until_closed(call), said)  # type: ignore[misc]
            for call in (
                lambda: session.append(picture(calls % 40)),  # noqa: B023
                lambda: session.ask(QUESTION, sampling=SHORT),  # noqa: B023
                lambda: session.save(saved),  # noqa: B023
                session.memory,
            )
        ]
        enough = generator.randrange(1, 60)
        while calls < enough and not said:
            threads[0].join(0.001)
        session.close()
        ended(*threads)
        assert said == 4 * CLOSED
        refused(session)
        if saved.exists():
            engine.restore(saved, spill_dir=str(tmp_path)).close()
        assert not list(tmp_path.glob(".*"))


class Closes(Policy):
    """Closes its session in one of its methods, once it has one."""

    def __init__(self, method: str) -> None:
        super().__init__(selects=True)
        self.method = method
        self.session: Session | None = None

    def _maybe(self, method: str) -> None:
        if method == self.method and self.session is not None:
            self.session.close()

    def admit(self, store: Any, batch: Any) -> None:
        self._maybe("admit")

    def evict(self, store: Any, need: Any) -> list[Any]:
        self._maybe("evict")
        return []

    def select(self, store: Any, query: Any) -> list[int]:
        self._maybe("select")
        return []


@pytest.mark.parametrize("method", ["admit", "evict", "select"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_policy_that_closes_its_session_ends_the_call_that_asks_it_by_saying_so(
    method: str, stream: bool
) -> None:
    policy = Closes(method)
    session = Engine(NumpyVlm()).session(memory="150KiB", policy=policy, kernel_threads=1)
    for number in range(60):  # until it must evict
        session.append(picture(number))
    policy.session = session
    with pytest.raises(ValueError, match=SAYS_SO):
        if method == "select":
            answer = session.ask(QUESTION, stream=stream)
            for _ in answer if stream else ():
                pass
        for number in range(60, 90):
            session.append(picture(number))
    refused(session)
