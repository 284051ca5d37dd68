"""Threads of this package: started, or refused in words; and what becomes of others when Python ends."""

from __future__ import annotations

import atexit
import threading
from functools import cache


def started(thread: threading.Thread, what: str) -> threading.Thread:
    """It runs from here on. DeviceError, named by `what` it is for, where the system has no thread for it."""
    try:
        thread.start()
    except RuntimeError as error:
        raise no_thread(what, error) from None
    return thread


_KNOB = "the limit of threads"
"""That every error names that is for want of a thread, the core's own among them."""


def is_no_thread(error: BaseException) -> bool:
    """Whether it says that the system has no thread left, whoever needed it."""
    from mosaic_edge import _core

    return isinstance(error, _core.DeviceError) and _KNOB in str(error)


def no_thread(what: str, error: RuntimeError) -> Exception:
    """The DeviceError for what Python says where it cannot start one."""
    from mosaic_edge import _core  # not before it is needed: commands that run nothing load no core

    have = f"{error}; Python has {threading.active_count()} here"
    return _core.DeviceError(
        f"{what} needs a thread of its own, and there is none ({have}). Raise {_KNOB} "
        "(ulimit -u, TasksMax=, --pids-limit) or of memory that this process has, or end what else runs."
    )


@cache
def harmless_end() -> None:
    """From here on a thread in C++ of a library - an operator that hears nothing, a load in a daemon thread -
    may come back while the interpreter goes away: it waits there, instead of ending the process by abort."""
    from mosaic_edge import _core

    atexit.register(_core.let_threads_wait)
