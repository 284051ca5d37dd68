"""The server's process: a socket that listens before it is told of, and an end within a second."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from mosaic_edge.ends import Told, ends
from mosaic_edge.errors import DeviceError
from mosaic_edge.serve.connections import Connection
from mosaic_edge.serve.requests import FRAME_BYTES
from mosaic_edge.serve.sessions import Sessions
from mosaic_edge.serve.watchdog import Watchdog
from mosaic_edge.threads import started

KEEP_SECONDS = 75
"""A connection between two requests: who asks once a minute need not connect anew."""
END_SECONDS = 0.9
"""From SIGTERM to the end, whatever clients and the model do; connections have the first part of it."""
CONNECTIONS_SECONDS: Any = 0.4  # uvicorn says int, and waits for a part of a second as well
SAVE_SECONDS = 30.0
"""From SIGTERM to the end where sessions are saved then; a second signal cuts it short."""

_log = logging.getLogger(__name__)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. ValueError naming what is wrong with the address."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=256)
    except (OSError, OverflowError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"host={host!r}, port={port}: cannot be listened at: {why}") from None


def run(app: FastAPI, sessions: Sessions, listener: socket.socket) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP: a good end. In the main thread. systemd is told that it is up
    and, while connections and models get further, that it lives."""
    config = uvicorn.Config(
        app,
        http=Connection,
        log_config=None,
        access_log=False,
        server_header=False,
        ws_max_size=FRAME_BYTES,
        ws_max_queue=2,
        timeout_keep_alive=KEEP_SECONDS,
        timeout_graceful_shutdown=CONNECTIONS_SECONDS,
    )
    most = END_SECONDS if sessions.settings.state is None else SAVE_SECONDS
    server = _Server(config, sessions, most)
    before = {number: signal.signal(number, server.handle_exit) for number in ends()}
    try:
        with Watchdog(server.stuck):
            with _log_of(server):
                server.run(sockets=[listener])
            sessions.stop()
            sessions.wait(most)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Server(uvicorn.Server):
    """Ends answers, sources and connections at once, and the process where a step of the model is long."""

    def __init__(self, config: uvicorn.Config, sessions: Sessions, end_seconds: float) -> None:
        super().__init__(config)
        self._sessions, self._end_seconds = sessions, end_seconds
        self._ticked = time.monotonic()
        self._told = Told()

    async def on_tick(self, counter: int) -> bool:
        """The event loop got here, ten times a second."""
        self._ticked = time.monotonic()
        return await super().on_tick(counter)

    def stuck(self, seconds: float) -> str | None:
        """What stands still for that long, if anything does; the end has a bound of its own."""
        if self.should_exit:
            return None
        waited = time.monotonic() - self._ticked
        return f"no request for {waited:.0f} s" if waited > seconds else self._sessions.stuck(seconds)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came. uvicorn raises those that it notes once more when it is through: it notes none."""
        if not self._told.count():
            return
        if self.should_exit:
            self._cut_off("told to end again: what was being saved is as it was before")
        self.should_exit = True
        try:
            started(threading.Thread(target=self._end, daemon=True), "an end in time")
        except DeviceError as error:
            self._cut_off(str(error))

    def _end(self) -> None:
        due = time.monotonic() + self._end_seconds
        self._sessions.stop()
        time.sleep(max(0.0, due - time.monotonic()))
        self._cut_off("a step of the model was cut off")

    @staticmethod
    def _cut_off(why: str) -> None:
        _log.warning(why)
        os._exit(0)  # what is on disk has no name, and a saved session is whole or the one before


@contextmanager
def _log_of(server: uvicorn.Server) -> Iterator[None]:
    """What uvicorn and the event loop complain of is a line of our log; when all ends, they complain of what
    is cut off."""

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if not server.should_exit:
                _log.warning("%s", " ".join(record.getMessage().split())[:500])

    logs, lines = [logging.getLogger(name) for name in ("uvicorn", "asyncio")], Lines(logging.WARNING)
    for log in logs:
        log.addHandler(lines)
        log.propagate = False
    try:
        yield
    finally:
        for log in logs:
            log.removeHandler(lines)
            log.propagate = True
