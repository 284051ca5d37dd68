"""A stream without end: frames go in until the source ends or the process is told to stop, questions come
over a Unix socket, the account goes to a CSV. `mosaic-edge live` is this; a robot gives its own frames:

    with engine.session(memory="1GiB") as session:
        stream_live(session, my_frames, socket="/run/robot/ask.sock", account="account.csv")
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from mosaic_edge.ends import Told, ends
from mosaic_edge.question import seconds
from mosaic_edge.serve.account import Account
from mosaic_edge.serve.questions import answering
from mosaic_edge.serve.rate import RateGovernor
from mosaic_edge.serve.state import SavedStream
from mosaic_edge.serve.watchdog import Watchdog
from mosaic_edge.session import Session
from mosaic_edge.sources import FrameSource, LiveSource, SourceError

FRAME_SECONDS = 0.4
"""What a frame in hand may still take when the stream is told to end."""


@dataclass(frozen=True)
class Streamed:
    """How a stream ended."""

    frames: int
    error: str | None
    """What broke off; None for a source that ended, or a process that was told to stop."""
    dropped: int = 0
    """Frames of a live source that came while the model was busy with others."""
    reconnects: int = 0


def stream_live(
    session: Session,
    source: FrameSource,
    *,
    socket: str | Path | None = None,
    account: str | Path | None = None,
    every: float = 10.0,
    progress: Callable[[float, int], None] | None = None,
    asking: Mapping[str, Any] | None = None,
    state: SavedStream | None = None,
    rate: RateGovernor | None = None,
) -> Streamed:
    """Stream `source` (any FrameSource) until it ends, or until SIGTERM, SIGINT or SIGHUP: a good end.

    socket: a Unix socket to answer at while frames go in. account: a CSV of the memory account, with a row
    every `every` seconds. progress(pts seconds, frames) is called after every frame. asking: keywords of
    Session.ask for what the socket is asked. state: where the session is saved every so often, and at the
    end. A session that was restored goes on a frame time after its last. rate: says how many frames a second
    a live source gives. The source is closed at the end. Signals are handled where Python can do that, in
    the main thread; there systemd's watchdog is told that the stream goes on, if it asks. An answer that is
    being made ends after its token, and a frame that takes longer than FRAME_SECONDS is taken back; what
    state= asks for is then saved, however long it takes, unless a second signal comes.
    A source that breaks off raises nothing here: `error` of the result says what was wrong.
    """
    if not seconds(every, "every") > 0:
        raise ValueError(f"every={every:g}: expected more than zero seconds")
    if None not in (socket, account) and Path(str(socket)).resolve() == Path(str(account)).resolve():
        raise ValueError(f"socket={str(socket)!r} and account= are one path")
    frames, error, shift = 0, None, 0.0
    with (
        closing(source),
        Account(session, None if account is None else Path(account), every) as book,
        _goes_on(session),
        answering(session, None if socket is None else Path(socket), asking),
        _Stop(session) as stop,
        _watched(stop, source) if stop.handles else nullcontext(),
    ):
        try:
            for frame in source:
                with stop.later():
                    if not frames:
                        shift = session.shift_of(frame.pts)
                    pts = frame.pts + shift
                    session.append(frame.image, pts)
                    frames += 1
                    book.tick(pts, frames)
                    if state is not None:
                        state.tick()
                    if progress is not None:
                        progress(pts, frames)
                if rate is not None and isinstance(source, LiveSource):
                    source.set_fps(rate.step(stop.took, time.monotonic()))
        except SourceError as broken:
            error = str(broken)
        finally:
            if state is not None:
                with stop.later(whole=True):
                    state.save()
    if isinstance(source, LiveSource):
        live = source.stats()
        return Streamed(frames, error, live.dropped, live.reconnects)
    return Streamed(frames, error)


def _watched(stop: _Stop, source: FrameSource) -> Watchdog:
    live = source if isinstance(source, LiveSource) else None
    return Watchdog(lambda seconds: stop.stuck(seconds) or (live.stuck(seconds) if live else None))


@contextmanager
def _goes_on(session: Session) -> Iterator[None]:
    """Whatever the body told it: the session is the caller's afterwards."""
    try:
        yield
    finally:
        session.ending = False


class _Stop:
    """What ends a service ends the body: at once while it waits for the camera, else after the frame, or when
    that takes too long; a second one at once, whatever is being done."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._busy = self._wanted = self._whole = False
        self._told = Told()
        self._began = 0.0
        self.handles = threading.current_thread() is threading.main_thread()
        self.took = 0.0
        """Seconds of the last frame."""

    def __enter__(self) -> _Stop:
        if self.handles:
            handlers = {**dict.fromkeys(ends(), self._ask), signal.SIGALRM: self._cut}
            self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> bool:
        if self.handles:
            if self._wanted:
                signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in self._before.items():
                signal.signal(number, handler)
        return kind is KeyboardInterrupt

    @contextmanager
    def later(self, whole: bool = False) -> Iterator[None]:
        """The body is not interrupted by a first signal. whole: however long it takes."""
        self._whole = whole
        self._began, self._busy = time.monotonic(), True
        try:
            yield
        finally:
            self._busy, self.took = False, time.monotonic() - self._began
        if self._wanted:
            raise KeyboardInterrupt

    def stuck(self, seconds: float) -> str | None:
        """Whether the frame in hand takes longer than that."""
        took = time.monotonic() - self._began
        return f"a frame takes over {took:.0f} s" if self._busy and took > seconds else None

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if not self._told.count():
            return
        again, self._wanted = self._wanted, True
        self._session.ending = True
        if again or not self._busy:
            raise KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, FRAME_SECONDS)

    def _cut(self, number: int, frame: FrameType | None) -> None:
        if self._busy and not self._whole:
            raise KeyboardInterrupt
