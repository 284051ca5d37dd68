"""The sessions of a server: opened within one budget, found by name, ended when they are idle."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mosaic_edge.config import parse_bytes
from mosaic_edge.engine import Engine
from mosaic_edge.question import seconds
from mosaic_edge.serve.budget import Budget, Shares
from mosaic_edge.serve.media import Media
from mosaic_edge.serve.served import Counts, ServedSession
from mosaic_edge.serve.state import StateFolder
from mosaic_edge.serve.thumbnails import Thumbnails
from mosaic_edge.serve.worker import BusyError
from mosaic_edge.session import Session
from mosaic_edge.snapshot import Snapshot
from mosaic_edge.snapshot_file import opened
from mosaic_edge.threads import started

MOST_SESSIONS = 256
DEFAULT_SHARE = 8
"""A session that names no memory gets the budget's so-manieth part."""
FROM_CLIENTS = (
    "policy", "policy_settings", "exact", "window_codec", "packed", "window_frames", "branch_tokens",
    "retrieve_tokens", "clusters", "scenes", "max_cluster_tokens", "exact_share", "index_share", "positions",
    "skip_alike", "summaries", "refresh_every", "overflow", "disk",
)  # fmt: skip
"""Fields of SessionConfig that clients may set: none names a file, a folder, a device or threads."""


class UnknownSessionError(LookupError):
    """There is no such session, or no more."""


@dataclass(frozen=True)
class ServeSettings:
    """What the server is told when it is started."""

    memory: int | str
    """The budget: all sessions together, their thumbnails included."""
    session: dict[str, Any] = field(default_factory=dict)
    """Fields of SessionConfig, but for memory and disk: what a session has that its client does not set."""
    session_memory: int | str | None = None
    """Of a session whose client names none, thumbnails included; None: an eighth of the budget."""
    disk: int | str | None = None
    """The budget of spill files: all sessions together; None: no session has one."""
    session_disk: int | str | None = None
    """Quota of a session whose client names none; None: an eighth of the budget."""
    thumbnails: int | str = "256KiB"
    """Of every session's memory, for its pictures; none where that is more than a quarter of it."""
    idle: float | None = None
    """Seconds without a frame or a question after which a session is ended; None: never."""
    media: Path | None = None
    """The folder of files that clients may name; None: none."""
    sources: dict[str, str] = field(default_factory=dict)
    """Cameras and streams that sessions may watch, by the name that clients know."""
    hosts: tuple[str, ...] = ()
    """Hosts that pictures and videos may be fetched from."""
    most_frames: int = 4096
    """Of one video in a question."""
    state: StateFolder | None = None
    """Where sessions are saved, and restored from when the server is started; None: they end with it."""


