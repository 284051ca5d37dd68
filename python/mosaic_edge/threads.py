"""Threads of this package: started, or refused in words; and what becomes of others when Python ends."""

from __future__ import annotations

import atexit
import threading
from functools import cache


def started(thread: threading.Thread, what: str) -> threading.Thread:
    """It runs from here on. NoThreadError, named by `what` it is for, where the system has no thread."""
    try:
        thread.start()
    except RuntimeError as error:
        raise no_thread(what, error) from None
    return thread


def no_thread(what: str, error: RuntimeError) -> Exception:
    """The error for what Python says where it cannot start one."""
    from mosaic_edge import _core  # not before it is needed: commands that run nothing load no core

    have = f"{error}; Python has {threading.active_count()} here"
    return _core.NoThreadError(
        f"{what} needs a thread of its own, and there is none ({have}). Raise the limit of threads "
        "(ulimit -u, TasksMax=, --pids-limit) or of memory that this process has, or end what else runs."
    )


@cache
def harmless_end() -> None:
    """From here on a thread in C++ of a library - an operator that hears nothing, a load in a daemon thread -
    may come back while the interpreter goes away: it waits there, instead of ending the process by abort."""
    from mosaic_edge import _core

    atexit.register(_core.let_threads_wait)
