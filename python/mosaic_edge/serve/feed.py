"""A source that feeds a session of the server, in a thread of its own, by the same stream_live that
`mosaic-edge live` is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mosaic_edge.serve.live import stream_live
from mosaic_edge.serve.turns import Turns
from mosaic_edge.session import Session
from mosaic_edge.sources import Frame, FrameSource, LiveSource
from mosaic_edge.threads import started


class Feed:
    """Frames of `source` into `session` until it ends or end() is called; saw(image, pts) after each."""

    def __init__(
        self,
        name: str,
        source: FrameSource,
        session: Session,
        turns: Turns,
        saw: Callable[[NDArray[np.uint8], float], None],
    ) -> None:
        self._name, self._source, self._session, self._saw = name, source, session, saw
        self._watched = _Watched(source, turns)
        self._error: str | None = None
        self._thread = threading.Thread(target=self._run, name="mosaic-feed", daemon=True)

    def start(self) -> None:
        """Begin, once whoever listens is ready."""
        started(self._thread, f"source {self._name!r}")

    def end(self) -> None:
        """No frame after the one in hand."""
        self._watched.close()

    @property
    def running(self) -> bool:
        """Whether frames may come."""
        return self._thread.is_alive()

    @property
    def dropped(self) -> int:
        """Frames that the model had no time for."""
        return self._source.stats().dropped if isinstance(self._source, LiveSource) else 0

    def stats(self) -> dict[str, Any]:
        """How the source does."""
        document: dict[str, Any] = {"name": self._name, "running": self.running, "error": self._error}
        if isinstance(self._source, LiveSource):
            live = self._source.stats()
            document |= {
                "connected": live.connected,
                "reconnects": live.reconnects,
                "age_seconds": live.age_seconds,
                "trouble": live.trouble,
            }
        return document

    def _run(self) -> None:
        try:
            ended = stream_live(self._session, self._watched, progress=self._progress)
            self._error = ended.error
        except Exception as error:  # of the session, which its owner hears of in the stats
            self._error = " ".join(str(error).split()) or type(error).__name__

    def _progress(self, pts: float, frames: int) -> None:
        assert self._watched.image is not None  # of the frame that has just gone in
        self._saw(self._watched.image, pts)


class _Watched:
    """A source whose frames are handed over in the session's turn, and remembered until the next."""

    def __init__(self, source: FrameSource, turns: Turns) -> None:
        self._source, self._turns = source, turns
        self._closed = False
        self.image: NDArray[np.uint8] | None = None

    def __iter__(self) -> Iterator[Frame]:
        frames = iter(self._source)
        try:
            for frame in frames:
                self.image = frame.image
                with self._turns:  # until the next is asked for: the frame is taken in meanwhile
                    if self._closed:
                        return
                    yield frame
        finally:
            if (close := getattr(frames, "close", None)) is not None:
                close()

    def close(self) -> None:
        self._closed = True
        self._source.close()
