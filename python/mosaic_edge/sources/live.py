"""Sources that are live: read by a thread of their own, opened again when they break off, ended at once.

The thread connects, decodes and lets the newest picture win (newest.py); whoever iterates waits for it in
Python, where a signal is obeyed whatever the camera does.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mosaic_edge.sources.connection import Connection, Picture
from mosaic_edge.sources.end_of_python import ending_with_python
from mosaic_edge.sources.frame_source import Frame, FrameSource, SourceError
from mosaic_edge.sources.newest import NewestFirst
from mosaic_edge.sources.readers import connect
from mosaic_edge.sources.registry import known_schemes, open_source, scheme_of
from mosaic_edge.sources.timeline import Ticks, Timeline
from mosaic_edge.sources.where import (
    CONNECT_S,
    READ_S,
    check_there,
    check_window,
    is_file_url,
    is_pipe,
    is_url,
    name_of,
)
from mosaic_edge.threads import started

GIVE_UP_S = 30.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 10.0
CLOSE_S = 0.3
"""What close() waits for the thread; one that waits for a camera ends by itself."""


@dataclass(frozen=True)
class LiveStats:
    """How a live source does."""

    dropped: int
    """Frames that the model had no time for."""
    waiting: int
    reconnects: int
    broken: int
    """Packets and pictures that did not decode."""
    connected: bool
    age_seconds: float | None
    """Since the newest frame came; None before the first."""
    trouble: str | None
    """Why it broke off the last time."""


class LiveSource:
    """Frames of a camera or a stream, the newest first: what a slow model has no time for is dropped.

    It is opened when frames are asked for. A connection that breaks off, or is silent for `read_s` seconds,
    is opened again after a pause that doubles up to 10 s; the timeline goes on by what passed meanwhile. A
    stream without times (MJPEG over HTTP, raw H.264) has the time of day its pictures arrived. Python ends
    while a daemon thread, or nobody, waits for it; a thread that is no daemon has to be told by close().

    Args:
        path: a URL, a device or a pipe.
        fps: frames per second to give at most; None gives every frame the model has time for.
        connect_s: seconds for a connection to be made.
        read_s: seconds for a stream to say something.
        give_up_s: after so many seconds of trying in vain it ends: quietly if the sender ended the stream and
            is not there any more, else with SourceError. math.inf: never.
        notify: called with one line when it breaks off and when it is back, from the source's thread.
    """

    FORMAT: str | None = None
    """FFmpeg's demuxer; None: it finds out by itself."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        fps: float | None = None,
        start: float = 0.0,
        end: float | None = None,
        *,
        connect_s: float = CONNECT_S,
        read_s: float = READ_S,
        give_up_s: float = GIVE_UP_S,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        check_window(fps, start, end)
        for name, value in (("connect_s", connect_s), ("read_s", read_s), ("give_up_s", give_up_s)):
            if not value > 0:
                raise ValueError(f"{name}: got {value}, expected seconds over 0")
        self.path = os.fspath(path)
        if start or end is not None:
            raise ValueError(f"start, end: {name_of(path)} is live and has neither; close() ends it")
        self._check()
        self.fps = fps
        self._name = name_of(path)
        self._timeout = connect_s, read_s
        self._give_up_s = give_up_s
        self._notify = notify
        self._closed = threading.Event()
        self._queue = self._new_queue()
        self._reconnects = self._dropped = self._broken = 0
        self._connected = False
        self._trouble: str | None = None
        self._timeline: Timeline[tuple[Picture, float]] | None = None
        self._current: Connection | None = None
        self._stirred: float | None = None  # when its thread was last in no call

    def __iter__(self) -> Iterator[Frame]:
        self._closed = (
            threading.Event()
        )  # one of its own: a thread that waits for a camera may outlive close()
        self._dropped += self._queue.dropped
        self._queue = self._new_queue()
        reader = threading.Thread(
            target=self._read, args=(self._queue, self._closed), name="mosaic-camera", daemon=True
        )
        started(reader, f"{self._name}: reading it")
        try:
            given = 0
            while (taken := self._queue.take()) is not None:
                try:
                    image = taken[0].image()
                except ValueError:
                    self._broken += 1
                    continue
                yield Frame(image, taken[1], given)
                given += 1
        finally:
            self.close()
            reader.join(CLOSE_S)

    def close(self) -> None:
        """End it, from any thread: the iteration ends with what it is at."""
        self._closed.set()
        self._queue.end(at_once=True)
        if (current := self._current) is not None:
            current.abort()

    def set_fps(self, fps: float) -> None:
        """Give so many frames a second from the next picture on, from any thread."""
        check_window(fps)
        self.fps = fps

    def stuck(self, seconds: float) -> str | None:
        """Why its thread stands still, where nothing ended a call by its timeout and `seconds`; else None."""
        quiet = 0.0 if self._stirred is None else time.monotonic() - self._stirred
        if quiet <= max(*self._timeout, LONGEST_PAUSE_S) + seconds:
            return None
        return f"{self._name} did not answer for {quiet:.0f} s, nor end by its timeout"

    def stats(self) -> LiveStats:
        """How it does, from any thread."""
        newest = self._queue.newest
        return LiveStats(
            dropped=self._dropped + self._queue.dropped,
            waiting=len(self._queue),
            reconnects=self._reconnects,
            broken=self._broken,
            connected=self._connected,
            age_seconds=None if newest is None else time.monotonic() - newest,
            trouble=self._trouble,
        )

    def _check(self) -> None:
        """SourceError for what cannot be there."""
        check_there(self.path)

    def _connect(self, connect_s: float, read_s: float) -> Connection:
        return connect(self.path, self.FORMAT, (connect_s, read_s))

    def _new_queue(self) -> NewestFirst:
        return NewestFirst(_is_local_pipe(self.path))

    def _read(self, queue: NewestFirst, closed: threading.Event) -> None:
        """The thread: connections, one after the other."""
        try:
            with ending_with_python(self.close):
                queue.end(self._connections(queue, closed))
        except Exception as error:
            queue.end(error)
        finally:
            self._connected, self._stirred = False, None

    def _connections(self, queue: NewestFirst, closed: threading.Event) -> SourceError | None:
        """Read until it is over; what to say of the end."""
        began, pause, ticks = time.monotonic(), FIRST_PAUSE_S, Ticks(self.fps)
        clean = False
        while not closed.is_set():
            before, self._stirred = queue.newest, time.monotonic()
            cause, over = self._connection(queue, closed, ticks)
            self._connected = False
            if closed.is_set():
                break
            if queue.newest != before:
                began, pause, clean = time.monotonic(), FIRST_PAUSE_S, cause is None
            self._trouble = cause or "the sender ended the stream"
            reached = self._timeline.last if self._timeline is not None and self._timeline.count else None
            if over:
                return None if cause is None else SourceError(self._name, reached, cause)
            tried = time.monotonic() - began
            if tried + pause > self._give_up_s:
                why = f"no frame in {tried:.0f} s of trying ({self._trouble})"
                return None if clean else SourceError(self._name, reached, why)
            self._stirred = time.monotonic()
            self._say(f"{self._trouble}; opened again in {pause:g} s")
            closed.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
        return None

    def _connection(
        self, queue: NewestFirst, closed: threading.Event, ticks: Ticks
    ) -> tuple[str | None, bool]:
        """One connection: why it broke off (None: the sender ended it), and whether it is over."""
        try:
            self._current = connection = self._connect(*self._timeout)
        except SourceError as error:
            return error.cause, _is_local_pipe(self.path)
        try:
            rate = connection.rate or 30.0
            if self._timeline is None:  # a connection that follows another goes on with its own
                self._timeline = Timeline(1.0 / rate, breaks=True, timeless=connection.timeless)
            queue.patient = connection.patient or _is_local_pipe(self.path)
            queue.begin(1.0 / min(self.fps or math.inf, rate))
            for picture, raw in connection.pictures():
                if closed.is_set():
                    break
                self._stirred = arrived = time.monotonic()
                self._note_frame()
                ticks.change(self.fps)
                for (shown, came), pts in self._timeline.take((picture, arrived), raw, arrived):
                    if ticks.take(pts):
                        queue.put(shown, pts, came)
            for (shown, came), pts in self._timeline.rest():
                if ticks.take(pts):
                    queue.put(shown, pts, came)
            return connection.broke_off, connection.over or _is_local_pipe(self.path)
        finally:
            self._broken += connection.broken
            self._current = None
            connection.close()

    def _note_frame(self) -> None:
        if not self._connected:
            self._connected = True
            if self._trouble is not None:
                self._reconnects += 1
                self._say(f"it is back ({self._reconnects} reconnects)")

    def _say(self, line: str) -> None:
        if self._notify is not None:
            self._notify(f"{self._name}: {line}")


def open_live(
    where: str,
    fps: float | None = None,
    *,
    give_up_s: float = GIVE_UP_S,
    notify: Callable[[str], None] | None = None,
) -> FrameSource:
    """As open_source, but what is no file on a disk is live: a pipe and a stream over TCP or HTTP, too."""
    name = scheme_of(where)
    opener = known_schemes().get(name)
    streams = (is_url(where) and not is_file_url(where)) or is_pipe(where)
    if opener is known_schemes().get("file") and streams:
        opener = LiveSource
    if isinstance(opener, type) and issubclass(opener, LiveSource):
        return opener(where, fps, give_up_s=give_up_s, notify=notify)
    return open_source(where, fps)


def _is_local_pipe(path: str) -> bool:
    """Whoever writes into it waits for who reads; when it ends, nothing comes behind."""
    return not is_url(path) and not path.startswith("/dev/video") and is_pipe(path)
