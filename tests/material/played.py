"""A KvMemory driven block by block with made-up q, k, v, for tests that check its arithmetic.

Played plays streams and keeps the frames it gave. PlayedMemory also follows every token, and knows the
float64 attention over any of them.
"""

from __future__ import annotations

from dataclasses import dataclass
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
THETA = 100.0


def forward(memory: _core.KvMemory, q: Array, k: Array, v: Array) -> Array:
    """The block that was begun, through every layer: q [layers, n, q_heads, D], k, v [.., kv_heads, D]."""
    out = np.empty(q.shape, np.float32)
    q, k, v = (np.ascontiguousarray(x, np.float32) for x in (q, k, v))
    for layer in range(len(q)):
        memory.attend(layer, q[layer], k[layer], v[layer], out[layer], q.shape[1])
    return out


def give_frame(
    memory: _core.KvMemory, pts: float, embedding: Array, grid_w: int, q: Array, k: Array, v: Array
) -> Array:
    memory.begin_frame(pts, embedding.astype(np.float32), k.shape[1], grid_w)
    out = forward(memory, q, k, v)
    memory.commit()
    return out


def give_question(memory: _core.KvMemory, since: float | None, q: Array, k: Array, v: Array) -> Array:
    """Dropped afterwards."""
    memory.open_question(since)
    memory.begin_text(k.shape[1])
    out = forward(memory, q, k, v)
    memory.commit()
    memory.close_question(False)
    return out


class Played:
    """One KvMemory and the frames it was given: k and v [LAYERS, n, ROW], as half precision holds them."""

    def __init__(
        self, policy: Any, settings: dict[str, Any] | None = None, seed: int = 1, **memory: Any
    ) -> None:
        model = {**MODEL, "context": memory.pop("context", 0)}
        self.memory = _core.KvMemory(model, {**EXACT, **memory}, policy, settings or {}, "cpu", 1)
        self.random = np.random.default_rng(seed)
        self.frames: list[tuple[Array, Array, Array]] = []
        """(k, v, embedding) of each."""
        self.pts = 0.0

    def with_query(self, k: Array, v: Array) -> tuple[Array, Array, Array]:
        """A made-up q beside k, v [LAYERS, n, ROW]; heads apart."""
        n = k.shape[1]
        shape = (LAYERS, n, KV_HEADS, HEAD_DIM)
        q = self.random.standard_normal((LAYERS, n, Q_HEADS, HEAD_DIM))
        return q, k.reshape(shape), v.reshape(shape)

    def attend(self, k: Array, v: Array) -> Array:
        """One forward pass of the block that was begun; returns out [LAYERS, n, Q_HEADS, HEAD_DIM]."""
        return forward(self.memory, *self.with_query(k, v))

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
        k, v = (self.random.standard_normal((LAYERS, tokens, ROW)) for _ in range(2))
        return give_question(self.memory, since, *self.with_query(k, v))

    def left_window(self) -> list[tuple[Array, Array, Array]]:
        """Frames that were admitted: all but the first, kept apart, and those still in the window."""
        return self.frames[1 : len(self.frames) - self.memory.plan()["window_frames"]]


@dataclass
class Token:
    """What one token of the stream was, in every layer."""

    position: int
    frame: int
    y: int
    x: int
    k: Array  # [layers, kv_heads, D]
    v: Array
    received: Array  # [layers], attention it received while in the window, over heads and queries
    bias: float = 0  # on its logits: + log count, where it stands for many


def rotate(x: Array, position: Array) -> Array:
    """RoPE in the half layout. x [T, heads, D], position [T]."""
    half = x.shape[-1] // 2
    angle = position[:, None, None] * THETA ** (-np.arange(half) / half)
    low, high = x[..., :half], x[..., half:]
    return np.concatenate(
        [low * np.cos(angle) - high * np.sin(angle), high * np.cos(angle) + low * np.sin(angle)], axis=-1
    )


