"""Sessions that are open when the interpreter ends.

A daemon thread that is in a model's code would be killed there, which ends the process if that is C++: it may
finish its step, and waits for ever before the next one.
"""

from __future__ import annotations

import atexit
import weakref
from functools import cache
from typing import Protocol

_LAST_CALL_SECONDS = 10.0


class Holds(Protocol):
    """A session, as far as its end is concerned."""

    def hold(self, seconds: float) -> None:
        """No call begins any more; the one under way is waited for, so many seconds at most."""


_open: weakref.WeakSet[Holds] = weakref.WeakSet()


def hold_at_exit(session: Holds) -> None:
    """Hold the session when the interpreter ends, if it is there still."""
    _open.add(session)
    _register()


@cache
def _register() -> None:
    atexit.register(_hold_all)


def _hold_all() -> None:
    for session in list(_open):
        session.hold(_LAST_CALL_SECONDS)
