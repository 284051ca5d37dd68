"""Answers of a session: whole, or piece by piece as they are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mosaic_edge.evidence import Moment, TimeRange


@dataclass(frozen=True)
class Reply:
    """An answer, where in the stream it was read, and how long it took."""

    text: str
    """The answer alone; empty where a thought was cut off before it (`thinking`, `finish`)."""
    evidence: tuple[TimeRange, ...]
    tokens: int
    finish: Literal["end", "length"]
    """The model ended it (or said one of SamplingParams.stop), or it reached max_tokens or the room of
    branch_tokens."""
    first_token_seconds: float
    """From the question's arrival to its first token."""
    seconds: float
    logits: NDArray[np.float32]
    """Logits [vocab] the first token was drawn from."""
    moments: tuple[Moment, ...] = ()
    """All that the first token read and `evidence` is made of: (from, to, attention mass), in seconds; from =
    to is a moment itself, a longer one the summary of a time. Summaries that were hardly looked at are left
    out."""
    moments_lost: int = 0
    """Moments that the core's table of them (a 64th of the cap) had no room for."""
    thinking: str = ""
    """What a model that thinks said before its answer, without the marks around it."""


class ReplyStream:
    """Iterates over the pieces of an answer as they are drawn; `reply` is the whole once it has ended. While
    a model thinks, pieces are empty.

    Until the stream is exhausted or closed the session takes no frame and no other question (ValueError).
    """

    def __init__(self, pieces: Iterator[str], done: Callable[[], Reply | None]) -> None:
        self._pieces = pieces
        self._done = done

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def close(self) -> None:
        """Stop the answer here."""
        close = getattr(self._pieces, "close", None)
        if close is not None:
            close()

    @property
    def reply(self) -> Reply:
        """The whole answer. Raises RuntimeError before the stream has ended."""
        reply = self._done()
        if reply is None:
            raise RuntimeError("the answer is not complete: iterate to its end first")
        return reply


def reply_document(question: str, reply: Reply) -> dict[str, Any]:
    """An answer as plain data, as every command and service gives it."""
    return {
        "question": question,
        "answer": reply.text,
        "thinking": reply.thinking,
        "evidence": [asdict(moment) for moment in reply.evidence],
        "first_token_ms": 1e3 * reply.first_token_seconds,
        "seconds": reply.seconds,
        "tokens": reply.tokens,
        "finish": reply.finish,
    }
