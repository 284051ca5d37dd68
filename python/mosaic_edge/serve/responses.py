"""Answers as HTTP has them: whole, or as server-sent events; a client that goes away ends its answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mosaic_edge.reply import Reply
from mosaic_edge.serve.answers import Answer
from mosaic_edge.serve.errors import RefusedError, refusal
from mosaic_edge.serve.requests import until_gone

Events = Callable[["str | Reply"], Iterable[dict[str, Any]]]
"""What is sent of a piece, and of the Reply at the end."""
PING_SECONDS = 15.0
_Result = TypeVar("_Result")


async def whole(answer: Answer, request: Request) -> Reply:
    """The Reply, unless the client leaves before that."""
    try:
        return await unless_gone(answer.whole(), request.receive)
    finally:
        answer.leave()


async def unless_gone(work: Coroutine[Any, Any, _Result], receive: Receive) -> _Result:
    """What `work` gives; it is cancelled when the client goes away. RefusedError then, which nobody hears."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(until_gone(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise RefusedError(400, "the client left", "client_left")
    finally:
        working.cancel()
        gone.cancel()


class EventStream(Response):
    """Server-sent events of an answer: each a JSON document, and [DONE] at the end. What goes wrong before
    the first piece is no event but an error of the request: open() it."""

    media_type = "text/event-stream"

    def __init__(self, answer: Answer, events: Events, first: str | Reply) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._answer, self._events, self._first = answer, events, first
        self.ended: Callable[[], Coroutine[Any, Any, None]] | None = None
        """Awaited when it is over, however it went."""

    @classmethod
    async def open(cls, answer: Answer, request: Request, events: Events) -> EventStream:
        """When the first piece is there."""
        try:
            first = await unless_gone(answer.next(), request.receive)
        except BaseException:
            answer.leave()
            raise
        return cls(answer, events, first)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        gone = asyncio.ensure_future(until_gone(receive))
        sending = asyncio.ensure_future(self._send(send))
        try:
            await asyncio.wait({gone, sending}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        except OSError:  # it left while something was sent
            pass
        finally:
            self._answer.leave()
            gone.cancel()
            sending.cancel()
            if self.ended is not None:
                await self.ended()

    async def _send(self, send: Send) -> None:
        event: str | Reply = self._first
        try:
            while True:
                for document in self._events(event):
                    await _send_data(send, json.dumps(document))
                if isinstance(event, Reply):
                    await _send_data(send, "[DONE]")
                    break
                event = await self._next(send)
        except OSError:
            raise
        except Exception as error:
            await _send_data(send, json.dumps(refusal(error).document()))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _next(self, send: Send) -> str | Reply:
        """What comes next; a comment now and then where that takes long, as while a model thinks: a proxy
        between us and the client ends what is silent for a minute."""
        coming = asyncio.ensure_future(self._answer.next())
        try:
            while not (await asyncio.wait({coming}, timeout=PING_SECONDS))[0]:
                await send({"type": "http.response.body", "body": b": still at it\n\n", "more_body": True})
            return coming.result()
        finally:
            coming.cancel()


async def _send_data(send: Send, text: str) -> None:
    await send({"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True})
