"""What tells a process to end, and when it is told again."""

from __future__ import annotations

import signal
import time

SAME_SECONDS = 0.1
"""Signals so close are one: timeout(1) tells a process, and at once its group, which it is of."""


def ends() -> tuple[signal.Signals, ...]:
    """Signals that a service hears: of a terminal that closes (SIGHUP) too, but under nohup."""
    hung_up = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    return signal.SIGTERM, signal.SIGINT, *hung_up


class Told:
    """How often it was."""

    def __init__(self) -> None:
        self._first = 0.0
        self.times = 0

    def count(self) -> bool:
        """A signal came: whether it is not the one before, once more."""
        now = time.monotonic()
        if self.times == 1 and now - self._first < SAME_SECONDS:
            return False
        if not self.times:
            self._first = now
        self.times += 1
        return True
