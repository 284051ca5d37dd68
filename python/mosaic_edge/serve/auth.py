"""Who may ask: whoever has the token, in a header, compared in constant time."""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from mosaic_edge.serve.errors import RefusedError
from mosaic_edge.serve.page import PATHS

OPEN = ("/healthz", *PATHS)
"""What is there for everybody: no data is in it."""
WEBSOCKET = "mosaic-edge"
_BEARER = "bearer."
LEAST, MOST = 16, 4096


def new_token() -> str:
    """One that nobody guesses."""
    return secrets.token_urlsafe(24)


def read_token(path: Path) -> str:
    """The token in a file: its one line. ValueError where there is none, or others may read it."""
    try:
        mode = path.stat().st_mode
        with path.open("rb") as file:
            token = file.read(MOST + 1).decode().strip()
    except (OSError, UnicodeError) as error:
        raise ValueError(f"token_file={str(path)!r}: {getattr(error, 'strerror', None) or error}") from None
    if mode & stat.S_IROTH and os.name == "posix":
        raise ValueError(f"token_file={str(path)!r}: everybody may read it; chmod 600")
    if not LEAST <= len(token) < MOST or not token.isascii() or any(c <= " " for c in token):
        raise ValueError(
            f"token_file={str(path)!r}: expected a line of {LEAST} to {MOST - 1} characters, no spaces"
        )
    return token


class Auth:
    """ASGI middleware: requests and WebSockets without the token go no further. A WebSocket of a browser,
    which can set no header, offers the protocols "mosaic-edge" and "bearer.TOKEN"."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let it through, or refuse it."""
        if scope["type"] == "lifespan" or self._may(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            message = "expected the header 'Authorization: Bearer TOKEN' with the token of the server"
            refused = RefusedError(401, message, "invalid_api_key").document()
            headers = {"www-authenticate": "Bearer"}
            await JSONResponse(refused, 401, headers)(scope, receive, send)

    def _may(self, scope: Scope) -> bool:
        if scope["type"] == "http" and scope["path"] in OPEN:
            return True
        headers = Headers(scope=scope)
        kind, _, said = headers.get("authorization", "").partition(" ")
        offered = [said.strip()] if kind.lower() == "bearer" else []
        if scope["type"] == "websocket":
            protocols = scope.get("subprotocols", [])
            offered += [p.removeprefix(_BEARER) for p in protocols if p.startswith(_BEARER)]
        return any(hmac.compare_digest(token.encode(), self._token) for token in offered)
