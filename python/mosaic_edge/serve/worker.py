"""The thread of a session: what waits for the model waits here, and never in the event loop."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from mosaic_edge.threads import started

MOST_WAITING = 32

_Result = TypeVar("_Result")


class BusyError(RuntimeError):
    """Too much waits already."""


class Worker:
    """Calls, made one after the other in the order they came, by a daemon thread: a process that is told to
    end does not wait for one that is long."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = 0
        self._ended = False
        started(threading.Thread(target=self._run, name=name, daemon=True), name)

    @property
    def waiting(self) -> int:
        """Calls that are not through, the one being made among them."""
        return self._waiting

    def submit(self, call: Callable[[], _Result]) -> Future[_Result]:
        """Make a call. BusyError where MOST_WAITING wait, or after end()."""
        future: Future[_Result] = Future()
        with self._lock:
            if self._ended or self._waiting >= MOST_WAITING:
                why = "it is being closed" if self._ended else f"{self._waiting} calls wait already"
                raise BusyError(f"{self._name}: {why}")
            self._waiting += 1
            self._calls.put((future, call))
        return future

    def end(self, last: Callable[[], _Result]) -> Future[_Result]:
        """Take no more calls; make `last` after those that wait, and end the thread."""
        future: Future[_Result] = Future()
        with self._lock:
            self._ended = True
            self._calls.put((future, last))
            self._calls.put(None)
        return future

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            self._make(*call)
            with self._lock:
                self._waiting -= 1
            del call  # what it was given may be large

    @staticmethod
    def _make(future: Future[Any], call: Callable[[], Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = call()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)
