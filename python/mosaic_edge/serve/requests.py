"""Bodies of requests: read up to a size and for so long, and as JSON of one model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeVar

from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from mosaic_edge.serve.errors import RefusedError

JSON_BYTES = 256 << 10
FRAME_BYTES = 32 << 20
CHAT_BYTES = 96 << 20
"""Of a question with its pictures and videos in it: a third of base64 is air."""
ALL_BYTES = 512 << 20
"""Of all bodies together."""
BODY_SECONDS = 30.0
INLINE_BYTES = 16 << 10
"""JSON up to here is parsed where it is: a thread would take longer."""

_Model = TypeVar("_Model", bound=BaseModel)


class Bodies:
    """What bodies that are being read or worked on take together: so much, and no more."""

    def __init__(self, most: int = ALL_BYTES) -> None:
        self.most = most
        self.held = 0

    @asynccontextmanager
    async def read(self, request: Request, most: int) -> AsyncIterator[bytes]:
        """The body, of at most so many bytes, which is held while the block runs. RefusedError for one that
        is longer, does not come, or comes while too much is held."""
        said = request.headers.get("content-length", "0")
        if said.isdecimal() and int(said[:20]) > most:
            raise _too_long(most)
        body = bytearray()
        try:
            try:
                await asyncio.wait_for(self._fill(body, request, most), BODY_SECONDS)
            except asyncio.TimeoutError:
                raise RefusedError(408, f"body: it took longer than {BODY_SECONDS:g} s", "timeout") from None
            except ClientDisconnect:
                raise RefusedError(400, "body: the client left", "client_left") from None
            yield bytes(body)
        finally:
            self.held -= len(body)

    async def _fill(self, body: bytearray, request: Request, most: int) -> None:
        async for piece in request.stream():
            if len(body) + len(piece) > most:
                raise _too_long(most)
            if self.held + len(piece) > self.most:
                raise RefusedError(429, f"body: {self.held} bytes of others are being worked on", "busy")
            self.held += len(piece)
            body += piece


def body_of(request: Request, most: int) -> AbstractAsyncContextManager[bytes]:
    """The body of a request of our application; see Bodies.read."""
    bodies: Bodies = request.app.state.bodies
    return bodies.read(request, most)


async def json_of(request: Request, model: type[_Model], most: int = JSON_BYTES) -> _Model:
    """The body as `model`. pydantic's ValidationError names what is wrong."""
    async with body_of(request, most) as body:
        if len(body) <= INLINE_BYTES:
            return model.model_validate_json(body)
        return await asyncio.to_thread(model.model_validate_json, body)


async def until_gone(receive: Receive) -> None:
    """Return when the client is gone; the body was read before."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _too_long(most: int) -> RefusedError:
    return RefusedError(413, f"body: expected at most {most} bytes", "body_too_long")
