"""Where a session has its tokens stand, shown by what attention makes of it: one layer of random queries,
keys and values through a session as it is, against float64 attention at the positions of the script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mosaic_edge.engine import Engine
from mosaic_edge.evaluation.check.clip import Clip
from mosaic_edge.evaluation.check.watched import stream
from mosaic_edge.models.vlm import Attend, EncodedFrame, FloatArray, FrameArray, RopeSpec, Vlm, VlmSpec

Positions = NDArray[np.int64]  # [3, T]: time, row, column; the same three times in one dimension
ALLOWED = 5e-3
"""Of what a question reads: a single picture out of its place makes many times that."""


class OneLayer:
    """The `Vlm` protocol over the shapes of a model and pictures that it made already."""

    def __init__(self, model: Vlm, pictures: Sequence[EncodedFrame]) -> None:
        self.spec: VlmSpec = replace(model.spec, layers=1, hidden=1)
        self._model, self._pictures = model, iter(pictures)
        self._random = np.random.default_rng(5)
        self.keys: list[FloatArray] = []
        self.values: list[FloatArray] = []
        self.query = self.read = np.zeros(0, np.float32)

    def encode(self, frame: FrameArray, pts: float, elapsed: float, number: int) -> EncodedFrame:
        """The next picture: its places alone count."""
        del frame, pts, elapsed, number
        made = next(self._pictures)
        return replace(made, tokens=np.ones((len(made.tokens), 1), np.float32))

    def check(self, height: int, width: int) -> None:
        """The model took this size already."""
        del height, width

    def embed_text(self, ids: Sequence[int]) -> FloatArray:
        """Rows that nobody reads."""
        return np.ones((len(ids), 1), np.float32)

    def tokenize(self, text: str, plain: tuple[int, int] | None = None) -> list[int]:
        """As the model does it."""
        return self._model.tokenize(text, plain)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Nothing is said."""
        del ids
        return ""

    def forward(self, embeds: FloatArray, attend: Attend, want_logits: bool = True) -> FloatArray | None:
        """Random heads; the last block's query and what it read are kept."""
        spec = self.spec
        heads = (spec.q_heads, spec.kv_heads, spec.kv_heads)
        q, k, v = (
            self._random.standard_normal((len(embeds), h, spec.head_dim)).astype(np.float32) for h in heads
        )
        self.query, self.read = q, np.array(attend(0, q, k, v))
        self.keys.append(k)
        self.values.append(v)
        return np.zeros(spec.vocab_size, np.float32) if want_logits else None


def published(spec: VlmSpec, prefix: int, pictures: Sequence[EncodedFrame], question: int) -> Positions:
    """[3, T] by the published rules. In one dimension every token is the next one. Under M-RoPE rows and
    columns count from where the video began (Qwen2-VL), or from each picture's own moment (Qwen3-VL); text
    goes on behind the largest."""
    if not any(spec.rope.sections):
        count = prefix + sum(len(picture.tokens) for picture in pictures) + question
        return np.tile(np.arange(count), (3, 1))
    parts = [np.tile(np.arange(prefix), (3, 1))]

    def write(count: int) -> int:
        at = max((int(part.max()) for part in parts if part.size), default=-1) + 1
        parts.append(np.tile(np.arange(at, at + count), (3, 1)))
        return at + count

    for number, picture in enumerate(pictures):
        corner = write(picture.lead) if spec.rope.grid_follows_time else prefix
        t = picture.t_position if picture.t_position >= 0 else number
        at = np.arange(len(picture.tokens) - picture.lead - picture.trail)
        moment = np.full(len(at), 0 if spec.rope.grid_follows_time else t)
        parts.append(corner + np.stack([moment, at // picture.columns, at % picture.columns]))
        write(picture.trail)
    write(question)
    return np.concatenate(parts, axis=1).astype(np.int64)


def difference(engine: Engine, pictures: Sequence[EncodedFrame], clip: Clip, positions: Positions) -> float:
    """Between what a question reads in a session and what it reads where all stand at `positions`, as a share
    of what it reads; infinity where there are not as many."""
    layer = OneLayer(engine.model, pictures)
    stream(Engine(layer), clip, 1)
    keys, values = np.concatenate(layer.keys), np.concatenate(layer.values)
    if positions.shape[1] != len(keys):
        return float("inf")
    expected = _attention(layer, keys, values, positions)
    return float(np.abs(layer.read - expected).max() / expected.std())


def _attention(layer: OneLayer, k: FloatArray, v: FloatArray, positions: Positions) -> NDArray[np.float64]:
    spec, q = layer.spec, layer.query
    asked, count, group = len(q), len(k), spec.q_heads // spec.kv_heads
    turned_q = rotated(q, positions[:, -asked:], spec.rope)
    turned_k = rotated(k, positions, spec.rope).repeat(group, axis=1)
    scores = spec.scale * np.einsum("qhd,khd->hqk", turned_q, turned_k)
    scores[:, ~np.tri(asked, count, count - asked, dtype=bool)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    read: NDArray[np.float64] = np.einsum("hqk,khd->qhd", weights, v.astype(np.float64).repeat(group, axis=1))
    return read


def rotated(x: NDArray[Any], positions: Positions, rope: RopeSpec) -> NDArray[np.float64]:
    """x [T, H, D] turned as a model's rotary step does it, in float64."""
    out = x.astype(np.float64)
    n = rope.rotary_dim // 2
    if rope.layout == "none" or n == 0:
        return out
    powers = np.asarray(rope.frequencies) if rope.frequencies else rope.theta ** (-np.arange(n) / n)
    angles = (positions[_axes(rope, n)].T * powers)[:, None]  # [T, 1, n]
    half = rope.layout == "half"
    first, second = (slice(0, n), slice(n, 2 * n)) if half else (slice(0, 2 * n, 2), slice(1, 2 * n, 2))
    a, b = out[..., first].copy(), out[..., second].copy()
    out[..., first] = a * np.cos(angles) - b * np.sin(angles)
    out[..., second] = b * np.cos(angles) + a * np.sin(angles)
    return out


def _axes(rope: RopeSpec, n: int) -> NDArray[np.int64]:
    """Of every frequency: 0 time, 1 row, 2 column."""
    if not any(rope.sections):
        return np.zeros(n, np.int64)
    if not rope.sections_interleaved:
        return np.repeat(np.arange(3), rope.sections)
    axes = np.zeros(n, np.int64)
    for axis in (1, 2):
        axes[axis : 3 * rope.sections[axis] : 3] = axis
    return axes
