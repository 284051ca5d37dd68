"""Blocks of tokens - a frame's, a question's, an answer's next token - through a model whose attention is
done by the core's memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from mosaic_edge.memory_attend import MemoryAttend
from mosaic_edge.models.vlm import FloatArray, Vlm
from mosaic_edge.trace import Trace


class Blocks:
    """The model and the memory of one session. Whoever calls holds the session's lock."""

    def __init__(self, model: Vlm, memory: Any, backend: str, trace: Trace, prefix_tokens: int) -> None:
        self.model, self.memory = model, memory
        self.is_closed = False
        """Nothing is begun from now on."""
        spec = model.spec
        self.branch_tokens: int = memory.plan()["branch_tokens"]
        """Room for dialogue, question and answer together."""
        most = max(spec.tokens_per_frame, self.branch_tokens, prefix_tokens)
        out: FloatArray = np.empty((most, spec.q_heads, spec.head_dim), np.float32)
        self._attend: MemoryAttend | None = MemoryAttend(memory, out, backend)
        self._trace = trace

    def close(self) -> None:
        """Give the memory back: its copy thread ends here."""
        self.memory = self._attend = None

    def open(self) -> Any:
        """The memory. ValueError where the session is closed."""
        if self.is_closed:
            raise ValueError("the session is closed")
        return self.memory

    def settle(self) -> None:
        """What an interrupt left open, between two steps of a frame or an answer, is forgotten."""
        memory = self.open()
        memory.abort()
        if memory.asking:
            memory.close_question(False)

    @contextmanager
    def whole_or_nothing(self) -> Iterator[Any]:
        """The memory; a block that the body begins is forgotten if anything fails before its end."""
        memory = self.open()
        try:
            yield memory
        except BaseException:
            memory.abort()
            raise

    def forward(self, embeds: FloatArray, want_logits: bool) -> FloatArray | None:
        """One pass over [T, hidden] of a block that was begun: logits [vocab] of the last token."""
        assert self._attend is not None  # the memory is open: a block was begun
        with self._trace.span("forward"):
            return self.model.forward(embeds, self._attend, want_logits)

    def read(self, ids: list[int]) -> None:
        """A block of text."""
        self._text(ids, 0, 0, want_logits=False)

    def next_logits(self, ids: list[int], lead: int = 0, trail: int = 0) -> FloatArray:
        """A block of text, and what the model would say behind it: logits [vocab]. lead, trail: how many
        tokens of a question are its template's."""
        logits = self._text(ids, lead, trail, want_logits=True)
        assert logits is not None
        return logits

    def _text(self, ids: list[int], lead: int, trail: int, *, want_logits: bool) -> FloatArray | None:
        embeds = self.model.embed_text(ids)
        with self.whole_or_nothing() as memory:
            memory.begin_text(len(embeds), lead, trail)
            logits = self.forward(embeds, want_logits)
            memory.commit()
            return logits
