"""A session for asyncio: calls run in a thread of its own, in the order they were made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from mosaic_edge.reply import Reply
from mosaic_edge.session import Session
from mosaic_edge.threads import no_thread

_Result = TypeVar("_Result")


class AsyncSession:
    """`session` under asyncio, with its methods' own arguments:

        async with AsyncSession(engine.session(memory="1GiB")) as session:
            await session.append(frame, pts)
            reply = await session.ask("what happened ?")
            async for piece in session.stream("and then ?"): ...

    A call that is cancelled is made to its end, in its thread: a frame is taken in whole or not at all.
    Leaving the block closes the session.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._thread = ThreadPoolExecutor(1, "mosaic-session")
        try:  # now: a call that finds no thread would be made with the next one that does
            self._thread.submit(lambda: None)
        except RuntimeError as error:
            raise no_thread("AsyncSession", error) from None
        self._closing: Future[None] | None = None

    async def append(self, frame: Any, pts: float | None = None) -> None:
        """Session.append."""
        await self._call(self.session.append, frame, pts)

    async def append_video(self, path: Any, fps: float | None = None, **arguments: Any) -> int:
        """Session.append_video; other calls wait until it is through."""
        return await self._call(self.session.append_video, path, fps, **arguments)

    async def ask(self, question: str, **arguments: Any) -> Reply:
        """Session.ask, of a whole answer."""
        reply = await self._call(self.session.ask, question, **arguments)
        assert isinstance(reply, Reply)
        return reply

    async def stream(self, question: str, **arguments: Any) -> AsyncIterator[str]:
        """Session.ask(stream=True): the answer's pieces. One that is left early is closed with aclose(), or
        at the end of the loop; frames wait until then."""
        reply = await self._call(lambda: self.session.ask(question, stream=True, **arguments))
        pieces = iter(reply)
        try:
            while (piece := await self._call(next, pieces, None)) is not None:
                yield piece
        finally:
            if self._closing is None:
                await asyncio.shield(self._call(reply.close))

    async def save(self, path: str | Path, note: Any = None) -> None:
        """Session.save."""
        await self._call(self.session.save, path, note)

    async def fork(self, policy: Any = None) -> AsyncSession:
        """Session.fork, as an AsyncSession with a thread of its own; it is closed on its own too."""
        return AsyncSession(await self._call(self.session.fork, policy))

    async def memory(self) -> dict[str, Any]:
        """Session.memory."""
        return await self._call(self.session.memory)

    async def close(self) -> None:
        """Session.close, after what was called before it, also where who waits for it is cancelled."""
        if self._closing is None:
            self._closing = self._thread.submit(self.session.close)
            self._thread.shutdown(wait=False)
        await asyncio.shield(asyncio.wrap_future(self._closing))

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, function: Callable[..., _Result], *arguments: Any, **named: Any) -> _Result:
        if self._closing is not None:
            raise ValueError("the session is closed")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: function(*arguments, **named))
