"""A memory driven block by block with made-up q, k, v, for tests that check its arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np

from mosaic_edge import _core

Array = np.ndarray
LAYERS, Q_HEADS, KV_HEADS, HEAD_DIM, TOKENS, EMBEDDING = 2, 4, 2, 8, 6, 5
ROW = KV_HEADS * HEAD_DIM
MODEL = {
    "layers": LAYERS, "q_heads": Q_HEADS, "kv_heads": KV_HEADS, "head_dim": HEAD_DIM,
    "rope": {"rotary_dim": HEAD_DIM}, "embedding_dim": EMBEDDING, "frame_tokens": TOKENS,
}  # fmt: skip
EXACT = {"cap_bytes": 4 << 20, "packed": "fp16", "window_frames": 2, "clusters": 400}
"""Of what is kept nothing has to yield."""


class Played:
    """One KvMemory and the frames it was given: k and v [LAYERS, n, ROW], as half precision holds them."""

    def __init__(
        self, policy: Any, settings: dict[str, Any] | None = None, seed: int = 1, **memory: Any
    ) -> None:
        self.memory = _core.KvMemory(MODEL, {**EXACT, **memory}, policy, settings or {}, "cpu", 1)
        self.random = np.random.default_rng(seed)
        self.frames: list[tuple[Array, Array, Array]] = []
        """(k, v, embedding) of each."""
        self.pts = 0.0

    def attend(self, k: Array, v: Array) -> Array:
        """One forward pass of the block that was begun; returns out [LAYERS, n, Q_HEADS, HEAD_DIM]."""
        n = k.shape[1]
        outs = np.empty((LAYERS, n, Q_HEADS, HEAD_DIM), np.float32)
        for layer in range(LAYERS):
            q = self.random.standard_normal((n, Q_HEADS, HEAD_DIM)).astype(np.float32)
            shape = (n, KV_HEADS, HEAD_DIM)
            block = (np.ascontiguousarray(x[layer].reshape(shape), np.float32) for x in (k, v))
            self.memory.attend(layer, q, *block, outs[layer], n)
        return outs

    def frame(self, k: Array, v: Array, embedding: Array | None = None) -> Array:
        """A frame with keys and values [LAYERS, n, ROW]; what is kept is their half precision."""
        if embedding is None:
            embedding = np.ones(EMBEDDING)
        k, v = (x.astype(np.float16).astype(np.float32) for x in (k, v))
        self.memory.begin_frame(self.pts, embedding.astype(np.float32), k.shape[1], 3)
        self.pts += 1.0
        out = self.attend(k, v)
        self.frames.append((k, v, embedding))
        self.memory.commit()
        return out

    def random_frame(self, n: int = TOKENS, kinds: int = 5, noise: float = 0.3) -> Array:
        """Tokens around a few directions, the same for every seed."""
        directions = np.random.default_rng(99).standard_normal((2, LAYERS, kinds, ROW))
        pick = self.random.integers(kinds, size=n)
        k, v = (d[:, pick] + noise * self.random.standard_normal((LAYERS, n, ROW)) for d in directions)
        return self.frame(k, v, self.random.standard_normal(EMBEDDING))

    def ask(self, tokens: int = 2, since: float | None = None) -> Array:
        """A question of `tokens`, dropped afterwards."""
        self.memory.open_question(since)
        self.memory.begin_text(tokens)
        k, v = (self.random.standard_normal((LAYERS, tokens, ROW)) for _ in range(2))
        out = self.attend(k, v)
        self.memory.commit()
        self.memory.close_question(False)
        return out

    def left_window(self) -> list[tuple[Array, Array, Array]]:
        """Frames that were admitted: all but the first, kept apart, and those still in the window."""
        return self.frames[1 : len(self.frames) - self.memory.plan()["window_frames"]]
