"""Progress on a terminal, silence in a pipe: everything goes to stderr, results go to stdout."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING

from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from mosaic_edge.cli.output import DataConsole, clock, visible
from mosaic_edge.config import format_bytes

if TYPE_CHECKING:
    from mosaic_edge.session import Session
    from mosaic_edge.sources import LiveStats


class StreamView:
    """A line that follows a stream: time, frames a second, bytes against the cap."""

    def __init__(
        self,
        session: Session,
        label: str,
        enabled: bool = True,
        health: Callable[[], LiveStats] | None = None,
    ) -> None:
        console = DataConsole(stderr=True)
        self._session = session
        self._label, self._health = label, health
        self._live = Live(console=console, refresh_per_second=8, transient=True)
        self._shown = enabled and console.is_terminal
        self._began = time.perf_counter()
        self._drawn = 0.0
        self.frames = 0

    def __enter__(self) -> StreamView:
        self._began = time.perf_counter()
        self._shown = self._shown and _started(self._live)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.perf_counter() - self._began
        if self._shown:
            _stop(self._live)

    def tick(self, pts: float, frames: int) -> None:
        """Frame number `frames`, seen at `pts` seconds, went in."""
        self.frames = frames
        now = time.perf_counter()
        if not self._shown or now - self._drawn < 0.12:
            return
        self._drawn = now
        stats = self._session.memory()
        tokens = stats["tokens"]
        row = Table.grid(padding=(0, 2))
        live = () if self._health is None else (_health(self._health()),)
        row.add_row(
            Text(visible(self._label), style="bold"),
            f"{clock(pts)} of stream",
            f"{frames / max(now - self._began, 1e-9):.0f} frames/s",
            f"{format_bytes(stats['taken_bytes'])} of {format_bytes(stats['cap_bytes'])}",
            f"{tokens['seen']:,} tokens: {tokens['collapsed']:,} collapsed, {tokens['dropped']:,} dropped",
            *live,
        )
        self._live.update(row)


def _health(live: LiveStats) -> str:
    """How the camera does."""
    age = "" if live.age_seconds is None else f"newest frame {live.age_seconds:.1f} s old, "
    return f"{age}{live.dropped:,} frames dropped, {live.reconnects} reconnects"


def _started(view: Live | Progress) -> bool:
    """Is it drawn? Not where there is no thread for it: a view is not worth the command."""
    try:
        view.start()
    except RuntimeError:
        _stop(view)
        return False
    return True


def _stop(view: Live | Progress) -> None:
    with suppress(OSError):  # the terminal is gone
        view.stop()


@contextmanager
def progress_bar(enabled: bool = True) -> Iterator[Progress]:
    """A rich progress bar on stderr, drawn on terminals only."""
    console = DataConsole(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (enabled and console.is_terminal),
    )
    bar.disable = bar.disable or not _started(bar)
    try:
        yield bar
    finally:
        _stop(bar)