class PlayedMemory:
    """Frames see the `video_window` last ones, their own counted; questions see what the policy reads."""

    def __init__(self, policy: str, settings: dict[str, Any] | None = None, **memory: Any) -> None:
        self.layers, self.q_heads, self.kv_heads, self.d = 2, 4, 2, 16
        self.frame_tokens = memory.pop("frame_tokens", 16)
        self.video_window = 3
        self.window_frames = 3
        self.exact = memory.get("exact", "fp32")
        self.random = np.random.default_rng(memory.pop("seed", 1))
        model = {
            "layers": self.layers,
            "q_heads": self.q_heads,
            "kv_heads": self.kv_heads,
            "head_dim": self.d,
            "rope": {"theta": THETA},
            "embedding_dim": 4,
            "frame_tokens": self.frame_tokens,
            "video_window": self.video_window,
        }
        config = {
            "cap_bytes": 8 << 20,
            "exact": "fp32",
            "packed": self.exact,
            "window_frames": self.window_frames,
            "branch_tokens": 32,
            "max_cluster_tokens": 8,
            **memory,
        }
        self.memory = _core.KvMemory(model, config, policy, settings or {}, "cpu", 1)
        self.stored: list[list[Token]] = []  # frames that left the window, not the first
        self.window: list[list[Token]] = []
        self.first: list[Token] | None = None
        self.batch_frames = 1
        self.frames = 0
        self.positions = 0

    def floats(self, *shape: int) -> Array:
        return self.random.standard_normal(shape).astype(np.float32)

    def kept(self, x: Array) -> Array:
        """x as the session's exact codec holds it."""
        return x.astype(np.float16 if self.exact == "fp16" else np.float32).astype(np.float64)

    def frame(self, tokens: int, grid_w: int = 4, qkv: tuple[Array, ...] | None = None) -> list[Token]:
        """One frame of random (or the given) q [layers, T, q_heads, D] and k, v [layers, T, kv_heads, D]."""
        q, k, v = qkv or (
            self.floats(self.layers, tokens, self.q_heads, self.d),
            self.floats(self.layers, tokens, self.kv_heads, self.d),
            self.floats(self.layers, tokens, self.kv_heads, self.d),
        )
        give_frame(self.memory, float(self.frames), np.ones(4), grid_w, q, k, v)
        frame = [
            Token(
                self.positions + i,
                self.frames,
                i // grid_w,
                i % grid_w,
                self.kept(k[:, i]),
                self.kept(v[:, i]),
                np.zeros(self.layers),
            )
            for i in range(tokens)
        ]
        seen = [t for f in self.window[-(self.video_window - 1) :] for t in f] + frame
        for layer in range(self.layers):
            own = [
                Token(0, 0, 0, 0, k[:, i].astype(np.float64), t.v, t.received) for i, t in enumerate(frame)
            ]
            weights = self.attention(layer, q[layer].astype(np.float64), seen[: -len(frame)] + own)
            for token, mass in zip(seen, weights.sum((0, 1)), strict=True):
                token.received[layer] += mass
        self.frames += 1
        self.positions += tokens
        self.window.append(frame)
        if len(self.window) > self.window_frames + self.batch_frames - 1:
            if self.first is None:
                self.first = self.window.pop(0)
            else:
                self.stored += self.window[: self.batch_frames]
                self.window = self.window[self.batch_frames :]
        return frame

    def attention(self, layer: int, q: Array, seen: list[Token]) -> Array:
        """Weights [Hq, T, n] of queries that stand for the last len(q) of `seen`, at contiguous positions."""
        place = np.arange(len(seen), dtype=np.float64)
        k = rotate(np.stack([t.k[layer] for t in seen]), place)
        q = rotate(q, place[-len(q) :])
        group = self.q_heads // self.kv_heads
        logits = np.einsum("thd,nhd->htn", q, np.repeat(k, group, axis=1)) / np.sqrt(self.d)
        logits += [t.bias for t in seen]
        later = place[None, :] > place[-len(q) :, None]
        logits = np.where(later, -np.inf, logits)
        weights: Array = np.exp(logits - logits.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True)

    def ask(self, tokens: int, since: float | None = None) -> tuple[Array, ...]:
        """q, k, v of a question [layers, T, ...] and what attend() answered."""
        q = self.floats(self.layers, tokens, self.q_heads, self.d)
        k = self.floats(self.layers, tokens, self.kv_heads, self.d)
        v = self.floats(self.layers, tokens, self.kv_heads, self.d)
        out = give_question(self.memory, since, q, k, v)
        return tuple(x.astype(np.float64) for x in (q, k, v, out))  # a block attends to itself unrounded

    def expected(
        self, layer: int, read: list[Token], q: Array, k: Array, v: Array, since: float = -1
    ) -> Array:
        """What attend() must answer when of what is stored exactly `read` is read."""
        seen = [
            *(self.first or []),
            *sorted(read, key=lambda t: t.position),
            *(t for f in self.window for t in f),
        ]
        seen = [t for t in seen if t.frame >= since]
        at = [Token(0, 0, 0, 0, k[:, i], v[:, i], np.zeros(self.layers)) for i in range(k.shape[1])]
        weights = self.attention(layer, q[layer], seen + at)
        values = np.stack([t.v[layer] for t in seen + at])
        values = np.repeat(values, self.q_heads // self.kv_heads, axis=1)
        out: Array = np.einsum("htn,nhd->thd", weights, values)
        return out

    def members(self, layer: int) -> dict[int, int]:
        """Cluster by position of every stored token of a layer."""
        m = self.memory.store.members(layer)
        return dict(zip(m["position"].tolist(), m["cluster"].tolist(), strict=True))
