"""One cap over all sessions, of memory and of disk: what a session will take is drawn before it is opened,
and given back when it is closed."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from mosaic_edge.config import format_bytes


class BudgetSpentError(MemoryError):
    """The budget has no room for what was asked: who, need, have and knob, in words and as fields."""

    exit_code = 3

    def __init__(self, who: str, need: int, have: int, of: str) -> None:
        """of: the budget, by the setting that a session has of it."""
        self.who, self.need, self.have, self.of = who, need, have, of
        self.knob = f"Lower {of}=, end a session (DELETE), or start the server with a larger --{of}."
        super().__init__(
            f"{who} needs {format_bytes(need)} ({need} bytes) of {of}; {format_bytes(have)} ({have} bytes) "
            f"of the server's budget are left. {self.knob}"
        )


class Share:
    """Bytes drawn from a budget; giving them back twice is fine."""

    def __init__(self, budget: Budget, drawn_bytes: int) -> None:
        self._budget, self.drawn_bytes = budget, drawn_bytes
        self._held = True

    def give_back(self) -> None:
        """Into the budget again."""
        with self._budget.lock:
            if self._held:
                self._held = False
                self._budget.drawn_bytes -= self.drawn_bytes


@dataclass(frozen=True)
class Shares:
    """What a session drew."""

    memory: Share
    disk: Share

    def give_back(self) -> None:
        """Both."""
        self.memory.give_back()
        self.disk.give_back()


class Budget:
    """`cap_bytes` that shares are drawn from, by any thread; their sum is never above it."""

    def __init__(self, cap_bytes: int, of: str = "memory") -> None:
        """of: what they are of, "memory" or "disk"."""
        self.cap_bytes, self.of = cap_bytes, of
        self.drawn_bytes = self.peak_bytes = 0
        self.lock = threading.Lock()

    def draw(self, who: str, need: int) -> Share:
        """A share of `need` bytes. BudgetSpentError where there are not so many, and nothing is drawn."""
        with self.lock:
            have = self.cap_bytes - self.drawn_bytes
            if need > have:
                raise BudgetSpentError(who, need, have, self.of)
            self.drawn_bytes += need
            self.peak_bytes = max(self.peak_bytes, self.drawn_bytes)
        return Share(self, need)
