"""Sessions over HTTP: opened, fed, asked, looked at, ended."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.responses import JSONResponse, Response

from mosaic_edge.errors import MemoryCapError
from mosaic_edge.pictures import as_rgb
from mosaic_edge.question import seconds
from mosaic_edge.reply import Reply, reply_document
from mosaic_edge.sampling import SamplingParams
from mosaic_edge.serve.errors import RefusedError
from mosaic_edge.serve.picture_size import check_picture, check_pixels
from mosaic_edge.serve.requests import FRAME_BYTES, body_of, json_of
from mosaic_edge.serve.responses import EventStream, whole
from mosaic_edge.serve.served import Image, ServedSession
from mosaic_edge.serve.sessions import Sessions, UnknownSessionError

MOST_STOPS, MOST_STOP_LETTERS = 4, 256
"""As many as OpenAI takes: each is looked for in what was said, token by token."""


class Opening(BaseModel):
    """The body of POST /v1/sessions; fields of SessionConfig beside these."""

    model_config = ConfigDict(extra="allow")

    memory: int | str | None = None
    source: str | None = None
    fps: float | None = None


class Drawn(BaseModel):
    """How an answer is drawn; what is not said is as the model's makers have it."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None

    @field_validator("stop")
    @classmethod
    def _as_texts(cls, said: str | list[str] | None) -> list[str] | None:
        stops = [said] if isinstance(said, str) else said
        if stops and (len(stops) > MOST_STOPS or max(map(len, stops)) > MOST_STOP_LETTERS):
            raise ValueError(f"expected at most {MOST_STOPS} texts of at most {MOST_STOP_LETTERS} letters")
        return stops

    def sampling(self, sessions: Sessions) -> SamplingParams:
        """As Session.ask takes it. ValueError for what it cannot be."""
        said = {name: getattr(self, name) for name in Drawn.model_fields}
        given = {name: value for name, value in said.items() if value is not None}
        return SamplingParams.from_model(sessions.engine.spec, **given)


class Asked(Drawn):
    """The body of POST /v1/sessions/{id}/questions."""

    model_config = ConfigDict(extra="forbid")

    question: str
    since: float | None = None
    dialogue: bool = False
    stream: bool = False


class Described(BaseModel):
    """What is said of a frame that comes next."""

    model_config = ConfigDict(extra="forbid")

    pts: float | None = None
    width: int | None = Field(default=None, gt=0, le=1 << 16)
    height: int | None = Field(default=None, gt=0, le=1 << 16)


def routes(sessions: Sessions) -> APIRouter:
    """The routes of `sessions`."""
    router = APIRouter(prefix="/v1")

    @router.post("/sessions")
    async def open_session(request: Request) -> JSONResponse:
        served = await opened(sessions, await json_of(request, Opening))
        return JSONResponse(served.stats(), 201)

    @router.get("/sessions")
    async def list_sessions() -> dict[str, Any]:
        budget = sessions.budget
        return {
            "object": "list",
            "data": [served.stats() for served in sessions.all()],
            "budget_bytes": budget.cap_bytes,
            "drawn_bytes": budget.drawn_bytes,
            "disk_budget_bytes": sessions.disk.cap_bytes,
            "drawn_disk_bytes": sessions.disk.drawn_bytes,
        }

    @router.get("/sources")
    async def list_sources() -> dict[str, Any]:
        """What a session's source may be."""
        data = [{"id": name, "object": "source"} for name in sessions.media.sources]
        return {"object": "list", "data": data, "files": sessions.media.has_files}

    @router.get("/sessions/{name}")
    async def one_session(name: str) -> dict[str, Any]:
        return sessions.get(name).stats()

    @router.get("/sessions/{name}/history")
    async def history(name: str) -> dict[str, Any]:
        """Bytes by tier since it was opened."""
        served = sessions.get(name)
        seconds_open, data = served.history.seconds, served.history.samples()
        return {"object": "list", "data": data, "seconds": seconds_open, "tiers": served.account["tiers"]}

    @router.delete("/sessions/{name}")
    async def delete_session(name: str) -> dict[str, Any]:
        await sessions.close(name)
        return {"id": name, "object": "session.deleted", "deleted": True}

    @router.put("/sessions/{name}/frames")
    async def put_frame(name: str, request: Request) -> dict[str, Any]:
        served = sessions.get(name)
        described = Described.model_validate(dict(request.query_params))
        async with body_of(request, FRAME_BYTES) as data:
            return await take(served, data, described)

    @router.post("/sessions/{name}/questions")
    async def ask(name: str, request: Request) -> Response:
        served = sessions.get(name)
        asked = await json_of(request, Asked)
        since = None if asked.since is None else seconds(asked.since, "since")
        answer = served.ask(
            asked.question, since=since, dialogue=asked.dialogue, sampling=asked.sampling(sessions)
        )

        def events(event: str | Reply) -> Iterable[dict[str, Any]]:
            return [{"text": event} if isinstance(event, str) else reply_document(asked.question, event)]

        if asked.stream:
            return await EventStream.open(answer, request, events)
        return JSONResponse(reply_document(asked.question, await whole(answer, request)))

    @router.get("/sessions/{name}/picture")
    async def picture(name: str, at: float | None = None) -> Response:
        """The newest frame, or a small one of the frame nearest to `at` seconds."""
        thumbnails = sessions.get(name).thumbnails
        found = thumbnails.newest() if at is None or not math.isfinite(at) else thumbnails.nearest(at)
        if found is None:
            raise RefusedError(404, f"session {name}: there is no picture", "no_picture")
        headers = {"x-frame-pts": repr(found[0]), "cache-control": "no-store"}
        return Response(found[1], media_type="image/jpeg", headers=headers)

    return router


async def opened(sessions: Sessions, opening: Opening) -> ServedSession:
    """A session as a body says; its source is being streamed."""
    fps = opening.fps or sessions.engine.spec.fps
    source = None
    if opening.source is not None:
        source = await asyncio.to_thread(sessions.media.source, opening.source, fps)
    try:
        served = await asyncio.to_thread(sessions.open, opening.memory, opening.model_extra or {})
    except BaseException:
        if source is not None:
            source.close()
        raise
    if source is not None and opening.source is not None:
        try:
            served.feed(opening.source, source)
        except BaseException:
            source.close()
            with suppress(UnknownSessionError):
                await sessions.close(served.name, "request")
            raise
    return served


async def take(served: ServedSession, data: bytes, described: Described) -> dict[str, Any]:
    """Take in the bytes of a frame. RefusedError 507 where the session's policy keeps all and is full."""
    try:
        return await served.take(lambda: decoded(data, described), described.pts)
    except MemoryCapError as error:
        raise RefusedError(507, str(error), "memory_cap") from None


def decoded(data: bytes, described: Described) -> Image:
    """RGB of an encoded picture, or of raw pixels where their size is said. ValueError for neither."""
    width, height = described.width, described.height
    if width is None and height is None:
        check_picture(data)
        return as_rgb(data)
    if width is None or height is None:
        raise ValueError("frame: raw pixels need width and height")
    check_pixels(width, height, "frame")
    if len(data) != width * height * 3:
        raise ValueError(
            f"frame: {len(data)} bytes; {width} x {height} pixels of RGB are {width * height * 3}"
        )
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)
