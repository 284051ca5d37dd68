"""Bodies of requests: read up to a size and for so long, and as JSON of one model."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from mosaic_edge.serve.errors import RefusedError

JSON_BYTES = 256 << 10
FRAME_BYTES = 32 << 20
CHAT_BYTES = 96 << 20
"""Of a question with its pictures and videos in it: a third of base64 is air."""
BODY_SECONDS = 30.0
INLINE_BYTES = 16 << 10
"""JSON up to here is parsed where it is: a thread would take longer."""

_Model = TypeVar("_Model", bound=BaseModel)


async def body_of(request: Request, most: int) -> bytes:
    """The body, of at most so many bytes. RefusedError for one that is longer, or does not come."""
    said = request.headers.get("content-length", "0")
    if said.isdecimal() and int(said[:20]) > most:
        raise _too_long(most)
    try:
        return await asyncio.wait_for(_read(request, most), BODY_SECONDS)
    except asyncio.TimeoutError:
        raise RefusedError(408, f"body: it took longer than {BODY_SECONDS:g} s", "timeout") from None
    except ClientDisconnect:
        raise RefusedError(400, "body: the client left", "client_left") from None


async def json_of(request: Request, model: type[_Model], most: int = JSON_BYTES) -> _Model:
    """The body as `model`. pydantic's ValidationError names what is wrong."""
    body = await body_of(request, most)
    if len(body) <= INLINE_BYTES:
        return model.model_validate_json(body)
    return await asyncio.to_thread(model.model_validate_json, body)


async def until_gone(receive: Receive) -> None:
    """Return when the client is gone; the body was read before."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _read(request: Request, most: int) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most:
            raise _too_long(most)
    return bytes(body)


def _too_long(most: int) -> RefusedError:
    return RefusedError(413, f"body: expected at most {most} bytes", "body_too_long")
