"""What ONNX Runtime does with a graph that came with a model directory - load it, which works out what does
not depend on its inputs, and run it for the first time - under a limit of time, and of Ctrl-C. It is told to
end, which it hears between two operators, and left to its thread if it is in one that goes on; what becomes
of that when Python ends stands in threads.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import onnxruntime as ort

from mosaic_edge.models.sandbox import check_memory
from mosaic_edge.models.vlm import ModelError
from mosaic_edge.threads import started

SECONDS = 120.0
"""Of a first run: a large vision encoder on a small board takes a few."""
LOAD_SECONDS = 600.0
"""Of what reads weights, maybe gigabytes from a slow card."""
THREAD = "mosaic-trial"
END_SECONDS = 5.0
"""What work that is told to end may still take."""
_T = TypeVar("_T")


def watched(
    work: Callable[[], _T], where: str, late: str, seconds: float, end: Callable[[], None] | None = None
) -> _T:
    """What `work` returns or raises, done in a thread of its own. ModelError, `where` it is, that
    it was `late` and what may be wrong, if it takes more than `seconds`. end: tells it to."""
    made: list[_T] = []
    failed: list[BaseException] = []
    # join() would not do: Python 3.11 takes a thread for dead after Ctrl-C in it.
    done = threading.Event()

    def run() -> None:
        try:
            made.append(work())
        except BaseException as error:  # raised below, where someone waits for it
            failed.append(error)
        finally:
            done.set()

    started(
        threading.Thread(target=run, name=THREAD, daemon=True), f"{where}: trying it under a limit of time"
    )
    is_late = True
    try:
        is_late = not done.wait(seconds)
    finally:  # also for Ctrl-C
        if is_late:
            if end is not None:
                end()
            done.wait(END_SECONDS)
    if is_late:
        raise ModelError(
            f"{where}: {late} in {seconds:g} s: a graph that loops, or with too much to work out?"
        )
    if failed:
        check_memory(failed[0], where)
        raise failed[0]
    return made[0]


def loaded(
    model: bytes | str, options: ort.SessionOptions, providers: Sequence[str], where: str
) -> ort.InferenceSession:
    """An inference session, as ONNX Runtime makes it. ModelError where that takes more than LOAD_SECONDS."""
    cancel = getattr(options, "set_load_cancellation_flag", None)  # from 1.22 on
    return watched(
        lambda: ort.InferenceSession(model, options, providers=list(providers)),
        where,
        "onnxruntime did not load it",
        LOAD_SECONDS,
        None if cancel is None else lambda: cancel(True),
    )


class TrialSession:
    """An inference session whose runs are watched until it has `passed`."""

    def __init__(self, session: ort.InferenceSession, where: str) -> None:
        self._session, self._where = session, where
        self._watched = True

    def passed(self) -> None:
        """It has run once: from here on its runs are its own."""
        self._watched = False

    def get_inputs(self) -> list[Any]:
        """As the session has them."""
        return list(self._session.get_inputs())

    def get_outputs(self) -> list[Any]:
        """As the session has them."""
        return list(self._session.get_outputs())

    def run(self, outputs: Sequence[str] | None, feed: Mapping[str, np.ndarray]) -> list[Any]:
        """As the session does it. ModelError if a watched run takes more than SECONDS."""
        if not self._watched:
            return list(self._session.run(outputs, feed))
        options = ort.RunOptions()

        def end() -> None:
            options.terminate = True

        late = "its first run did not end"
        run = watched(lambda: self._session.run(outputs, feed, options), self._where, late, SECONDS, end)
        return list(run)
