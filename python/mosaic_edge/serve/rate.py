"""How many frames a second a board can take: fewer before it throttles, and before frames get old.

A model that is slower than its camera is shown the newest frame, late; a board that is too hot makes it
slower still. So the rate is halved while there is little left: of the time between two frames, or of the
degrees below the point at which the board throttles. A clock that was lowered (nvpmodel, heat) counts before
the next frame shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

READ_S = 2.0
"""Between two looks at the board."""
HOT_C, COOL_C = 5.0, 10.0
"""So little below throttling it is hot; so much, cool again."""
BUSY, FREE = 0.8, 0.6
"""Of the time between two frames: more is too much; less, at twice the rate, leaves room for it."""
HOLD_S = 20.0
"""Between two changes: heat is slow. What makes frames old is not waited with."""
LEAST = 1 / 8
_THROTTLES = ("passive", "hot", "critical")


@dataclass(frozen=True)
class Board:
    """How a board does."""

    headroom_c: float | None = None
    """Below the first point at which a thermal zone throttles; None where none says."""
    zone: str = ""
    clock_share: float = 1.0
    """What the CPUs' clocks may be, of what they can be: less in a small mode of nvpmodel, or when hot."""


def read_board(root: Path = Path("/sys")) -> Board:
    """What sysfs says. A sensor that cannot be read (the GPU's, while it sleeps) is left out."""
    zones = [zone for zone in (root / "class/thermal").glob("thermal_zone*") if _headroom(zone) is not None]
    nearest = min(zones, key=lambda zone: _headroom(zone) or 0.0, default=None)
    shares = []
    for cpu in (root / "devices/system/cpu").glob("cpu[0-9]*/cpufreq"):
        may, can = _number(cpu / "scaling_max_freq"), _number(cpu / "cpuinfo_max_freq")
        if may and can:
            shares.append(min(1.0, may / can))
    share = sum(shares) / len(shares) if shares else 1.0
    if nearest is None:
        return Board(clock_share=share)
    return Board(_headroom(nearest), _text(nearest / "type") or nearest.name, share)


class RateGovernor:
    """The rate of a live source, at most `fps`: step() is told of every frame and gives it from then on.

    say: called with one line at every change.
    """

    def __init__(
        self,
        fps: float,
        read: Callable[[], Board] = read_board,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.fps = self._full = fps
        self._read, self._say = read, say
        self._board = read()
        self._step = 0.0
        """Seconds a frame takes, at the full clock."""
        self._read_at = self._changed_at = float("-inf")

    def step(self, seconds: float, now: float) -> float:
        """A frame took `seconds`, at `now` (time.monotonic)."""
        if now - self._read_at >= READ_S:
            self._board, self._read_at = self._read(), now
        share = self._board.clock_share
        taken = seconds * share
        self._step = taken if not self._step else 0.7 * self._step + 0.3 * taken
        busy = self._step / share * self.fps
        room, held = self._board.headroom_c, now - self._changed_at < HOLD_S
        hot = room is not None and room < HOT_C
        if self.fps > LEAST * self._full and (busy > BUSY or (hot and not held)):
            degrees = f"{self._board.zone} is {room:.0f} degrees below throttling" if hot else ""
            time = f"a frame takes {self._step / share:.2g} s"
            self._change(max(LEAST * self._full, self.fps / 2), degrees or time, now)
        elif self.fps < self._full and not held and 2 * busy < FREE and (room is None or room > COOL_C):
            self._change(min(self._full, 2 * self.fps), "there is room again", now)
        return self.fps

    def _change(self, fps: float, why: str, now: float) -> None:
        if self._say is not None:
            self._say(f"{self.fps:g} -> {fps:g} frames a second: {why}")
        self.fps, self._changed_at = fps, now


def _headroom(zone: Path) -> float | None:
    """Degrees below its first point of throttling."""
    now = _number(zone / "temp")
    trips = [
        limit
        for kind in zone.glob("trip_point_*_type")
        if _text(kind) in _THROTTLES and (limit := _number(kind.with_name(kind.name[:-4] + "temp"))) > 0
    ]
    return (min(trips) - now) / 1000.0 if trips and now > 0 else None


def _number(path: Path) -> float:
    """What stands in a file; 0 where nothing does."""
    with suppress(ValueError):
        return float(_text(path))
    return 0.0


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text().strip()
    return ""
