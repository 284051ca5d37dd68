"""An answer on its way from the thread of a session, where it is made, to a client, who may leave."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress

from mosaic_edge.reply import Reply
from mosaic_edge.session import Session


class StoppedError(RuntimeError):
    """The session or the server ended before the answer did."""


class Answer:
    """Pieces of text, then the Reply, or what went wrong. `leave()` from the client's side ends it after the
    token in hand, and the session is free for the next."""

    def __init__(self, ended: threading.Event) -> None:
        self._ended = ended
        self._left = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[str | Reply | Exception] = asyncio.Queue()

    def leave(self) -> None:
        """Nobody reads it any more."""
        self._left.set()

    async def next(self) -> str | Reply:
        """The next piece, at last the Reply. Raises what the question did."""
        event = await self._events.get()
        if isinstance(event, Exception):
            raise event
        return event

    async def whole(self) -> Reply:
        """The Reply alone."""
        while not isinstance(event := await self.next(), Reply):
            pass
        return event

    def make(
        self,
        session: Session,
        question: str,
        piece: Callable[[int], None],
        done: Callable[[], None],
        **asking: object,
    ) -> None:
        """Ask, in the session's thread. piece(number) is called at each; done() when it is answered to its
        end, before the client hears of that: not where the client left, or the session ended."""
        try:
            if self._is_over():
                return
            stream = session.ask(question, stream=True, **asking)  # type: ignore[call-overload]
            try:
                for number, text in enumerate(stream):
                    piece(number)
                    if text or not number:  # the first, of a thought, says that it has begun
                        self._put(text)
                    if self._is_over():
                        return
                done()
                self._put(stream.reply)
            finally:
                stream.close()
        except Exception as error:
            self.fail(error)

    def stop(self) -> None:
        """Its session ends."""
        self.fail(StoppedError("the session was ended before its answer was"))

    def fail(self, error: Exception) -> None:
        """It ends with `error`."""
        self._put(error)

    def _is_over(self) -> bool:
        if self._ended.is_set():
            self.stop()
            return True
        return self._left.is_set()

    def _put(self, event: str | Reply | Exception) -> None:
        with suppress(RuntimeError):  # the loop is gone, and so is who waits in it
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
