"""Between a camera and a model that is slower: a few pictures wait, and the newest wins."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

from mosaic_edge.sources.connection import Picture

MOST_WAITING = 16
MOST_BYTES = 32 << 20
"""Pictures wait as they were decoded, outside the session's cap: this much at most, or one."""
MOST_LEAD_S = 10.0
_LEAK = 0.1
"""Of a lead, a second: clocks of camera and machine drift, and that is no lead."""


@dataclass(frozen=True)
class _Waiting:
    picture: Picture
    pts: float
    size: int
    due: float
    """When a stream that keeps its own time would have brought it."""


class NewestFirst:
    """Pictures, taken by one thread and put by another.

    A picture is dropped that waited longer than the time between two while a newer one waits: what is taken
    is at most one frame time old. A stream that comes faster than its own clock runs (a recording that is
    sent, segments of HLS) is early, not old: its pictures wait, until so many do that it cannot be real; from
    then on the newest wins whatever its clock says. `patient`: whoever sends can be made to wait (a pipe, a
    file), so nothing that is early is dropped.
    """

    def __init__(self, patient: bool = False, most: int = MOST_WAITING) -> None:
        self._interval, self._most = 0.0, most
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting] = deque()
        self._bytes = 0
        self._lead = 0.0
        self._last: tuple[float, float] | None = None
        self._hasty = self._ended = False
        self._error: Exception | None = None
        self.patient = patient
        self.dropped = 0
        self.newest: float | None = None
        """When the last picture came, by time.monotonic."""

    def __len__(self) -> int:
        return len(self._waiting)

    def begin(self, interval: float) -> None:
        """A connection begins, with `interval` seconds between two pictures."""
        self._interval = interval
        self._last, self._lead, self._hasty = None, 0.0, False

    def put(self, picture: Picture, pts: float, arrived: float) -> None:
        """A picture seen at `pts` seconds of the stream came at `arrived`."""
        with self._changed:
            if self._ended:
                return
            self._note_pace(pts, arrived)
            size = picture.nbytes
            while self._waiting and not self._ended and self._is_full(size):
                if self.patient and not self._is_old(self._waiting[0]):
                    self._changed.wait(self._interval)
                    continue
                self._hasty = self._hasty or not self.patient
                self._drop()
            due = arrived + (0.0 if self._hasty else max(0.0, self._lead))
            self._waiting.append(_Waiting(picture, pts, size, due))
            self._bytes += size
            self.newest = arrived
            self._changed.notify_all()

    def take(self) -> tuple[Picture, float] | None:
        """The next picture to be looked at and its time; None at the end, or the error it ended with."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended)
            if not self._waiting:
                if self._error is not None:
                    raise self._error
                return None
            while len(self._waiting) > 1 and self._is_old(self._waiting[0]):
                self._drop()
            first = self._waiting.popleft()
            self._bytes -= first.size
            self._changed.notify_all()
            return first.picture, first.pts

    def end(self, error: Exception | None = None, at_once: bool = False) -> None:
        """Nothing comes any more; what waits is taken first, unless `at_once`."""
        with self._changed:
            self._ended, self._error = True, error
            if at_once:
                self._waiting.clear()
            self._changed.notify_all()

    def _is_full(self, size: int) -> bool:
        return len(self._waiting) >= self._most or self._bytes + size > MOST_BYTES

    def _is_old(self, waiting: _Waiting) -> bool:
        return time.monotonic() - waiting.due > self._interval

    def _drop(self) -> None:
        self._bytes -= self._waiting.popleft().size
        self.dropped += 1

    def _note_pace(self, pts: float, arrived: float) -> None:
        """How far the stream is ahead of its own clock; one that was stalled is behind it first."""
        if self._last is not None:
            passed = arrived - self._last[1]
            self._lead += pts - self._last[0] - passed
            self._lead *= max(0.0, 1.0 - _LEAK * passed)
            self._lead = min(max(self._lead, -MOST_LEAD_S), MOST_LEAD_S)
        self._last = pts, arrived
