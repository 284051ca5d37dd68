"""Frames over a WebSocket: a binary message is a frame, each is answered; what comes while the model is busy
with another is dropped, but for the newest."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect

from mosaic_edge.serve.api import Described, take
from mosaic_edge.serve.auth import WEBSOCKET
from mosaic_edge.serve.errors import refusal
from mosaic_edge.serve.served import ServedSession
from mosaic_edge.serve.sessions import Sessions, UnknownSessionError


def routes(sessions: Sessions) -> APIRouter:
    """The WebSocket of every session."""
    router = APIRouter(prefix="/v1")

    @router.websocket("/sessions/{name}/frames")
    async def frames(socket: WebSocket, name: str) -> None:
        offered = socket.scope.get("subprotocols", [])
        await socket.accept(WEBSOCKET if WEBSOCKET in offered else None)
        try:
            served = sessions.get(name)
        except UnknownSessionError as error:
            with suppress(RuntimeError, WebSocketDisconnect):  # it is gone already
                await socket.send_json(refusal(error).document())
                await socket.close(1008)
            return
        await _Frames(socket, served).run()

    return router


class _Frames:
    """One connection: a task reads, another has its frames taken in."""

    def __init__(self, socket: WebSocket, served: ServedSession) -> None:
        self._socket, self._served = socket, served
        self._waiting: tuple[bytes, Described] | None = None
        self._came = asyncio.Event()

    async def run(self) -> None:
        """Until the client leaves or the session ends."""
        tasks = [asyncio.ensure_future(self._until_over(work)) for work in (self._read, self._take)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            with suppress(RuntimeError, WebSocketDisconnect):  # it was closed from the other side
                await self._socket.close()

    async def _until_over(self, work: Callable[[], Awaitable[None]]) -> None:
        with suppress(WebSocketDisconnect, RuntimeError, OSError):
            await work()

    async def _read(self) -> None:
        """A text message says of the next frame what a PUT says in its query."""
        described = Described()
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            if message.get("bytes") is None:
                try:
                    described = Described.model_validate_json(message.get("text") or "")
                except ValueError as error:
                    await self._say_refused(error)
                continue
            if self._waiting is not None:
                self._served.count(dropped=1)
            self._waiting, described = (message["bytes"], described), Described()
            self._came.set()

    async def _take(self) -> None:
        while True:
            await self._came.wait()
            self._came.clear()
            if self._waiting is None:
                continue
            (data, described), self._waiting = self._waiting, None
            try:
                said: dict[str, Any] = await take(self._served, data, described)
            except Exception as error:
                if not await self._say_refused(error):
                    return
                continue
            await self._socket.send_json({**said, "dropped": self._served.counts.dropped})

    async def _say_refused(self, error: Exception) -> bool:
        """Whether the connection goes on."""
        refused = refusal(error)
        await self._socket.send_json(refused.document())
        return refused.status < 500 or refused.status == 507
