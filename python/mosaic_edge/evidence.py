"""Which moments an answer was read from: attention mass per time stamp, joined into ranges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Moment = tuple[float, float, float]
"""From, to (seconds of the stream), and the attention mass that fell there."""


@dataclass(frozen=True)
class TimeRange:
    """Seconds of the stream an answer read, and the share of its attention to the video that fell there."""

    start: float
    end: float
    score: float


def time_ranges(
    moments: Sequence[Moment], gap: float, limit: int = 5, diffuse: float = 30.0
) -> tuple[TimeRange, ...]:
    """Join moments (from, to, mass) at most `gap` seconds apart into ranges, best first, at most `limit`.

    A moment longer than `diffuse` seconds (a summary over a long time) points nowhere: it counts in the
    whole, but makes no range. Moments far below the best one are noise and do not bridge a gap.
    """
    total = sum(mass for _, _, mass in moments)
    points = sorted(m for m in moments if m[1] - m[0] <= diffuse)
    if total <= 0 or not points:
        return ()
    floor = 0.05 * max(mass for _, _, mass in points)
    ranges: list[list[float]] = []
    for start, end, mass in points:
        if mass < floor:
            continue
        if ranges and start - ranges[-1][1] <= gap:
            ranges[-1][1] = max(ranges[-1][1], end)
            ranges[-1][2] += mass
        else:
            ranges.append([start, end, mass])
    ranges.sort(key=lambda r: -r[2])
    return tuple(TimeRange(start, end, mass / total) for start, end, mass in ranges[:limit])
