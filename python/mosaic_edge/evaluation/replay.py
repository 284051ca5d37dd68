"""A recorded stream (recording.py) as a model: its vision tower, and where sound its decoder, are tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mosaic_edge.config import SessionConfig
from mosaic_edge.models.vlm import Attend, EncodedFrame, FloatArray, FrameArray, Vlm, VlmSpec
from mosaic_edge.world import Question, World
from mosaic_edge.world.world import Difficulty

# Where questions are asked (share of the stream) and how many: most at the end, where the past is longest.
ASKED_AT = ((0.25, 1), (0.5, 1), (0.75, 1), (1.0, 3))

ARRAYS = ("tokens", "embeddings", "encode_ms", "decode_ms")
TRACE = ("q", "k", "v")
TRACE_KNOBS = ("exact", "positions", "backend")
"""Fields of SessionConfig that change the numbers a windowed model's video tokens get."""


@dataclass(frozen=True)
class EncodedStream:
    """One recorded stream at one frame a second, with the questions that go with it."""

    difficulty: Difficulty
    seed: int
    tokens: NDArray[np.float32]  # [F, T, hidden]
    embeddings: NDArray[np.float32]  # [F, E]
    encode_ms: NDArray[np.float32]  # [F]: what the vision tower took
    decode_ms: NDArray[np.float32]  # [F]: what the decoder took without attention; 0 without a trace
    questions: dict[int, list[Question]]
    """Frame index after which to ask -> what to ask."""
    trace: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """q [F, L, T, H_q, D], k and v [F, L, T, H_kv, D] as the layers hand them to attend; empty: none."""
    trace_knobs: dict[str, Any] = field(default_factory=dict)
    """The settings under which they were recorded."""

    def traced(self, config: SessionConfig) -> bool:
        """Do the recorded q, k, v hold for a session with `config`?"""
        return bool(self.trace) and all(getattr(config, k) == v for k, v in self.trace_knobs.items())


def question_plan(world: World, frames: int, count: int) -> dict[int, list[Question]]:
    """About `count` questions over the stream, asked at ASKED_AT; fewer where the world has fewer."""
    random = np.random.default_rng([world.seed, 5])
    whole = sum(weight for _, weight in ASKED_AT)
    plan: dict[int, list[Question]] = {}
    left = count
    for share, weight in ASKED_AT:
        frame = max(0, round(frames * share) - 1)
        wanted = left if share == 1.0 else min(left, round(count * weight / whole))
        plan.setdefault(frame, []).extend(world.questions(frame, random, wanted))
        left = count - sum(len(asked) for asked in plan.values())
    return {frame: asked for frame, asked in plan.items() if asked}


def load_stream(folder: Path) -> EncodedStream:
    """Map what record_stream wrote into memory: it is there once for every worker."""
    facts = json.loads((folder / "stream.json").read_text())
    questions = {
        int(frame): [
            Question(
                **{**q, "evidence": tuple(q["evidence"]), "sightings": tuple(map(tuple, q["sightings"]))}
            )
            for q in asked
        ]
        for frame, asked in facts["questions"].items()
    }

    def mapped(name: str) -> NDArray[np.float32]:
        return np.load(folder / f"{name}.npy", mmap_mode="r")

    knobs = facts.get("trace", {})
    trace = {name: mapped(name) for name in TRACE} if knobs else {}
    tokens, embeddings, encode_ms, decode_ms = (mapped(name) for name in ARRAYS)
    return EncodedStream(
        facts["difficulty"], facts["seed"], tokens, embeddings, encode_ms, decode_ms, questions, trace, knobs
    )


class PassThrough:
    """A Vlm that does what another one does."""

    def __init__(self, model: Vlm) -> None:
        self._model = model

    @property
    def spec(self) -> VlmSpec:
        """Of the model behind; here every frame is a picture of its own."""
        return replace(self._model.spec, temporal_patch_size=1)

    def encode(self, frame: FrameArray, pts: float, elapsed: float, number: int) -> EncodedFrame:
        """As the model."""
        return self._model.encode(frame, pts, elapsed, number)

    def embed_text(self, ids: Sequence[int]) -> FloatArray:
        """As the model."""
        return self._model.embed_text(ids)

    def tokenize(self, text: str, plain: tuple[int, int] | None = None) -> list[int]:
        """As the model."""
        return self._model.tokenize(text, plain)

    def detokenize(self, ids: Sequence[int]) -> str:
        """As the model."""
        return self._model.detokenize(ids)

    def forward(self, embeds: FloatArray, attend: Attend, want_logits: bool = True) -> FloatArray | None:
        """As the model."""
        return self._model.forward(embeds, attend, want_logits)


class ReplayVlm(PassThrough):
    """Takes a ticket for a picture and looks up what the stream's frame was encoded to.

    decode=False: a frame's q, k, v come from the stream's trace as well, and only text runs the decoder.
    """

    def __init__(self, model: Vlm, stream: EncodedStream, decode: bool = True) -> None:
        super().__init__(model)
        self._stream = stream
        self._decode = decode
        self._frame: int | None = None  # encoded, and not yet run

    @staticmethod
    def ticket(frame: int) -> FrameArray:
        """A picture of one pixel, uint8 [1, 1, 3], that stands for frame number `frame` of the stream."""
        return np.array([[[frame >> 16 & 255, frame >> 8 & 255, frame & 255]]], np.uint8)

    def encode(self, frame: FrameArray, pts: float, elapsed: float, number: int) -> EncodedFrame:
        """Tokens [T, hidden] and embedding [E] of the frame a ticket stands for."""
        if frame.shape != (1, 1, 3):
            raise ValueError(f"ReplayVlm takes tickets of shape [1, 1, 3], got {list(frame.shape)}")
        high, middle, low = (int(v) for v in frame[0, 0])
        index = self._frame = high << 16 | middle << 8 | low
        tokens, embedding = self._stream.tokens[index], self._stream.embeddings[index]
        return EncodedFrame(np.asarray(tokens), np.asarray(embedding), self.spec.grid[1])

    def forward(self, embeds: FloatArray, attend: Attend, want_logits: bool = True) -> FloatArray | None:
        """As the model; a frame's q, k, v are those of the trace with decode=False."""
        frame, self._frame = self._frame, None
        if frame is None or want_logits or self._decode:
            return super().forward(embeds, attend, want_logits)
        q, k, v = (self._stream.trace[name][frame] for name in TRACE)
        for layer in range(self.spec.layers):
            attend(layer, np.asarray(q[layer]), np.asarray(k[layer]), np.asarray(v[layer]))
        return None
