"""What systemd is told of a service (sd_notify): that it is up, that it lives, that it ends. Where its unit
has WatchdogSec=, one that stops saying that it lives is killed and started again."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable

from mosaic_edge.threads import started

SAYS = 3
"""How often in the time that systemd waits."""


class Watchdog:
    """`with Watchdog(stuck):` tells that it is up and, while stuck(seconds) gives None, that it lives.

    stuck is given the seconds that systemd waits; what it gives is why the service stands still. Without a
    systemd that asks nothing happens.
    """

    def __init__(self, stuck: Callable[[float], str | None]) -> None:
        self._stuck = stuck
        self._where = os.environ.get("NOTIFY_SOCKET", "")
        self._wait = _wait_seconds() if self._where else 0.0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watchdog:
        self._tell("READY=1")
        if self._wait > 0:
            thread = threading.Thread(target=self._watch, name="mosaic-watchdog", daemon=True)
            self._thread = started(thread, "telling systemd that the stream goes on")
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self._tell("STOPPING=1")

    def _watch(self) -> None:
        while not self._ended.wait(self._wait / SAYS):
            why = self._stuck(self._wait)
            self._tell("WATCHDOG=1" if why is None else f"STATUS=stands still: {why}")

    def _tell(self, line: str) -> None:
        if not self._where:
            return
        address = "\0" + self._where[1:] if self._where.startswith("@") else self._where
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to_systemd:
                to_systemd.connect(address)
                to_systemd.send(line.encode())
        except OSError:  # nobody listens: there is nobody to tell
            return


def _wait_seconds() -> float:
    """How long systemd waits for a sign of life; 0: it does not."""
    mine = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    said = os.environ.get("WATCHDOG_USEC", "")
    return int(said) / 1e6 if mine and said.isdecimal() else 0.0
