"""A stream encoded once and replayed many times: the vision tower is the same for every policy and cap."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mosaic_edge.models.vlm import Attend, FloatArray, FrameArray, Vlm, VlmSpec
from mosaic_edge.world import Question, World
from mosaic_edge.world.world import Difficulty

# Where questions are asked (share of the stream) and how many: most at the end, where the past is longest.
MOMENTS = ((0.25, 1), (0.5, 1), (0.75, 1), (1.0, 3))

ARRAYS = ("tokens", "embeddings", "encode_ms")


@dataclass(frozen=True)
class EncodedStream:
    """One world stream after the vision tower, at one frame a second, with the questions that go with it."""

    difficulty: Difficulty
    seed: int
    tokens: NDArray[np.float32]  # [F, T, hidden]
    embeddings: NDArray[np.float32]  # [F, E]
    encode_ms: NDArray[np.float32]  # [F]: what the vision tower took
    questions: dict[int, list[Question]]
    """Frame index after which to ask -> what to ask."""


def question_plan(world: World, frames: int, count: int) -> dict[int, list[Question]]:
    """About `count` questions over the stream, asked at MOMENTS; fewer where the world has fewer."""
    random = np.random.default_rng([world.seed, 5])
    whole = sum(weight for _, weight in MOMENTS)
    plan: dict[int, list[Question]] = {}
    left = count
    for share, weight in MOMENTS:
        frame = max(0, round(frames * share) - 1)
        wanted = left if share == 1.0 else min(left, round(count * weight / whole))
        plan.setdefault(frame, []).extend(world.questions(frame, random, wanted))
        left = count - sum(len(asked) for asked in plan.values())
    return {frame: asked for frame, asked in plan.items() if asked}


def encode_stream(model: Vlm, difficulty: Difficulty, seed: int, frames: int, count: int) -> EncodedStream:
    """Render `frames` seconds of a world and run the vision tower over them."""
    world = World(seed, frames, difficulty)
    tokens, embeddings, took = [], [], []
    for second in range(frames):
        image = world.render(second)
        began = time.perf_counter()
        token, embedding = model.encode_frame(image)
        took.append(1e3 * (time.perf_counter() - began))
        tokens.append(token)
        embeddings.append(embedding)
    return EncodedStream(
        difficulty, seed, np.stack(tokens), np.stack(embeddings), np.array(took, np.float32),
        question_plan(world, frames, count),
    )  # fmt: skip


def save_stream(stream: EncodedStream, folder: Path) -> Path:
    """Write `stream` below `folder`; workers map it into memory, so it is there once for all of them."""
    place = folder / f"{stream.difficulty}-{stream.seed}"
    place.mkdir(parents=True, exist_ok=True)
    for name in ARRAYS:
        np.save(place / f"{name}.npy", getattr(stream, name))
    questions = {frame: [asdict(q) for q in asked] for frame, asked in stream.questions.items()}
    (place / "stream.json").write_text(
        json.dumps({"difficulty": stream.difficulty, "seed": stream.seed, "questions": questions})
    )
    return place


def load_stream(place: Path) -> EncodedStream:
    """Read what save_stream wrote."""
    facts = json.loads((place / "stream.json").read_text())
    questions = {
        int(frame): [Question(**{**q, "evidence": tuple(q["evidence"])}) for q in asked]
        for frame, asked in facts["questions"].items()
    }
    tokens, embeddings, encode_ms = (np.load(place / f"{name}.npy", mmap_mode="r") for name in ARRAYS)
    return EncodedStream(facts["difficulty"], facts["seed"], tokens, embeddings, encode_ms, questions)


class ReplayVlm:
    """A Vlm whose vision tower is a table: it looks up what a picture made by `ticket` stands for."""

    def __init__(self, model: Vlm, stream: EncodedStream) -> None:
        self._model = model
        self._stream = stream

    @staticmethod
    def ticket(frame: int) -> FrameArray:
        """A picture of one pixel, uint8 [1, 1, 3], that stands for frame number `frame` of the stream."""
        return np.array([[[frame >> 16 & 255, frame >> 8 & 255, frame & 255]]], np.uint8)

    @property
    def spec(self) -> VlmSpec:
        """Of the model behind."""
        return self._model.spec

    def encode_frame(self, frame: FrameArray) -> tuple[FloatArray, FloatArray]:
        """Tokens [T, hidden] and embedding [E] of the frame a ticket stands for."""
        if frame.shape != (1, 1, 3):
            raise ValueError(f"ReplayVlm takes tickets of shape [1, 1, 3], got {list(frame.shape)}")
        high, middle, low = (int(v) for v in frame[0, 0])
        index = high << 16 | middle << 8 | low
        return np.asarray(self._stream.tokens[index]), np.asarray(self._stream.embeddings[index])

    def embed_text(self, ids: Sequence[int]) -> FloatArray:
        """As the model."""
        return self._model.embed_text(ids)

    def tokenize(self, text: str) -> list[int]:
        """As the model."""
        return self._model.tokenize(text)

    def detokenize(self, ids: Sequence[int]) -> str:
        """As the model."""
        return self._model.detokenize(ids)

    def run(self, embeds: FloatArray, attend: Attend, want_logits: bool = True) -> FloatArray | None:
        """As the model."""
        return self._model.run(embeds, attend, want_logits)
