"""The memory account over time, as a CSV that starts anew before it fills the disk."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import psutil

from mosaic_edge.session import Session

COLUMNS = (
    "unix_seconds", "stream_seconds", "frames", "rss_bytes", "taken_bytes", "cap_bytes", "dram_used_bytes",
    "disk_used_bytes", "exact", "quantised", "spilled", "summarised", "dropped", "seen",
)  # fmt: skip
ACCOUNT_ROWS = 100_000
"""After so many rows FILE becomes FILE.1, in place of the one before (about 12 MB each)."""


class Account:
    """Rows of the memory account, with the wall clock to lay it beside other traces."""

    def __init__(self, session: Session, path: Path | None, every: float) -> None:
        self._path, self._every, self._session = path, every, session
        self._process = psutil.Process()
        self._due = 0.0
        self._rows = 0
        self._last: tuple[float, int] | None = None

    def __enter__(self) -> Account:
        if self._path is not None:
            self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        if self._path is not None:
            if self._last is not None:
                self._write(*self._last)
            self._file.close()

    def tick(self, pts: float, frames: int) -> None:
        """Frame number `frames`, seen at `pts` seconds, went in."""
        if self._path is None:
            return
        self._last = pts, frames
        now = time.monotonic()
        if now >= self._due:
            self._due = now + self._every
            self._write(pts, frames)
            self._last = None

    def _begin(self) -> None:
        assert self._path is not None
        if self._path.exists():
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        self._file = self._path.open("w", newline="")
        self._writer = csv.writer(self._file)
        self._writer.writerow(COLUMNS)
        self._rows = 0

    def _write(self, pts: float, frames: int) -> None:
        if self._rows == ACCOUNT_ROWS:
            self._file.close()
            self._begin()
        memory = self._session.memory()
        used = {True: 0, False: 0}
        for tier in memory["tiers"]:
            used[tier["place"] == "disk"] += tier["used_bytes"]
        row: dict[str, Any] = {
            "unix_seconds": f"{time.time():.3f}",
            "stream_seconds": f"{pts:.3f}",
            "frames": frames,
            "rss_bytes": self._process.memory_info().rss,
            "taken_bytes": memory["taken_bytes"],
            "cap_bytes": memory["cap_bytes"],
            "dram_used_bytes": used[False],
            "disk_used_bytes": used[True],
            **memory["tokens"],
        }
        self._writer.writerow([row[name] for name in COLUMNS])
        self._file.flush()
        self._rows += 1
