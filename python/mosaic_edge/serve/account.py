"""The memory account over time, as a CSV that starts anew before it fills the disk."""

from __future__ import annotations

import csv
import os
import tempfile
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import psutil

from mosaic_edge.output_file import regular
from mosaic_edge.session import Session

COLUMNS = (
    "unix_seconds", "stream_seconds", "frames", "rss_bytes", "taken_bytes", "cap_bytes", "dram_used_bytes",
    "disk_used_bytes", "exact", "quantised", "spilled", "collapsed", "dropped", "seen",
)  # fmt: skip
ACCOUNT_ROWS = 100_000
"""After so many rows FILE becomes FILE.1, in place of the one before (about 12 MB each)."""


class Account:
    """Rows of the memory account, with the wall clock to lay it beside other traces."""

    def __init__(self, session: Session, path: Path | None, every: float) -> None:
        self._path, self._every, self._session = path, every, session
        self._process = psutil.Process()
        self._due = 0.0
        self._rows = self._lost = 0
        self._why = ""
        self._last: tuple[float, int] | None = None

    def __enter__(self) -> Account:
        if self._path is not None:
            self._path = regular(self._path, "account")
            for path in (self._path, self._older()):
                _check_ours(path)
            self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        if self._path is None:
            return
        if self._last is not None:
            self._try_to_write(*self._last)
        with suppress(OSError):  # what is left in its buffer is the row that could not be written
            self._file.close()
        if self._lost:
            warnings.warn(
                f"account={str(self._path)!r}: {self._lost} rows were not written ({self._why})", stacklevel=1
            )

    def tick(self, pts: float, frames: int) -> None:
        """Frame number `frames`, seen at `pts` seconds, went in."""
        if self._path is None:
            return
        self._last = pts, frames
        now = time.monotonic()
        if now >= self._due:
            self._due = now + self._every
            self._try_to_write(pts, frames)
            self._last = None

    def _try_to_write(self, pts: float, frames: int) -> None:
        """A disk that is full, or a folder that is gone, costs rows, not the stream."""
        try:
            self._write(pts, frames)
        except OSError as error:
            self._lost += 1
            self._why = error.strerror or str(error)

    def _begin(self) -> None:
        """A file with its header, made aside and put in place, which the one before leaves."""
        assert self._path is not None
        try:
            file = self._made()
        except OSError as error:  # of a name that nobody gave, or of none
            raise OSError(error.errno, f"account=: {error.strerror}", os.fspath(self._path)) from None
        self._file, self._rows = file, 0
        self._writer = csv.writer(file)

    def _made(self) -> TextIO:
        assert self._path is not None
        descriptor, aside = tempfile.mkstemp(".part", f".{self._path.name[:50]}.", self._path.parent)
        file = os.fdopen(descriptor, "w", newline="")
        try:
            csv.writer(file).writerow(COLUMNS)
            file.flush()
            if self._path.exists():
                self._path.replace(self._older())
            Path(aside).replace(self._path)
        except BaseException:
            Path(aside).unlink(missing_ok=True)
            with suppress(OSError):  # what is left in its buffer is what did not fit
                file.close()
            raise
        return file

    def _older(self) -> Path:
        assert self._path is not None
        return self._path.with_name(f"{self._path.name}.1")

    def _write(self, pts: float, frames: int) -> None:
        if self._rows >= ACCOUNT_ROWS:
            before = self._file
            self._begin()
            before.close()
        memory = self._session.memory()
        used = {True: 0, False: 0}
        for tier in memory["tiers"]:
            used[tier["medium"] == "disk"] += tier["used_bytes"]
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


def _check_ours(path: Path) -> None:
    """Nothing but an account is moved or replaced. ValueError for any other file."""
    if not regular(path, "account").exists():
        return
    with path.open("rb") as file:
        start = file.read(len(_HEADER))
    if start and start != _HEADER:
        raise ValueError(f"account={str(path)!r}: is there already, and is no account of a stream")


_HEADER = ",".join(COLUMNS).encode()
