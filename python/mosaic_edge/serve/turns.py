"""A lock whose holders take turns in the order they came: a video that is read at full speed never keeps a
question waiting for more than the frame in hand."""

from __future__ import annotations

import threading
import time
from collections import deque


class Turns:
    """`with turns:` is one thread at a time, first come, first served."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._held = False
        self._moved = 0.0

    def __enter__(self) -> None:
        with self._lock:
            if not self._held:
                self.move()
                self._held = True
                return
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append(mine)
        mine.acquire()  # until who is before us hands the turn over

    def move(self) -> None:
        """Who has the turn got further."""
        self._moved = time.monotonic()

    @property
    def still(self) -> float:
        """Seconds for which who has the turn got no further; 0 where nobody has it."""
        return time.monotonic() - self._moved if self._held else 0.0

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._waiting:
                self.move()
                self._waiting.popleft().release()
            else:
                self._held = False
