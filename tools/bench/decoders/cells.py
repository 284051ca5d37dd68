"""One cell: a stream through one session, asked, judged, counted."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .counts import tokens_kept, tokens_read
from .decoder import Attend, Decoder, Floats
from .narrated_vlm import Forward, NarratedVlm, asked, picture_of
from .product import Engine, Reply, SamplingParams, Session
from .streams import Question, Stream
from .together import Meter

Row = dict[str, Any]
Tick = Callable[[int], None]
ONE_TOKEN = SamplingParams(max_tokens=1)


@dataclass
class StreamRun:
    """A stream on its way through a session. `settings` are those of Engine.session."""

    decoder: Decoder
    stream: Stream
    settings: dict[str, Any]
    frames_read: int = 0
    meter: Meter = field(default_factory=Meter)

    def go(self, forward: Forward | None = None, tick: Tick | None = None) -> tuple[Row, Floats]:
        """Returns counts and answers, and the logits [questions, vocab] of the first answer tokens.

        forward: joins the passes of several sessions; the times of a frame and a question are left out then.
        """
        model = NarratedVlm(self.decoder, self.stream, self.frames_read)
        inner = forward or model.alone
        model = NarratedVlm(self.decoder, self.stream, self.frames_read, self._metered(inner))
        engine = Engine(model)
        later = list(self.stream.questions)
        replies: list[Reply] = []
        frame_ms: list[float] = []
        began = time.perf_counter()
        with engine.session(**self.settings) as session:
            for number, sentence in enumerate(self.stream.sentences):
                start = time.perf_counter()
                session.append(picture_of(sentence), float(number))
                frame_ms.append(1e3 * (time.perf_counter() - start))
                while later and later[0].asked == number + 1:
                    replies.append(self._ask(session, model, later.pop(0)))
                if tick is not None:
                    tick(number + 1)
            stats = session.memory()
            row = self._counted(engine, stats)
        row["seconds"] = round(time.perf_counter() - began, 2)
        row["answers"] = [
            answered(question, reply) for question, reply in zip(self.stream.questions, replies, strict=True)
        ]
        if forward is None:
            row["frame_ms"] = np.percentile(frame_ms, [50, 99]).round(3).tolist()
            row["first_token_ms"] = np.percentile(
                [1e3 * reply.first_token_seconds for reply in replies] or [0.0], [50, 99]
            ).round(3).tolist()  # fmt: skip
        return row, np.stack([reply.logits for reply in replies]) if replies else np.zeros((0, 0), np.float32)

    def _metered(self, inner: Forward) -> Forward:
        def forward(embeds: Floats, attend: Attend, want_logits: bool) -> Floats | None:
            self.meter.asking = want_logits
            return inner(embeds, self.meter.around(attend), want_logits)

        return forward

    def _ask(self, session: Session, model: NarratedVlm, question: Question) -> Reply:
        model.expects(question)
        return session.ask(question.text, sampling=ONE_TOKEN, special_tokens=True)

    def _counted(self, engine: Engine, stats: Row) -> Row:
        frames, asked_for = len(self.stream.sentences), max(len(self.stream.questions), 1)
        tokens = stream_tokens(self.decoder, self.stream)
        return {
            "bytes": stats["taken_bytes"],
            "cap_bytes": stats["cap_bytes"],
            "disk_bytes": sum(t["peak_bytes"] for t in stats["tiers"] if t["medium"] == "disk"),
            "full_bytes": full_bytes(self.decoder, self.stream),
            "stream_tokens": tokens,
            "tokens_kept": tokens_kept(stats, tokens),
            "tokens_read": tokens_read(engine, self.settings, stats, tokens),
            "attend_ms": {
                "frame": round(1e3 * self.meter.seconds[0] / frames, 3),
                "question": round(1e3 * self.meter.seconds[1] / asked_for, 3),
            },
            "memory": {name: stats[name] for name in ("tokens", "events", "disk", "tiers", "clusters")},
        }


def answered(question: Question, reply: Reply) -> Row:
    """Whether what the answer names as its evidence, and what it read at all, has the scene that says it."""
    first, last = question.scene
    return {
        "kind": question.kind,
        "evidence_named": any(r.start - 0.5 <= last and first <= r.end + 0.5 for r in reply.evidence),
        "evidence_read": any(a == b and first <= a <= last for a, b, _ in reply.moments),
    }


def stream_tokens(decoder: Decoder, stream: Stream) -> int:
    """Tokens of the prefix and all sentences."""
    length = {sentence: len(decoder.ids(sentence)) for sentence in set(stream.sentences)}
    prefix = NarratedVlm(decoder, stream).spec.prefix
    return len(decoder.ids(prefix)) + sum(length[sentence] for sentence in stream.sentences)


def full_bytes(decoder: Decoder, stream: Stream) -> int:
    """Bytes of keys and values of the whole stream at 16 bits: what a share of the cap is a share of."""
    return stream_tokens(decoder, stream) * NarratedVlm(decoder, stream).spec.kv_bytes_per_token


def branch_tokens(decoder: Decoder, stream: Stream) -> int:
    """Room for the longest question and one token of its answer."""
    template = NarratedVlm(decoder, stream).spec.template
    asks = [template.replace("{question}", asked(decoder, q)) for q in stream.questions]
    return max([len(decoder.ids(text)) for text in asks], default=0) + 1
