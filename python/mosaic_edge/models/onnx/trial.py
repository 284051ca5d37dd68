"""The first runs of a graph that came with a model directory: one that does not end is ended, by a limit of
time or by Ctrl-C. ONNX Runtime itself returns from a run only when told so from another thread.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from mosaic_edge.models.vlm import ModelError

SECONDS = 120.0
"""A large vision encoder on a small board takes a few."""


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
        made: list[Any] = []
        failed: list[BaseException] = []

        done = (
            threading.Event()
        )  # join() would not do: Python 3.11 takes a thread for dead after Ctrl-C in it

        def work() -> None:
            try:
                made.extend(self._session.run(outputs, feed, options))
            except BaseException as error:  # raised below, where someone waits for it
                failed.append(error)
            finally:
                done.set()

        threading.Thread(target=work, name="mosaic-trial", daemon=True).start()
        late = True
        try:
            late = not done.wait(SECONDS)
        finally:  # also for Ctrl-C
            if late:
                options.terminate = True
                done.wait()
        if late:
            raise ModelError(
                f"{self._where}: its first run did not end in {SECONDS:g} s: a graph that loops?"
            )
        if failed:
            raise failed[0]
        return made
