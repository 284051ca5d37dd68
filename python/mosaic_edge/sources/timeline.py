"""One timeline for the pictures of a stream, whatever its clock does: time of day, uptime, zero; clocks that
restart, wrap or jump, pictures without a time, one that is stamped hours off."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

# A time that is not later than the one before, or later by more than this, is looked at twice: the next one
# says whether the clock jumped, or one picture was stamped wrongly.
JUMP_S = 1.0
# A clock that leaps further did not run: FFmpeg's own limits, of formats that allow for breaks and of others.
LEAP_S, FAR_LEAP_S = 10.0, 30 * 3600.0
# A first picture this far from the second is the one that is wrong.
FIRST_OFF_S = 3600.0

_Item = TypeVar("_Item")


@dataclass
class _Stamped(Generic[_Item]):
    item: _Item
    raw: float | None
    """As the stream has it, s."""
    arrived: float | None
    """By a clock that never jumps (time.monotonic), s; None for what is not live."""


class Timeline(Generic[_Item]):
    """Times of pictures in the order they are shown: those of the stream where its clock runs, rising.

    A picture without a time follows the one before it: by as much as passed between their arrivals, else by
    `step`. A clock that restarts, or leaps, goes on from there the same way. One picture that is off alone
    gets a time between its neighbours. `breaks`: the format allows for breaks (MPEG-TS, HLS). `timeless`: the
    stream has no clock at all, so pictures get the time of day they arrived.
    """

    def __init__(self, step: float, breaks: bool = False, timeless: bool = False) -> None:
        self._step, self._timeless = step, timeless
        self._leap = LEAP_S if breaks else FAR_LEAP_S
        self._offset = 0.0
        self._first_time = 0.0
        self._last_arrived: float | None = None
        self._opening: list[_Stamped[_Item]] = []  # until it is known which of the first is right
        self._held: _Stamped[_Item] | None = None
        self._gap = step
        self._base, self._steps = 0.0, 0  # the last time but so many steps: sums of steps would drift
        self.last = 0.0
        self.furthest = float("-inf")
        """The latest time that any picture said of itself, in the stream's own clock."""
        self.count = 0

    def begin_at(self, pts: float, raw: float | None) -> None:
        """The next picture, which the stream has at `raw`, is at `pts`: what came before was skipped."""
        self._offset = 0.0 if raw is None else pts - raw
        self._first_time = pts

    def take(
        self, item: _Item, raw: float | None, arrived: float | None = None
    ) -> Iterator[tuple[_Item, float]]:
        """A picture, in order; what is known of the times by now comes back, this one perhaps later."""
        stamped = _Stamped(item, None if self._timeless else raw, arrived)
        if raw is not None:
            self.furthest = max(self.furthest, raw)
        if self._held is not None:
            held, self._held = self._held, None
            yield from self._resolve(held, stamped)
        elif not self.count and (stamped.raw is not None or self._opening):
            self._opening.append(stamped)
            if len(self._opening) == 3 or (len(self._opening) == 2 and self._agree(*self._opening)):
                yield from self._begin()
            return
        yield from self._align(stamped)

    def rest(self) -> Iterator[tuple[_Item, float]]:
        """The stream ended: what was held."""
        yield from self._begin()
        if self._held is not None:
            yield self._accept(self._held, self._jumped(self._held))
        self._held = None

    def _agree(self, first: _Stamped[_Item], second: _Stamped[_Item]) -> bool:
        """Whether two that follow each other have times that may."""
        if first.raw is None or second.raw is None:
            return True
        return 0 < second.raw - first.raw <= max(JUMP_S, 4 * self._step)

    def _begin(self) -> Iterator[tuple[_Item, float]]:
        """The first pictures: where two have nothing to do with each other, the third says which is right."""
        opening, self._opening = self._opening, []
        if not opening:
            return
        times = [self._own(stamped) for stamped in opening]
        first, second, third = [*times, None, None][:3]
        begin = self._first_time if first is None else first
        if first is not None and second is not None and third is not None:
            gap = second - first - self._passed(opening[0], opening[1])
            is_off = abs(third - second) < abs(third - first)
            if is_off and not 0 < gap <= max(min(self._leap, FIRST_OFF_S), 2 * self._step):
                begin = second - self._step
        yield self._accept(opening[0], begin)
        for stamped in opening[1:]:
            yield from self.take(stamped.item, stamped.raw, stamped.arrived)

    def _align(self, stamped: _Stamped[_Item]) -> Iterator[tuple[_Item, float]]:
        pts = self._own(stamped)
        if pts is None:
            yield self._accept(stamped, self._expected(stamped))
        elif self.count and not 0 < pts - self.last <= max(JUMP_S, 4 * self._gap):
            self._held = stamped
        else:
            yield self._accept(stamped, pts)

    def _resolve(self, held: _Stamped[_Item], after: _Stamped[_Item]) -> Iterator[tuple[_Item, float]]:
        """A picture out of line, and the next, which says whether the clock jumped."""
        pts, following = self._own(held), self._own(after)
        assert pts is not None
        alone = following is not None and (following < pts if pts > self.last else following > self.last)
        if not alone:
            yield self._accept(held, self._jumped(held))
        elif abs(pts - self.last) > JUMP_S:
            assert following is not None
            between = (following - self.last) / 2 if following > self.last else self._step
            yield self._accept(held, self.last + min(self._step, between))
        # else it is a little late: a picture of its time was given

    def _jumped(self, stamped: _Stamped[_Item]) -> float:
        """The time of a picture that begins a new stretch of the clock."""
        pts, expected = self._own(stamped), self._expected(stamped)
        if pts is None:
            return expected
        if self.count and not self.last < pts <= expected + self._leap:
            self._offset += expected - pts
            return expected
        return pts

    def _accept(self, stamped: _Stamped[_Item], pts: float) -> tuple[_Item, float]:
        if self.count:
            self._gap = pts - self.last
        if pts == self._stepped():
            self._steps += 1
        else:
            self._base, self._steps = pts, 0
        self.last, self._last_arrived = pts, stamped.arrived
        self.count += 1
        return stamped.item, pts

    def _own(self, stamped: _Stamped[_Item]) -> float | None:
        return None if stamped.raw is None else stamped.raw + self._offset

    def _expected(self, stamped: _Stamped[_Item]) -> float:
        """When a picture was seen, by the one before it."""
        if not self.count:
            return time.time() if self._timeless and stamped.arrived is not None else self._first_time
        if stamped.arrived is None or self._last_arrived is None:
            return self._stepped()
        least = 1e-4 if self._timeless else self._step
        return self.last + max(least, stamped.arrived - self._last_arrived)

    def _stepped(self) -> float:
        return self._base + (self._steps + 1) * self._step

    def _passed(self, before: _Stamped[_Item], after: _Stamped[_Item]) -> float:
        return 0.0 if before.arrived is None or after.arrived is None else after.arrived - before.arrived


class Ticks:
    """Which pictures are taken, at most `fps` a second of the timeline: ticks lie 1/fps apart from the first
    picture on, and each takes the first picture at or after it. None: every picture."""

    # Matroska rounds times to the millisecond: a picture this close before a tick is the one of that tick.
    TOLERANCE_S = 1e-3
    MOST = 1e6
    """More a second is every picture of any stream."""

    def __init__(self, fps: float | None) -> None:
        self._fps = None if fps is None else min(fps, self.MOST)
        self._anchor: float | None = None
        self._tick = 0

    def change(self, fps: float | None) -> None:
        """Another rate, from the next picture on, which is taken."""
        if fps is not None:
            fps = min(fps, self.MOST)
        if fps != self._fps:
            self._fps, self._anchor, self._tick = fps, None, 0

    def take(self, pts: float) -> bool:
        """Whether the picture seen at `pts` is taken."""
        if self._fps is None:
            return True
        if self._anchor is None:
            self._anchor = pts
        due = int((pts - self._anchor + self.TOLERANCE_S) * self._fps)
        if due < self._tick:
            return False
        self._tick = due + 1
        return True
