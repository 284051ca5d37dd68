"""Connections that ask for nothing make room: who opens many and says nothing, or a byte now and then, needs
no token for it, and would else keep out everybody."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

MOST_CONNECTIONS = 512


class Connection(AutoHTTPProtocol):  # type: ignore[misc,valid-type]
    """One of HTTP. Where there are MOST_CONNECTIONS, a new one ends that which is idle the longest."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Of uvicorn."""
        self.idle_since = time.monotonic()
        super().connection_made(transport)
        if len(self.connections) >= MOST_CONNECTIONS:
            idle = [one for one in self.connections if one is not self and _is_idle(one)]
            if idle:
                min(idle, key=lambda one: one.idle_since).transport.abort()

    def on_response_complete(self) -> None:
        """Of uvicorn."""
        self.idle_since = time.monotonic()
        super().on_response_complete()


def _is_idle(connection: Any) -> bool:
    """Whether it is not being answered: the head of its request has not come, or its answer is through."""
    if not isinstance(connection, Connection) or connection.transport.is_closing():
        return False
    cycle = connection.cycle
    return cycle is None or bool(cycle.response_complete)
