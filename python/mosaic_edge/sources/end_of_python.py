"""Threads in a call of FFmpeg when Python ends. PyAV looks there, ten times a second and in Python, whether
the time of a call is up: in a thread that outlives the interpreter, which crashes the process. So when Python
ends its clock goes backwards, which ends every call."""

from __future__ import annotations

import atexit
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import count
from threading import Lock, Thread, current_thread

PATIENCE_S = 2.0
"""For all: where a system has nothing else to do it is a tenth of a second. A call that hears nothing, as a
name that is looked up, does not look at the time either."""
_reading: dict[Thread, Callable[[], object]] = {}
_lock = Lock()


class _Backwards:
    """The clock as PyAV's module has it: it ends a call when that goes back, whatever time the call has, of
    those too that begin from here on."""

    _looks = count(1)

    @classmethod
    def monotonic(cls) -> float:
        return -float(next(cls._looks))


@contextmanager
def ending_with_python(close: Callable[[], object]) -> Iterator[None]:
    """This thread reads what may say nothing; close: its last step is the one that it is in."""
    _at_the_end()
    with _lock:
        _reading[current_thread()] = close
    try:
        yield
    finally:
        with _lock:
            del _reading[current_thread()]


@cache
def _at_the_end() -> None:
    atexit.register(_end)


def _end() -> None:
    # Ctrl-C would end what follows, and crash the process. ValueError: this is not the main thread.
    with suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    core = sys.modules.get("av.container.core")
    if core is not None:
        core.time = _Backwards  # type: ignore[attr-defined]
    with _lock:
        reading = {thread: close for thread, close in _reading.items() if thread.is_alive()}
    for close in reading.values():
        with suppress(Exception):
            close()
    until = time.monotonic() + PATIENCE_S
    for thread in reading:
        thread.join(max(0.0, until - time.monotonic()))