class Sessions:
    """All there are. Opening, finding and ending is for any thread."""

    def __init__(
        self, engine: Engine, settings: ServeSettings, first_token: Callable[[float], None] = lambda _: None
    ) -> None:
        """ValueError or MemoryCapError where a session as the settings have it cannot be."""
        self.engine, self.settings = engine, settings
        self.budget = Budget(parse_bytes(settings.memory))
        self.disk = Budget(0 if settings.disk is None else parse_bytes(settings.disk, "disk"), "disk")
        self.media = Media(settings.media, settings.sources, settings.hosts)
        self.first_token = first_token
        self.ended = {"deleted": 0, "idle": 0, "request": 0}
        """How many sessions ended, by why."""
        self._lock = threading.Lock()
        self._open: dict[str, ServedSession] = {}
        self._ending: dict[str, ServedSession] = {}
        self._opening = 0
        self._gone = Counts()
        self._stopping = False
        self._stopped = threading.Event()
        default = settings.session_memory or self.budget.cap_bytes // DEFAULT_SHARE
        self._default_bytes = parse_bytes(default, "session_memory")
        disk = settings.session_disk or self.disk.cap_bytes // DEFAULT_SHARE
        self._default_disk = parse_bytes(disk, "session_disk") if disk else None
        self._quota = parse_bytes(settings.thumbnails, "thumbnails")
        if settings.idle is not None and not seconds(settings.idle, "idle") > 0:
            raise ValueError(f"idle={settings.idle:g}: expected more than zero seconds")
        self._plan(self._default_bytes, {})
        if settings.state is not None:
            self._begin_saving(settings.state)

    def open(self, memory: int | str | None, settings: dict[str, Any], *, keep: bool = True) -> ServedSession:
        """A session of so many bytes in all; keep: it is saved where others are. BudgetSpentError where the
        budget has them not, BusyError where there are too many; what SessionConfig and the plan say of the
        settings."""
        whole = self._default_bytes if memory is None else parse_bytes(memory)
        for name in settings:
            if name not in FROM_CLIENTS:
                raise ValueError(
                    f"{name}: a session is opened with memory, source, fps, {', '.join(FROM_CLIENTS)}"
                )
        fields, plan, quota = self._plan(whole, settings)
        name = secrets.token_hex(6)
        with self._lock:
            if self._stopping or len(self._open) + self._opening >= MOST_SESSIONS:
                raise BusyError(f"the server has {len(self._open)} sessions and opens no more")
            self._opening += 1
        try:
            shares = self._draw(plan, quota, fields["disk"])
            try:
                session = self.engine.session(**fields)
                # A request's own session ends with it: nobody would know it again.
                state = self.settings.state if keep else None
                return self._enter(name, session, shares, plan, quota, state)
            except BaseException:
                shares.give_back()
                raise
        finally:
            with self._lock:
                self._opening -= 1

    def _begin_saving(self, state: StateFolder) -> None:
        """What is saved is there again, and saved every so often. NoThreadError, NoMemoryError, MemoryError
        or OSError where the system is short of something for it: then none is there, and all files are."""
        started(
            threading.Thread(target=self._save_always, args=[state], name="mosaic-save", daemon=True),
            "saving sessions every so often",
        )
        try:
            for name in state.names():
                state.restore(name, lambda file, name=name: self._restore(name, file))  # type: ignore[misc]
        except BaseException:
            self._stopping = True
            self._stopped.set()
            wait([served.abandon() for served in self.all()])
            raise

    def _enter(
        self,
        name: str,
        session: Session,
        shares: Shares,
        plan: dict[str, Any],
        quota: int,
        state: StateFolder | None,
    ) -> ServedSession:
        thumbnails = Thumbnails(quota)
        try:
            served = ServedSession(name, session, shares, plan["lanes"], thumbnails, self.first_token, state)
        except BaseException:
            session.close()
            raise
        with self._lock:
            self._open[name] = served
        return served

    def _restore(self, name: str, file: Path) -> None:
        """A session of an earlier run, within the budget. What of the settings is the server's own is as it
        is told now."""
        own = {n: v for n, v in self.settings.session.items() if n not in FROM_CLIENTS}
        with opened(file) as descriptor:
            saved = Snapshot(descriptor)
            config = saved.config(None, own)
            plan = self.engine.plan(config)
            memory = parse_bytes(config.memory)
            quota = self._quota if self._quota <= (memory + self._quota) // 4 else 0
            shares = self._draw(plan, quota, config.disk)
            try:
                session = Session(self.engine.model, config, saved)
                self._enter(name, session, shares, plan, quota, self.settings.state)
            except BaseException:
                shares.give_back()
                raise

    def _save_always(self, state: StateFolder) -> None:
        """Every so often, one session after the other: the disk is one."""
        while not self._stopped.wait(state.every):
            for served in self.all():
                if (saving := served.save()) is not None:
                    wait([saving])

    def get(self, name: str) -> ServedSession:
        """The session of that name. UnknownSessionError where there is none."""
        try:
            return self._open[name]
        except KeyError:
            raise UnknownSessionError(f"session {name[:40]!r}: there is none, or it was ended") from None

    def all(self) -> list[ServedSession]:
        """Those that are open, the oldest first."""
        with self._lock:
            return list(self._open.values())

    def counts(self) -> Counts:
        """Of all sessions there ever were."""
        with self._lock:
            there = [*self._open.values(), *self._ending.values()]
            return sum((served.counts for served in there), self._gone)

    async def close(self, name: str, why: str = "deleted") -> None:
        """End a session and wait for it. UnknownSessionError where there is none."""
        await asyncio.wrap_future(self._end(name, why))

    def end_idle(self) -> list[Future[None]]:
        """End those in which nothing was done for `idle` seconds."""
        idle = self.settings.idle
        if idle is None:
            return []
        due = time.monotonic() - idle
        names = [served.name for served in self.all() if served.is_idle and served.touched < due]
        return [self._end(name, "idle") for name in names]

    def stuck(self, seconds: float) -> str | None:
        """Which session got no further for that long, if there is one."""
        for served in self.all():
            if served.still > seconds:
                return f"a step in session {served.name} takes over {served.still:.0f} s"
        return None

    def stop(self) -> None:
        """Open no more and end all, without waiting; what is kept is saved."""
        self._stopping = True
        self._stopped.set()
        for served in self.all():
            served.end(keep=True)

    def wait(self, seconds: float) -> bool:
        """After stop(): whether all ended within so many seconds."""
        return not wait([served.end(keep=True) for served in self.all()], seconds).not_done

    def _end(self, name: str, why: str) -> Future[None]:
        self.get(name)
        with self._lock:
            served = self._open.pop(name, None)
            if served is None:
                raise UnknownSessionError(f"session {name[:40]!r}: it was ended meanwhile")
            self._ending[name] = served
            self.ended[why] += 1
        future = served.end()
        future.add_done_callback(lambda _: self._note_end(name))
        return future

    def _note_end(self, name: str) -> None:
        """Nothing happens in it any more."""
        with self._lock:
            self._gone += self._ending.pop(name).counts

    def _plan(self, whole: int, settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], int]:
        """Fields of SessionConfig, what they would take, and the bytes of thumbnails beside that."""
        quota = self._quota if self._quota <= whole // 4 else 0
        fields = {"disk": self._default_disk, **self.settings.session, **settings, "memory": whole - quota}
        return fields, self.engine.plan(**fields), quota

    def _draw(self, plan: dict[str, Any], quota: int, disk: int | str | None) -> Shares:
        """What the plan takes, to the byte, with thumbnails; of disk the quota, where it has a spill file."""
        spills = any(tier["medium"] == "disk" for tier in plan["tiers"])
        memory = self.budget.draw("session", int(plan["total_bytes"]) + quota)
        try:
            need = parse_bytes(disk, "disk") if spills and disk is not None else 0
            return Shares(memory, self.disk.draw("session", need))
        except BaseException:
            memory.give_back()
            raise
