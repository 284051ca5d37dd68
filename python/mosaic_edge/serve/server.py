"""The server's process: a socket that listens before it is told of, and an end within two seconds."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from mosaic_edge.serve.requests import FRAME_BYTES
from mosaic_edge.serve.sessions import Sessions

MOST_CONNECTIONS = 512
END_SECONDS = 1.7
"""From SIGTERM to the end, whatever clients and the model do; connections have the first second of it."""

SAVE_SECONDS = 30.0
"""The same where sessions are saved at the end."""

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
    """Serve until SIGTERM or SIGINT; both are a good end. In the main thread."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws_max_size=FRAME_BYTES,
        ws_max_queue=2,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=1,
    )
    before = {number: signal.signal(number, _ignore) for number in (signal.SIGTERM, signal.SIGINT)}
    try:  # uvicorn raises the signal once more when it is through: for our handler, which ignores it
        most = END_SECONDS if sessions.settings.state is None else SAVE_SECONDS
        server = _Server(config, sessions.stop, most)
        with _log_of(server):
            server.run(sockets=[listener])
        sessions.stop()
        sessions.wait(most)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Server(uvicorn.Server):
    """Ends answers, sources and connections at once, and the process where a step of the model is long."""

    def __init__(self, config: uvicorn.Config, stop: Callable[[], None], end_seconds: float) -> None:
        super().__init__(config)
        self._stop, self._end_seconds = stop, end_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came."""
        if not self.should_exit:
            threading.Thread(target=self._end, daemon=True).start()
        super().handle_exit(sig, frame)

    def _end(self) -> None:
        due = time.monotonic() + self._end_seconds
        self._stop()
        time.sleep(max(0.0, due - time.monotonic()))
        _log.warning("a step of the model was cut off")
        os._exit(0)  # what is on disk has no name, and a saved session is whole or the one before


@contextmanager
def _log_of(server: uvicorn.Server) -> Iterator[None]:
    """What uvicorn complains of is a line of our log; when all ends, it complains of what is cut off."""

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if not server.should_exit:
                _log.warning("%s", " ".join(record.getMessage().split())[:500])

    log, lines = logging.getLogger("uvicorn"), Lines(logging.WARNING)
    log.addHandler(lines)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(lines)
        log.propagate = True


def _ignore(number: int, frame: FrameType | None) -> None:
    pass
