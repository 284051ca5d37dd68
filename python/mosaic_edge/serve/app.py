"""The application: routes, who may use them, and how errors are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import h11
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mosaic_edge.serve import api, frames_socket, openai, page
from mosaic_edge.serve.auth import Auth
from mosaic_edge.serve.errors import RefusedError, refusal
from mosaic_edge.serve.metrics import CONTENT_TYPE, Metrics
from mosaic_edge.serve.requests import Bodies, until_gone
from mosaic_edge.serve.sessions import Sessions

_SWEEP_SECONDS = 5.0


def make_app(sessions: Sessions, metrics: Metrics, token: str) -> FastAPI:
    """An ASGI application that serves `sessions` to whoever has the token."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.ensure_future(_sweep(sessions))
        yield
        sweeping.cancel()
        sessions.stop()

    app = FastAPI(title="mosaic-edge", openapi_url=None, lifespan=lifespan)
    app.state.bodies = Bodies()
    for router in (
        openai.routes(sessions),
        api.routes(sessions),
        frames_socket.routes(sessions),
        page.routes(),
    ):
        app.include_router(router)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    _tell_errors(app)
    app.add_middleware(_Told)
    app.add_middleware(Auth, token=token)
    app.add_middleware(_Heard)
    return app


def _tell_errors(app: FastAPI) -> None:
    """What FastAPI itself refuses has the shape that all else has."""

    async def tell_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {404: "no_such_path", 405: "no_such_method"}.get(error.status_code, "http")
        # Not request.url: Python keeps the last 128 URLs that it took apart.
        message = f"{request.method} {request.scope['path'][:200]}: {error.detail}"
        refused = RefusedError(error.status_code, message, code)
        return JSONResponse(refused.document(), refused.status, error.headers)

    async def tell_query(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        param = ".".join(map(str, first["loc"][1:]))
        refused = RefusedError(400, f"{param}: {first['msg']}", "invalid_value", param)
        return JSONResponse(refused.document(), refused.status)

    app.add_exception_handler(HTTPException, tell_http)
    app.add_exception_handler(RequestValidationError, tell_query)


class _Told:
    """ASGI middleware: whatever a route raises is told to the client, and raised no further."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass it on, and tell what went wrong."""
        begun = False

        async def note(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, note)
        except _UnheardError:
            raise
        except Exception as error:
            refused = refusal(error)
            if scope["type"] == "http" and not begun:
                headers = {"retry-after": "1"} if refused.status in (429, 503) else None
                await JSONResponse(refused.document(), refused.status, headers)(scope, receive, send)


class _Heard:
    """ASGI middleware: an answer that cannot be sent has nobody to hear it. A client whose body broke the
    protocol was answered by the server, which ends its connection while ours is still being made."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass it on, and leave it where it is not heard."""

        async def say(message: Message) -> None:
            try:
                await send(message)
            except h11.LocalProtocolError as error:
                raise _UnheardError(str(error)) from None

        try:
            await self._app(scope, receive, say)
        except _UnheardError:
            await until_gone(receive)


class _UnheardError(OSError):
    """Nobody hears what is sent."""


async def _sweep(sessions: Sessions) -> None:
    idle = sessions.settings.idle
    while idle is not None:
        await asyncio.sleep(min(idle / 4, _SWEEP_SECONDS))
        with suppress(LookupError):  # one was ended meanwhile
            sessions.end_idle()
