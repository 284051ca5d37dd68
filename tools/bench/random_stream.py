"""Frames and questions of random keys and values: what a bench feeds a raw `_core.KvMemory`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mosaic_edge import _core

EMBEDDING_DIM = 64


@dataclass(frozen=True)
class Heads:
    """What a memory knows of a decoder."""

    layers: int
    query: int
    kv: int
    dim: int

    def model(self, frame_tokens: int) -> dict[str, Any]:
        """The `model` of a `_core.KvMemory` whose frames are of so many tokens."""
        return {
            "layers": self.layers, "q_heads": self.query, "kv_heads": self.kv, "head_dim": self.dim,
            "rope": {"rotary_dim": self.dim, "theta": 1e6}, "embedding_dim": EMBEDDING_DIM,
            "frame_tokens": frame_tokens, "context": 1 << 17,
        }  # fmt: skip


class RandomStream:
    """A memory that random frames come to: eight scenes in turn, 12 frames each, every token a little off."""

    def __init__(self, heads: Heads, frame_tokens: int, memory: _core.KvMemory) -> None:
        self.heads, self.frame_tokens, self.memory = heads, frame_tokens, memory
        self.random = np.random.default_rng(1)
        scenes = self.random.standard_normal((8, frame_tokens, heads.kv, heads.dim))
        self.scenes = scenes.astype(np.float32)
        self.frames = 0

    def attend(self, tokens: int) -> None:
        """A block of all layers, at most a frame long."""
        for layer in range(self.heads.layers):
            self.attend_layer(layer, tokens)

    def attend_layer(self, layer: int, tokens: int) -> None:
        """Of a block."""
        scene = self.scenes[self.frames // 12 % 8][:tokens]
        k, v = scene + np.float32(0.5) * self.random.standard_normal((2, *scene.shape)).astype(np.float32)
        q = self.random.standard_normal((tokens, self.heads.query, self.heads.dim)).astype(np.float32)
        self.memory.attend(layer, q, k, v, np.empty_like(q), tokens)

    def frame(self) -> None:
        """The next frame, a second after the last."""
        self.memory.begin_frame(
            float(self.frames), np.ones(EMBEDDING_DIM, np.float32), self.frame_tokens, self.frame_tokens
        )
        self.attend(self.frame_tokens)
        self.memory.commit()
        self.frames += 1

    def question(self, tokens: int) -> None:
        """A question and no answer."""
        self.memory.open_question()
        self.memory.begin_text(tokens)
        self.attend(tokens)
        self.memory.commit()
        self.memory.close_question()
