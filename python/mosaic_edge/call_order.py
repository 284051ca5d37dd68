"""Who may call into a session: its own process, one thread at a time, one frame or answer at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class CallOrder:
    """Two locks: `lock` is one step, a call into the core or the model; the turn is a frame or an answer,
    which are many."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.streaming = False
        """Whoever has the turn gives out an answer piece by piece, and may never come back."""
        self.ending = False
        """A service is to end: an answer stops after the token in hand."""
        self._process = os.getpid()
        # Whichever thread ends an answer releases it.
        self._turn = threading.Lock()
        self._turn_of: int | None = None

    @property
    def is_in_its_process(self) -> bool:
        """False in a fork of the process, whose other threads stayed behind."""
        return self._process == os.getpid()

    @contextmanager
    def step(self) -> Iterator[None]:
        """One call into the core, or the model, at a time."""
        self._need_its_process()  # in a fork, whoever held the lock is not there
        with self.lock:
            yield

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for frames and answers of other threads; a streamed answer is not waited for."""
        self._need_its_process()
        if self.streaming:
            raise ValueError("an answer is being streamed: iterate it to its end or close() it first")
        if self._turn_of == threading.get_ident():
            raise ValueError("a policy cannot append to or ask the session that is calling it")
        with self._turn, self._named():  # not acquire(): an interrupt behind it would keep the turn for ever
            yield

    @contextmanager
    def _named(self) -> Iterator[None]:
        self._turn_of = threading.get_ident()
        try:
            yield
        finally:
            self._turn_of = None

    def _need_its_process(self) -> None:
        if not self.is_in_its_process:
            raise ValueError(
                f"the session belongs to process {self._process}, of which this one is a fork: open one in "
                "each process, or start processes by spawn or forkserver"
            )
