"""The page at "/": one HTML file, its style and its scripts, as they are; no data is in them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import APIRouter, Request
from starlette.responses import Response

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    **{f"/{name}": (name, "text/javascript; charset=utf-8") for name in ("page.js", "client.js", "drawn.js")},
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
PATHS = tuple(_FILES)
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def routes() -> APIRouter:
    """The page and its files."""
    router = APIRouter()
    for path, (name, kind) in _FILES.items():
        content = (files(__package__) / name).read_bytes()
        response = Response(content, media_type=kind, headers=_HEADERS)
        router.add_route(path, _giving(response), methods=["GET"])
    return router


def _giving(response: Response) -> Callable[[Request], Awaitable[Response]]:
    async def give(_: Request) -> Response:
        return response

    return give
