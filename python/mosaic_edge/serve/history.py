"""What a session took over time, for who looks at it later: so many samples, whatever passes."""

from __future__ import annotations

import time
from typing import Any

MOST = 512


class History:
    """Bytes of pages by tier, sampled at most every `step` seconds. When it is full every other sample goes,
    and the step doubles."""

    def __init__(self, step: float = 1.0) -> None:
        self._began = time.monotonic()
        self._step = step
        self._samples: list[tuple[float, tuple[int, ...]]] = []

    def note(self, account: dict[str, Any]) -> None:
        """The account as it is now; one thread at a time."""
        now = time.monotonic() - self._began
        if self._samples and now - self._samples[-1][0] < self._step:
            return
        if len(self._samples) >= MOST:
            self._samples = self._samples[::2]
            self._step *= 2
        self._samples = [*self._samples, (now, tuple(tier["used_bytes"] for tier in account["tiers"]))]

    def samples(self) -> list[dict[str, Any]]:
        """Seconds since the session was opened, and bytes by tier, in the account's order."""
        return [{"seconds": seconds, "used_bytes": list(used)} for seconds, used in self._samples]

    @property
    def seconds(self) -> float:
        """Since the session was opened."""
        return time.monotonic() - self._began
