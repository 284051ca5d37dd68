"""One cap over all sessions: what a session will take is drawn before it is opened, and given back when it
is closed."""

from __future__ import annotations

import threading

from mosaic_edge.config import format_bytes


class BudgetSpentError(MemoryError):
    """The budget has no room for what was asked: who, need, have and knob, in words and as fields."""

    exit_code = 3

    def __init__(self, who: str, need: int, have: int, knob: str) -> None:
        self.who, self.need, self.have, self.knob = who, need, have, knob
        super().__init__(
            f"{who} needs {format_bytes(need)} ({need} bytes); {format_bytes(have)} ({have} bytes) of the "
            f"server's budget are left. {knob}"
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


class Budget:
    """`cap_bytes` that shares are drawn from, by any thread; their sum is never above it."""

    def __init__(self, cap_bytes: int) -> None:
        self.cap_bytes = cap_bytes
        self.drawn_bytes = self.peak_bytes = 0
        self.lock = threading.Lock()

    def draw(self, who: str, need: int) -> Share:
        """A share of `need` bytes. BudgetSpentError where there are not so many, and nothing is drawn."""
        with self.lock:
            have = self.cap_bytes - self.drawn_bytes
            if need > have:
                knob = "Lower memory=, end a session (DELETE), or start the server with a larger --memory."
                raise BudgetSpentError(who, need, have, knob)
            self.drawn_bytes += need
            self.peak_bytes = max(self.peak_bytes, self.drawn_bytes)
        return Share(self, need)
