"""A stream encoded once: the vision tower's tokens and, where that is sound, every layer's q, k and v.

A windowed model's video tokens (VlmSpec.video_window) see the last frames and nothing that a policy keeps, so
their q, k and v are the same under every policy and cap. They are written down once while a session with the
least memory runs over the stream; a cell is then fed from the files and never runs the decoder for a frame.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from mosaic_edge import _core
from mosaic_edge.config import SessionConfig
from mosaic_edge.engine import Engine, Session
from mosaic_edge.evaluation.replay import TRACE, TRACE_KNOBS, PassThrough, question_plan
from mosaic_edge.models.vlm import Attend, EncodedFrame, FloatArray, FrameArray, Vlm
from mosaic_edge.world import World
from mosaic_edge.world.world import Difficulty


class RecordingVlm(PassThrough):
    """A Vlm that writes down what its frames are encoded to and what its layers hand to attend."""

    def __init__(self, model: Vlm, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        super().__init__(model)
        self._arrays = arrays
        self._frame = -1  # the frame in work; -1: text (the prefix)

    def encode(self, frame: FrameArray, pts: float, elapsed: float, number: int) -> EncodedFrame:
        """As the model; tokens, embedding and time are kept."""
        self._frame += 1
        began = time.perf_counter()
        made = super().encode(frame, pts, elapsed, number)
        self._arrays["encode_ms"][self._frame] = 1e3 * (time.perf_counter() - began)
        self._arrays["tokens"][self._frame] = made.tokens
        self._arrays["embeddings"][self._frame] = made.embedding
        return made

    def forward(self, embeds: FloatArray, attend: Attend, want_logits: bool = True) -> FloatArray | None:
        """As the model; q, k and v of a frame are kept, and the time that was not spent in attend."""
        if self._frame < 0:
            return super().forward(embeds, attend, want_logits)
        elsewhere = 0.0

        def keep(layer: int, q: FloatArray, k: FloatArray, v: FloatArray) -> FloatArray:
            nonlocal elsewhere
            came = time.perf_counter()
            for name, value in zip(TRACE, (q, k, v), strict=True):
                self._arrays[name][self._frame, layer] = value
            out = attend(layer, q, k, v)
            elsewhere += time.perf_counter() - came
            return out

        began = time.perf_counter()
        logits = super().forward(embeds, keep, want_logits)
        self._arrays["decode_ms"][self._frame] = 1e3 * (time.perf_counter() - began - elsewhere)
        return logits


def record_stream(
    engine: Engine,
    difficulty: Difficulty,
    seed: int,
    frames: int,
    questions: int,
    folder: Path,
    settings: dict[str, Any] | None = None,
) -> Path:
    """Render `frames` seconds of a world at one frame a second and write what load_stream reads.

    questions: how many to plan. settings: fields of SessionConfig; what changes q, k, v is kept with them.
    """
    made = folder / f"{difficulty}-{frames}-{seed}"
    made.mkdir(parents=True, exist_ok=True)
    spec = engine.spec
    heads = {"q": spec.q_heads, "k": spec.kv_heads, "v": spec.kv_heads}
    per_token = (frames, spec.layers, spec.tokens_per_frame)
    shapes = {
        "tokens": (frames, spec.tokens_per_frame, spec.hidden),
        "embeddings": (frames, spec.embedding_dim),
        "encode_ms": (frames,),
        "decode_ms": (frames,),
        **({name: (*per_token, heads[name], spec.head_dim) for name in TRACE} if spec.video_window else {}),
    }
    arrays = {
        name: open_memmap(made / f"{name}.npy", mode="w+", dtype=np.float32, shape=shape)
        for name, shape in shapes.items()
    }
    world = World(seed, frames, difficulty)
    recorder = RecordingVlm(engine.model, arrays)
    if spec.video_window:
        knobs = {name: (settings or {})[name] for name in TRACE_KNOBS if name in (settings or {})}
        exact = SessionConfig(**(settings or {})).exact  # however small the memory that records
        with _least_session(Engine(recorder), {**knobs, "window_codec": exact}) as session:
            for second in range(frames):
                session.append(world.render(second), float(second))
    else:
        for second in range(frames):
            recorder.encode(world.render(second), float(second), float(second), second)
    for array in arrays.values():
        array.flush()
    asked = question_plan(world, frames, questions).items()
    plan = {str(frame): [asdict(question) for question in mine] for frame, mine in asked}
    config = SessionConfig(**(settings or {}))
    facts: dict[str, Any] = {"difficulty": difficulty, "seed": seed, "frames": frames, "questions": plan}
    if spec.video_window:
        facts["trace"] = {name: getattr(config, name) for name in TRACE_KNOBS}
    (made / "stream.json").write_text(json.dumps(facts))
    return made


def _least_session(engine: Engine, knobs: dict[str, Any]) -> Session:
    """A session with about the least memory there can be: what video tokens see does not depend on it."""
    memory = 1 << 18
    while not _fits(engine, memory, knobs):
        memory *= 2
    return engine.session(memory=memory, policy="window", **knobs)


def _fits(engine: Engine, memory: int, knobs: dict[str, Any]) -> bool:
    try:
        engine.plan(memory=memory, policy="window", **knobs)
    except _core.MemoryCapError:
        return False
    return True
