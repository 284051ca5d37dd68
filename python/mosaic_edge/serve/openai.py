"""The part of OpenAI's API that clients of vision models use: chat completions and the list of models.

A request that names a `session` asks that one. Any other has its pictures and videos looked at by a session
of its own, which is closed when it is answered.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from mosaic_edge.pictures import as_rgb
from mosaic_edge.question import question_tokens, seconds
from mosaic_edge.reply import Reply
from mosaic_edge.serve.chat import Chat, Picture, Video
from mosaic_edge.serve.errors import RefusedError
from mosaic_edge.serve.requests import CHAT_BYTES, json_of
from mosaic_edge.serve.responses import EventStream, unless_gone, whole
from mosaic_edge.serve.served import Image, ServedSession
from mosaic_edge.serve.sessions import Sessions, UnknownSessionError
from mosaic_edge.sources.where import check_window


def routes(sessions: Sessions) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/v1")
    started = int(time.time())
    name = sessions.engine.spec.name

    @router.get("/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(name, started)]}

    @router.get("/models/{wanted:path}")
    async def model(wanted: str) -> dict[str, Any]:
        _check_model(wanted, name)
        return _model(name, started)

    @router.post("/chat/completions")
    async def chat(request: Request) -> Response:
        asked = await json_of(request, Chat, CHAT_BYTES)
        _check_model(asked.model, name)
        if asked.max_completion_tokens is not None:
            asked.max_tokens = asked.max_completion_tokens
        question, sampling, media = asked.question, asked.sampling(sessions), asked.media
        since = None if asked.since is None else seconds(asked.since, "since")
        if asked.session is not None and (media or asked.memory is not None):
            raise ValueError("session: it has its own frames and memory; send none with the question")
        served, close = await _served(sessions, asked)
        try:
            if media:
                frames = _frames(sessions, media, asked.fps)
                await unless_gone(served.take_all(frames), request.receive)
            answer = served.ask(question, since=since, sampling=sampling)
            reply = _Completion(name, asked, lambda: _prompt_tokens(sessions, served, question))
            if asked.stream:
                stream = await EventStream.open(answer, request, reply.events)
                stream.ended, close = close, _nothing
                return stream
            return JSONResponse(reply.document(await whole(answer, request)))
        finally:
            await close()

    return router


async def _nothing() -> None:
    pass


async def _served(sessions: Sessions, asked: Chat) -> tuple[ServedSession, Callable[[], Any]]:
    """The session that is asked, and what closes it if it is the request's own."""
    if asked.session is not None:
        return sessions.get(asked.session), _nothing
    served = await asyncio.to_thread(sessions.open, asked.memory, {}, keep=False)

    async def close() -> None:
        with suppress(UnknownSessionError):  # it was idle for too long, or somebody ended it
            await sessions.close(served.name, "request")

    return served, close


def _frames(
    sessions: Sessions, media: list[Picture | Video], fps: float | None
) -> Callable[[], Iterator[tuple[Image, float]]]:
    """Frames of all parts, one after the other on one timeline: a picture is a frame, and a video goes on a
    frame time after what came before. ValueError for a bad fps."""
    check_window(fps)
    step = 1.0 / (fps or sessions.engine.spec.fps)

    def frames() -> Iterator[tuple[Image, float]]:
        begins = last = 0.0
        for part in media:
            if isinstance(part, Picture):
                last = begins
                yield as_rgb(sessions.media.picture(part.image_url.url)), begins
            else:
                first: float | None = None
                url, most = part.video_url.url, sessions.settings.most_frames
                for image, pts in sessions.media.video(url, 1.0 / step, most):
                    first = pts if first is None else first
                    last = begins + pts - first
                    yield image, last
            begins = last + step

    return frames


class _Completion:
    """An answer in OpenAI's words, with its evidence beside them."""

    def __init__(self, model: str, asked: Chat, prompt_tokens: Callable[[], int]) -> None:
        self._asked, self._prompt_tokens = asked, prompt_tokens
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self._begun = False

    def document(self, reply: Reply) -> dict[str, Any]:
        """Whole."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": reply.text, "refusal": None, **_reasoning(reply)},
            "logprobs": None,
            "finish_reason": _finish(reply),
        }
        head = {**self._head, "object": "chat.completion"}
        return {**head, "choices": [choice], "usage": self._usage(reply), **_evidence(reply)}

    def events(self, event: str | Reply) -> Iterable[dict[str, Any]]:
        """Chunks."""
        role = {} if self._begun else {"role": "assistant"}
        self._begun = True
        if isinstance(event, str):
            return [self._chunk({**role, "content": event}, None)]
        last = {**role, **_reasoning(event)}
        chunks = [{**self._chunk(last, _finish(event)), **_evidence(event)}]
        if self._asked.stream_options and self._asked.stream_options.include_usage:
            chunks.append({**self._chunk({}, None), "choices": [], "usage": self._usage(event)})
        return chunks

    def _chunk(self, delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def _usage(self, reply: Reply) -> dict[str, int]:
        seen = self._prompt_tokens()
        return {
            "prompt_tokens": seen,
            "completion_tokens": reply.tokens,
            "total_tokens": seen + reply.tokens,
        }


def _prompt_tokens(sessions: Sessions, served: ServedSession, question: str) -> int:
    """Of all that was seen, and of the question."""
    return served.seen_tokens + len(question_tokens(sessions.engine.model, question))


def _evidence(reply: Reply) -> dict[str, Any]:
    return {
        "evidence": [asdict(stretch) for stretch in reply.evidence],
        "first_token_ms": 1e3 * reply.first_token_seconds,
    }


def _reasoning(reply: Reply) -> dict[str, str]:
    """What a model that thinks said before its answer, as DeepSeek and vLLM name it."""
    return {"reasoning_content": reply.thinking} if reply.thinking else {}


def _finish(reply: Reply) -> str:
    return "stop" if reply.finish == "end" else "length"


def _model(name: str, started: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": started, "owned_by": "mosaic_edge"}


def _check_model(wanted: str, name: str) -> None:
    if wanted != name:
        raise RefusedError(
            404, f"model {wanted[:80]!r}: this server has {name!r}", "model_not_found", "model"
        )
