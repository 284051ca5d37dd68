"""A session over a clip that keeps everything, and what its model was given and gave on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mosaic_edge.engine import Engine
from mosaic_edge.evaluation.check.clip import Clip
from mosaic_edge.models.vlm import Attend, EncodedFrame, FloatArray, FrameArray, Vlm, VlmSpec
from mosaic_edge.sampling import SamplingParams

PICTURE = -1
"""Stands for the id of a picture's token."""


@dataclass
class Watched:
    """What went through a model while it was watched."""

    ids: list[int] = field(default_factory=list)
    """Of all that the decoder read, PICTURE for a picture's."""
    embeds: list[FloatArray] = field(default_factory=list)
    pictures: list[EncodedFrame] = field(default_factory=list)
    logits: list[FloatArray] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        """The likeliest one of each step."""
        return [int(step.argmax()) for step in self.logits]

    @property
    def prompt(self) -> list[int]:
        """Ids up to the answer; what closes a video (LLaVA-OneVision) belongs to its picture."""
        return self.ids[: len(self.ids) - (len(self.logits) - 1)]


@contextmanager
def watching(model: Vlm) -> Iterator[Watched]:
    """Note what a model of this package does, by its own methods."""
    seen, watched = Watched(), vars(model)
    asked: list[int] = []
    embed_text, encode, forward = model.embed_text, model.encode, model.forward
    words = model.spec.vocab_size

    def note_text(ids: Sequence[int]) -> FloatArray:
        asked.extend(i if i < words else PICTURE for i in ids)  # behind the last word: no word
        return embed_text(ids)

    def note_picture(frame: FrameArray, pts: float, elapsed: float, number: int) -> EncodedFrame:
        before = len(asked)
        made = encode(frame, pts, elapsed, number)
        text, count = asked[before:], len(made.tokens) - made.lead - made.trail
        asked[before:] = [*text[: made.lead], *[PICTURE] * count, *text[made.lead :]]
        seen.pictures.append(made)
        return made

    def note_run(embeds: FloatArray, attend: Attend, want_logits: bool = True) -> FloatArray | None:
        seen.ids.extend(asked[-len(embeds) :])
        seen.embeds.append(np.array(embeds))
        asked.clear()
        made = forward(embeds, attend, want_logits)
        if made is not None:
            seen.logits.append(made)
        return made

    watched.update(embed_text=note_text, encode=note_picture, forward=note_run)
    try:
        yield seen
    finally:
        for name in ("embed_text", "encode", "forward"):
            del watched[name]


def settings(spec: VlmSpec, clip: Clip, question: int, steps: int) -> dict[str, Any]:
    """Of a session whose cap holds all of a clip, in full precision, on one thread."""
    tokens = (len(clip.frames) + 2) * spec.tokens_per_frame + question + steps + 1024
    kept = tokens * spec.layers * spec.kv_heads * spec.head_dim * 2 * 4
    return {
        "memory": 3 * kept + (64 << 20),
        "policy": "full",
        "exact": "fp32",
        "branch_tokens": max(256, question + steps + 16),
        "kernel_threads": 1,
    }


def stream(engine: Engine, clip: Clip, steps: int) -> None:
    """Show a clip to a session and ask. MemoryCapError where something could not be kept."""
    asked = len(engine.model.tokenize(engine.spec.template.replace("{question}", clip.question)))
    with engine.session(**settings(engine.spec, clip, asked, steps)) as session:
        for frame, pts in zip(clip.frames, clip.times, strict=True):
            session.append(frame, pts)
        session.ask(clip.question, sampling=SamplingParams(max_tokens=steps))
        assert session.memory()["frames"] == len(clip.frames)
