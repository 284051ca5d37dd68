"""One question of a session, from its block to what the dialogue keeps of it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Literal

from mosaic_edge.answer_text import AnswerText
from mosaic_edge.blocks import Blocks
from mosaic_edge.call_order import CallOrder
from mosaic_edge.evidence import Moment, time_ranges
from mosaic_edge.models.vlm import FloatArray
from mosaic_edge.question import Asked, alike, kept_turn
from mosaic_edge.reply import Reply
from mosaic_edge.sampling import Sampler
from mosaic_edge.stream_state import StreamState


class Answering:
    """Draws the answer to `asked` while `pieces()` is iterated; then `reply` is there."""

    def __init__(
        self,
        asked: Asked,
        sampler: Sampler,
        most_tokens: int,
        parts: tuple[Blocks, StreamState, CallOrder],
        ready: Callable[[], None],
        *,
        stream: bool,
    ) -> None:
        """most_tokens: of the answer. ready(): called in the turn, before the question is opened. stream: who
        iterates may stop at any piece, and come back or not."""
        self.reply: Reply | None = None
        self._asked, self._sampler, self._ready, self._is_streamed = asked, sampler, ready, stream
        self._blocks, self._stream, self._order = parts
        self._spec = self._blocks.model.spec
        self._most_tokens = min(most_tokens, self._blocks.branch_tokens - len(asked.ids))
        self._answer: list[int] = []
        self._in_memory = list(asked.ids)
        """What the open question holds."""
        self._text = AnswerText(self._spec.thinking, sampler.params.stop)
        self._finish: Literal["end", "length"] = "length"

    def pieces(self) -> Iterator[str]:
        """The answer as it is drawn. ValueError where the session is closed or about to end."""
        began = time.perf_counter()
        with self._order.turn():
            self._order.streaming = self._is_streamed
            keep = False  # a turn that failed is not part of the dialogue; one that was stopped early is
            try:
                with self._order.step():
                    self._ready()
                    read = self._read_question()
                first_token = time.perf_counter() - began
                yield from self._drawn(read.logits)
                if rest := self._text.rest():
                    yield rest
                keep = self._asked.dialogue
            except GeneratorExit:
                keep = self._asked.dialogue
                raise
            finally:
                self._order.streaming = False
                self._end(keep)
        times = first_token, time.perf_counter() - began
        self.reply = self._reply_of(read, times)

    def _read_question(self) -> _Read:
        """The question's own block, and what it looked at."""
        asked, origin = self._asked, self._stream.origin
        memory = self._blocks.open()
        memory.open_question(None if asked.since is None else asked.since - origin)
        logits = self._blocks.next_logits(asked.ids, asked.lead, asked.trail)
        moments = [(first + origin, last + origin, mass) for first, last, mass in memory.evidence()]
        self._check_context()
        return _Read(logits, moments, memory.evidence_lost)

    def _drawn(self, logits: FloatArray) -> Iterator[str]:
        """Pieces of text, until the model ends or there is no more room."""
        blocks, limit = self._blocks, self._most_tokens
        while len(self._answer) < limit:
            if self._order.ending:
                raise ValueError("the session ends: the answer was stopped")
            token = self._sampler.next(logits)
            if token in self._spec.eos_token_ids:
                self._finish = "end"
                return
            self._answer.append(token)
            with self._order.step():
                said = blocks.model.detokenize(self._answer)
            if (piece := self._text.piece(said)) is not None:
                yield piece
            if self._text.stopped:
                self._finish = "end"
                return
            if len(self._answer) < limit or self._asked.dialogue:
                with self._order.step():
                    logits = blocks.next_logits([token])
                self._in_memory.append(token)

    def _end(self, keep: bool) -> None:
        """Nothing of a question stays open, not even when keeping it fails."""
        if not self._order.is_in_its_process:
            return
        with self._order.lock:
            memory = self._blocks.memory
            if memory is None or not memory.asking:
                return
            try:
                if keep:
                    self._keep_as_said()
                memory.close_question(keep)
            except BaseException:
                if memory.asking:
                    memory.close_question(False)
                raise
            self._stream.talking |= keep

    def _keep_as_said(self) -> None:
        """The turn stands in the dialogue as the chat template writes an earlier one: without its thought."""
        kept = kept_turn(self._blocks.model, self._asked, self._text, self._blocks.branch_tokens)
        if kept is None:
            return
        same = alike(kept, self._in_memory)
        self._blocks.memory.rewind_question(same)
        if rest := kept[same:]:
            self._blocks.read(rest)

    def _check_context(self) -> None:
        """Warn, once, when a question reads more than the model has positions for."""
        context, asked = self._spec.context, len(self._asked.ids)
        if not context or self._stream.past_context or self._stream.seen + asked <= context:
            return
        read = int(self._blocks.memory.stats()["read"]["questions"]) + asked
        if read > context:
            self._stream.past_context = True
            warnings.warn(
                f"{self._spec.name}: a question reads {read} tokens, but the model was trained on {context} "
                "positions; answers get worse past them. Lower memory= or tokens_per_frame=, or use a policy "
                "that reads a part (retrieve_tokens=)",
                stacklevel=4,
            )

    def _reply_of(self, read: _Read, times: tuple[float, float]) -> Reply:
        gap = median(self._stream.gaps)
        # A picture's last frame comes so long after its first.
        span = gap * (self._spec.temporal_patch_size - 1)
        moments = [(start, end + span, mass) for start, end, mass in read.moments]
        return Reply(
            self._text.text,
            time_ranges(moments, gap=1.5 * gap),
            len(self._answer),
            self._finish,
            *times,
            read.logits,
            tuple(moments),
            read.lost,
            self._text.thought,
        )


@dataclass(frozen=True)
class _Read:
    """What a question's own block gave."""

    logits: FloatArray
    """[vocab] the first token is drawn from."""
    moments: list[Moment]
    lost: int
