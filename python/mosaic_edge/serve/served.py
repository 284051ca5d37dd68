"""One session of the server: its thread, its source, its shares of the budgets, and what is said of it.

All calls into the engine are made in the session's thread or in its source's, which take turns; what others
want to know of it they read from `account`, which is made anew after each, and never wait for the model.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mosaic_edge.errors import MemoryCapError
from mosaic_edge.serve.answers import Answer, StoppedError
from mosaic_edge.serve.budget import Shares
from mosaic_edge.serve.feed import Feed
from mosaic_edge.serve.history import History
from mosaic_edge.serve.state import StateFolder
from mosaic_edge.serve.thumbnails import Thumbnails
from mosaic_edge.serve.turns import Turns
from mosaic_edge.serve.worker import BusyError, Worker
from mosaic_edge.session import Session
from mosaic_edge.sources import FrameSource

Image = NDArray[np.uint8]
_LONGEST_SECONDS = 10 * 365 * 86400.0
"""That a session lasts, by the time of day: a board without a battery counts from 1970 until it is told."""


@dataclass
class Counts:
    """What happened to a session, or to several."""

    frames: int = 0
    """That went in, those that were left out as alike among them."""
    refused: int = 0
    dropped: int = 0
    """That came while the model was busy with others."""
    questions: int = 0
    """That were answered to their end."""

    def __add__(self, other: Counts) -> Counts:
        mine, theirs = asdict(self), asdict(other)
        return Counts(**{name: mine[name] + theirs[name] for name in mine})


class ServedSession:
    """A session that clients of the server share."""

    def __init__(
        self,
        name: str,
        session: Session,
        shares: Shares,
        lanes: int,
        thumbnails: Thumbnails,
        first_token: Callable[[float], None],
        state: StateFolder | None = None,
    ) -> None:
        """state: where it is saved; a session that was restored goes on as its note says."""
        self.name, self._session, self._shares = name, session, shares
        self._state = state
        self.thumbnails = thumbnails
        self._lanes = lanes
        self.created = time.time()
        self._clock = 0.0, time.monotonic()
        """Seconds of the stream, and when it was so late: the time of day of a board may be set to another
        year while it runs."""
        self.account: dict[str, Any] = session.memory()
        self.history = History()
        self.history.note(self.account)
        self.touched = time.monotonic()
        self._first_token = first_token
        self._counts = Counts()
        self._counting = threading.Lock()
        self._turns = Turns()
        self._ended = threading.Event()
        self._closing: Future[None] | None = None
        self._answers: weakref.WeakSet[Answer] = weakref.WeakSet()
        self._feed: Feed | None = None
        self._first_pts: float | None = None
        self._last_pts: float | None = None
        self._newest: float | None = None
        if session.note is not None:
            self._go_on(session.note)
        self._worker = Worker(f"session {name}")

    def feed(self, name: str, source: FrameSource) -> None:
        """Stream `source` into it from now on. DeviceError where there is no thread for it: it is still the
        caller's to close."""
        feed = Feed(name, source, self._session, self._turns, self._saw)
        feed.start()
        self._feed = feed

    @property
    def counts(self) -> Counts:
        """Its counts now."""
        with self._counting:
            return self._counts + Counts(dropped=self._feed.dropped if self._feed else 0)

    def count(self, **more: int) -> None:
        """Add to its counts."""
        with self._counting:
            self._counts += Counts(**more)

    @property
    def seen_tokens(self) -> int:
        """Positions of the model's sequence that went in."""
        return int(self.account["tokens"]["seen"]) // self._lanes

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being done in it."""
        return not self._worker.waiting and not (self._feed and self._feed.running)

    @property
    def still(self) -> float:
        """Seconds that a step of the model, or a saving, has taken so far."""
        return self._turns.still

    async def take(self, decode: Callable[[], Image], pts: float | None) -> dict[str, Any]:
        """Take in the frame that decode() gives, in its turn; what became of it. pts None: it is seen now."""
        self.touched = time.monotonic()
        return await asyncio.wrap_future(self._worker.submit(lambda: self._take(decode, pts)))

    async def take_all(self, frames: Callable[[], Any]) -> int:
        """Take in all that frames() gives, (image, pts) each; how many there were."""

        def taken() -> int:
            count = 0
            for image, pts in frames():
                if self._ended.is_set():
                    break
                self._take(lambda image=image: image, pts)  # type: ignore[misc]
                count += 1
            return count

        return await asyncio.wrap_future(self._worker.submit(taken))

    def ask(self, question: str, **asking: Any) -> Answer:
        """Begin to answer; keywords are Session.ask's."""
        arrived = self.touched = time.monotonic()
        answer = Answer(self._ended)
        with self._counting:
            self._answers.add(answer)

        def piece(number: int) -> None:
            self._turns.move()
            if number == 0:
                self._first_token(time.monotonic() - arrived)

        def make() -> None:
            with self._turns:
                answer.make(self._session, question, piece, lambda: self._note(questions=1), **asking)

        self._worker.submit(make)
        return answer

    def save(self) -> Future[bool] | None:
        """Into its file, in its turn; None where it has too much to do now, or no file."""
        if self._state is None:
            return None
        try:
            return self._worker.submit(self._save)
        except BusyError:
            return None

    async def close(self) -> None:
        """End its source, its answers and its thread, and give its shares back."""
        await asyncio.wrap_future(self.end())

    def end(self, *, keep: bool = False) -> Future[None]:
        """As close, without waiting; calling it twice is fine. keep: it is saved first, and restored when
        the server is started anew; else its file goes too."""
        self._ended.set()
        if self._feed is not None:
            self._feed.end()
        with self._counting:
            for answer in self._answers:  # whoever waits for one hears of it now, not after a long step
                answer.stop()
            if self._closing is None:
                self._closing = self._worker.end(lambda: self._close(keep))
            return self._closing

    def abandon(self) -> Future[None]:
        """As end; its file stays as it is."""
        self._state = None
        return self.end()

    def stats(self) -> dict[str, Any]:
        """What there is to know of it, as plain data."""
        account, newest = self.account, self._newest
        return {
            "id": self.name,
            "object": "session",
            "created": int(self.created),
            "policy": self._session.config.policy,
            "cap_bytes": account["cap_bytes"],
            "taken_bytes": account["taken_bytes"],
            "drawn_bytes": self._shares.memory.drawn_bytes,
            "drawn_disk_bytes": self._shares.disk.drawn_bytes,
            "tiers": account["tiers"],
            "parts": dict(account["parts"]),
            "tokens": account["tokens"],
            "duplicate_frames": account["duplicate_frames"],
            **asdict(self.counts),
            "waiting": self._worker.waiting,
            "first_seconds": self._first_pts,
            "last_seconds": self._last_pts,
            "newest_age_seconds": None if newest is None else time.monotonic() - newest,
            "source": None if self._feed is None else self._feed.stats(),
        }

    def _take(self, decode: Callable[[], Image], pts: float | None) -> dict[str, Any]:
        if self._ended.is_set():
            raise StoppedError(f"session {self.name} was ended before the frame was taken in")
        try:
            image = decode()
            with self._turns:
                now, given = time.monotonic(), pts is not None
                if pts is None:
                    pts = self._clock[0] + now - self._clock[1]
                    pts = pts if self._last_pts is None else max(pts, self._last_pts)
                self._session.append(image, pts)
                if given:
                    self._clock = pts, now
                self._saw(image, pts)
        except (ValueError, MemoryCapError):
            self.count(refused=1)
            raise
        return {"object": "frame", "pts": pts, "frames": self.counts.frames}

    def _saw(self, image: Image, pts: float) -> None:
        """A frame went in, in this turn."""
        self._first_pts = pts if self._first_pts is None else self._first_pts
        self._last_pts = pts
        self._newest = self.touched = time.monotonic()
        self.thumbnails.add(image, pts)
        self._note(frames=1)

    def _note(self, **more: int) -> None:
        self.count(**more)
        if not self._ended.is_set():  # else it may be closed
            self.account = self._session.memory()
            self.history.note(self.account)

    def _save(self) -> bool:
        assert self._state is not None
        with self._turns:
            note = {
                "created": self.created,
                "counts": asdict(self._counts),
                "first_pts": self._first_pts,
                "last_pts": self._last_pts,
            }
            return self._state.save(self.name, lambda file: self._session.save(file, note))

    def _go_on(self, note: dict[str, Any]) -> None:
        """As what _save wrote says. ValueError for anything else."""
        try:
            self.created = float(note["created"])
            self._counts = Counts(**{name: int(number) for name, number in note["counts"].items()})
            pts = [None if note[n] is None else float(note[n]) for n in ("first_pts", "last_pts")]
        except (AttributeError, KeyError, TypeError, OverflowError):
            raise ValueError("note: is none of a session of this server") from None
        self._first_pts, self._last_pts = pts
        passed = time.time() - self.created
        if not 0 <= passed <= _LONGEST_SECONDS:  # the time of day was not set yet, then or now
            passed = 0.0
        self._clock = passed if self._last_pts is None else max(passed, self._last_pts), time.monotonic()

    def _close(self, keep: bool) -> None:
        try:
            if self._state is not None:
                self._save() if keep else self._state.forget(self.name)
            self._session.close()
        finally:
            self._shares.give_back()
