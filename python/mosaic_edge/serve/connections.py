"""Connections that wait for their clients make room: who opens many and says nothing, or a byte now and then,
or asks for pages and never reads them, needs no token for it, and would else keep out everybody."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

MOST_CONNECTIONS = 512


class Connection(AutoHTTPProtocol):  # type: ignore[misc,valid-type]
    """One of HTTP. Where there are MOST_CONNECTIONS, a new one ends that which is idle the longest; and as
    many more as came when none was."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Of uvicorn."""
        self.idle_since = time.monotonic()
        super().connection_made(transport)
        if (excess := len(self.connections) - MOST_CONNECTIONS + 1) > 0:
            idle = [one for one in self.connections if one is not self and _is_idle(one)]
            for one in sorted(idle, key=lambda one: one.idle_since)[:excess]:
                one.abort()

    def abort(self) -> None:
        """End it, whatever it has not sent yet: it counts no more."""
        self.connections.discard(self)
        self.transport.abort()

    @property
    def limit_concurrency(self) -> int:
        """Of uvicorn, which answers 503 where there are as many connections, or answers that have not ended:
        one of a connection that was aborted ends a little later, and keeps nobody out."""
        return MOST_CONNECTIONS + max(0, len(self.tasks) - len(self.connections))

    @limit_concurrency.setter
    def limit_concurrency(self, limit: int | None) -> None: ...

    def pause_writing(self) -> None:
        """Of uvicorn: the client does not read."""
        self.idle_since = time.monotonic()
        super().pause_writing()

    def on_response_complete(self) -> None:
        """Of uvicorn."""
        self.idle_since = time.monotonic()
        super().on_response_complete()


def _is_idle(connection: Any) -> bool:
    """Whether it waits for its client: the head of its request has not come, its answer is through - be it
    not sent yet, from a connection that is closing -, or nobody reads what was sent."""
    if not isinstance(connection, Connection):
        return False
    cycle = connection.cycle
    return cycle is None or bool(cycle.response_complete or connection.flow.write_paused)
