"""What a session took over time, for who looks at it later: so many samples, whatever passes."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST = 512


class History:
    """Bytes of pages by tier, sampled at most every `step` seconds. When it is full every other sample goes,
    and the step doubles. All it will ever take is there when the first sample is: a server's memory does not
    rise by it for hours."""

    def __init__(self, step: float = 1.0) -> None:
        self._began = time.monotonic()
        self._step = step
        self._lock = threading.Lock()
        self._count = 0
        self._times: NDArray[np.float64] = np.zeros(MOST)
        self._used: NDArray[np.int64] = np.zeros((MOST, 0), np.int64)

    def note(self, account: dict[str, Any]) -> None:
        """The account as it is now; one thread at a time."""
        now = time.monotonic() - self._began
        with self._lock:
            if self._count and now - self._times[self._count - 1] < self._step:
                return
            if not self._count:
                self._used = np.zeros((MOST, len(account["tiers"])), np.int64)
            if self._count == MOST:
                self._count = MOST // 2
                self._times[: self._count] = self._times[::2].copy()
                self._used[: self._count] = self._used[::2].copy()
                self._step *= 2
            self._times[self._count] = now
            self._used[self._count] = [tier["used_bytes"] for tier in account["tiers"]]
            self._count += 1

    def samples(self) -> list[dict[str, Any]]:
        """Seconds since the session was opened, and bytes by tier, in the account's order."""
        with self._lock:
            times, used = self._times[: self._count].tolist(), self._used[: self._count].tolist()
        return [{"seconds": seconds, "used_bytes": row} for seconds, row in zip(times, used, strict=True)]

    @property
    def seconds(self) -> float:
        """Since the session was opened."""
        return time.monotonic() - self._began
