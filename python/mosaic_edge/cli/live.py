"""`mosaic-edge live`: a camera without end; questions come over a Unix socket, the account goes to a CSV."""

from __future__ import annotations

import csv
import json
import os
import signal
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from rich.console import Console

from mosaic_edge.cli.progress import StreamView, clock
from mosaic_edge.config import format_bytes
from mosaic_edge.engine import Engine, Session
from mosaic_edge.sources import SourceError, VideoSource

COLUMNS = (
    "unix_seconds", "stream_seconds", "frames", "rss_bytes", "taken_bytes", "cap_bytes", "dram_used_bytes",
    "disk_used_bytes", "exact", "quantised", "spilled", "summarised", "dropped", "seen",
)  # fmt: skip
ACCOUNT_ROWS = 100_000
"""After so many rows FILE becomes FILE.1, in place of the one before (about 12 MB each)."""
QUESTION_BYTES = 4096
IDLE_SECONDS = 10.0
"""Questioners take turns; one that says nothing for so long is hung up on."""


@dataclass(frozen=True)
class LiveSettings:
    """What `live` is given beside the session."""

    source: str
    fps: float | None = None
    model: str = "mosaic-tiny"
    socket: Path | None = None
    account: Path | None = None
    every: float = 10.0
    """Seconds between rows of the account."""


def run_live(settings: LiveSettings, session: dict[str, Any], quiet: bool = False) -> dict[str, Any]:
    """Stream until the source ends or the process is interrupted or terminated; both are a good end.

    A source that breaks off raises nothing here: "error" of the result says what was wrong, or is None.
    """
    if not settings.every > 0:
        raise ValueError(f"every={settings.every:g}: expected more than zero seconds")
    engine = Engine.load(settings.model)
    error: str | None = None
    with engine.session(**session) as opened, _Account(settings, opened) as account:
        view = StreamView(opened, "live", not quiet)
        with _answering(opened, settings.socket), view, _Stop() as stop:
            try:
                for frame in VideoSource(
                    settings.source, fps=engine.spec.fps if settings.fps is None else settings.fps
                ):
                    with stop.later():
                        opened.append(frame.image, frame.pts)
                        view.tick(frame.pts, frame.index + 1)
                        account.tick(frame.pts, frame.index + 1)
            except SourceError as broken:
                error = str(broken)
        memory = opened.memory()
    return {
        "source": settings.source,
        "frames": view.frames,
        "seconds": view.seconds,
        "memory": memory,
        "error": error,
    }


def show_live(result: dict[str, Any], console: Console) -> None:
    """Print one line about the stream that ended."""
    memory = result["memory"]
    held = f"{format_bytes(memory['peak_bytes'])} of a cap of {format_bytes(memory['cap_bytes'])}"
    console.print(f"{result['frames']} frames in {clock(result['seconds'])}, {held}", soft_wrap=True)


class _Stop:
    """SIGTERM and SIGINT end the body: at once while it waits for the camera, else after the frame."""

    def __init__(self) -> None:
        self._busy = self._wanted = False

    def __enter__(self) -> _Stop:
        self._before = {
            number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> bool:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        return kind is KeyboardInterrupt

    @contextmanager
    def later(self) -> Iterator[None]:
        self._busy = True
        yield
        self._busy = False
        if self._wanted:
            raise KeyboardInterrupt

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._wanted = True
        if not self._busy:
            raise KeyboardInterrupt


class _Account:
    """Rows of the memory account, with the wall clock to lay it beside other traces."""

    def __init__(self, settings: LiveSettings, session: Session) -> None:
        self._path, self._every, self._session = settings.account, settings.every, session
        self._process = psutil.Process()
        self._due = 0.0
        self._rows = 0
        self._last: tuple[float, int] | None = None

    def __enter__(self) -> _Account:
        if self._path is not None:
            self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        if self._path is not None:
            if self._last is not None:
                self._write(*self._last)
            self._file.close()

    def tick(self, pts: float, frames: int) -> None:
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
            "taken_bytes": memory["peak_bytes"],
            "cap_bytes": memory["cap_bytes"],
            "dram_used_bytes": used[False],
            "disk_used_bytes": used[True],
            **memory["tokens"],
        }
        self._writer.writerow([row[name] for name in COLUMNS])
        self._file.flush()
        self._rows += 1


@contextmanager
def _answering(session: Session, path: Path | None) -> Iterator[None]:
    """Answer on the Unix socket `path` while the body runs: a line in is a question, a line out JSON."""
    if path is None:
        yield
        return

    class Questions(socketserver.StreamRequestHandler):
        timeout = IDLE_SECONDS

        def handle(self) -> None:
            try:
                while line := self.rfile.readline(QUESTION_BYTES):
                    reply = _reply(session, line)
                    self.wfile.write(json.dumps(reply).encode() + b"\n")
            except OSError:  # gone, or silent for too long
                return

    path.unlink(missing_ok=True)  # of a process that was killed
    with socketserver.UnixStreamServer(os.fspath(path), Questions) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            path.unlink(missing_ok=True)


def _reply(session: Session, line: bytes) -> dict[str, Any]:
    try:
        if not line.endswith(b"\n"):
            raise ValueError(f"question: expected a line of at most {QUESTION_BYTES - 1} bytes")
        question = line.decode().strip()
        reply = session.ask(question)
    except Exception as error:  # the stream goes on, whatever a question was
        return {"error": " ".join(str(error).split()) or type(error).__name__}
    return {
        "question": question,
        "answer": reply.text,
        "evidence": [asdict(moment) for moment in reply.evidence],
        "first_token_ms": 1e3 * reply.first_token_seconds,
        "seconds": reply.seconds,
    }
