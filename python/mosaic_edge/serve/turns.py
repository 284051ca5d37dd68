"""A lock whose holders take turns in the order they came: a video that is read at full speed never keeps a
question waiting for more than the frame in hand."""

from __future__ import annotations

import threading
from collections import deque


class Turns:
    """`with turns:` is one thread at a time, first come, first served."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._held = False

    def __enter__(self) -> None:
        with self._lock:
            if not self._held:
                self._held = True
                return
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append(mine)
        mine.acquire()  # until who is before us hands the turn over

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._held = False
