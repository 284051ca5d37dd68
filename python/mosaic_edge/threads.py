"""Threads of this package: started, or refused in words."""

from __future__ import annotations

import threading

from mosaic_edge import _core


def started(thread: threading.Thread, what: str) -> threading.Thread:
    """It runs from here on. DeviceError, named by `what` it is for, where the system has no thread for it."""
    try:
        thread.start()
    except RuntimeError as error:
        raise no_thread(what, error) from None
    return thread


def no_thread(what: str, error: RuntimeError) -> Exception:
    """The DeviceError for what Python says where it cannot start one."""
    have = f"{error}; Python has {threading.active_count()} here"
    return _core.DeviceError(
        f"{what} needs a thread of its own, and there is none ({have}). Raise the limit of threads "
        "(ulimit -u, TasksMax=, --pids-limit) or of memory that this process has, or end what else runs."
    )
