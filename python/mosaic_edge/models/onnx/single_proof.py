"""Attention of single operators (single_operators.py) as a site: run, it must be what the memory computes in
its place.

Its tables of rotation are made by the graph for the first positions, axis by axis, and its scale is measured;
then each layer's part of the graph gets random queries, keys, values and past, and gives what causal
attention in float64 gives under them, or is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

from mosaic_edge.models.onnx.causal_mask import CausalProof
from mosaic_edge.models.onnx.graph_part import GraphPart
from mosaic_edge.models.onnx.single_operators import Pieces
from mosaic_edge.models.onnx.sites import AttentionSite, GraphCutError, Rotary, label
from mosaic_edge.models.sandbox import OF_THE_MACHINE

_TRIALS = ((0, 5), (3, 4), (7, 1))  # tokens before, tokens now
_ROWS = 1024  # of the tables
_FLOAT = 1
_LOOSE = {np.dtype(np.float32): 1e-4, np.dtype(np.float16): 2e-2}
Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Shape:
    q_heads: int
    kv_heads: int
    head_dim: int


class SingleProof:
    """Turns pieces into sites; tables, scale and shape of the first layer are those of all."""

    def __init__(self, proof: CausalProof) -> None:
        self._proof = proof
        self._index = proof.index
        self._rotary: Rotary | None = None
        self._cos: Array = np.zeros((0, 0))
        self._sin: Array = np.zeros((0, 0))
        self._shape: _Shape | None = None
        self._scale: float | None = None
        self._random = np.random.default_rng(5)

    def site(self, pieces: Pieces) -> AttentionSite:
        """GraphCutError for what is not causal attention, or of tables that differ between layers."""
        who = f"{label(pieces.node)}: attention made of single operators"
        if why := self._proof.refutes(pieces.mask):
            raise GraphCutError(f"{who}: '{pieces.mask}' is not the causal mask: {why}")
        try:
            if self._shape is None:
                self._shape = self._measure_shape(pieces)
            rotary = self._tables(pieces, self._shape)
            if self._scale is None:
                self._scale = self._measure_scale(pieces, self._shape)
            scale = self._scale
            off = max(self._off(pieces, self._shape, scale, *trial) for trial in _TRIALS)
        except ValueError as error:
            raise GraphCutError(f"{who}: {error}") from None
        except OF_THE_MACHINE:
            raise
        except Exception as error:  # ONNX Runtime raises a different class for every cause
            cause = " ".join(str(error).split())[:200]
            raise GraphCutError(f"{who}: it could not be run alone ({cause})") from None
        if not off <= _LOOSE[self._kind(pieces)]:
            raise GraphCutError(
                f"{who}: run alone it is no causal attention (off by {off:.2g} of its largest value)"
            )
        shape = self._shape
        return AttentionSite(
            pieces.node, pieces.layer, "heads", pieces.query, pieces.key, pieces.value, shape.q_heads,
            shape.kv_heads, scale, pieces.past_key, rotary,
        )  # fmt: skip

    def _part(self, outputs: list[str], pieces: Pieces | None = None) -> GraphPart:
        given = {}
        if pieces is not None:
            kind = self._index.inputs[pieces.past_key].type.tensor_type.elem_type
            given = dict.fromkeys((pieces.query, pieces.key, pieces.value), kind)
        part = GraphPart(self._proof.model, self._index, self._proof.folder, outputs, given)
        if part.holds_graphs:
            raise ValueError("a node of it holds a graph of its own")
        return part

    def _kind(self, pieces: Pieces) -> np.dtype[np.floating]:
        single = self._index.inputs[pieces.past_key].type.tensor_type.elem_type == _FLOAT
        return np.dtype(np.float32 if single else np.float16)

    def _measure_shape(self, pieces: Pieces) -> _Shape:
        """Heads and channels: of what the first layer makes of one token."""
        query, key = self._part([pieces.query, pieces.key]).run(0, 1)
        return _Shape(query.shape[1], key.shape[1], query.shape[3])

    def _tables(self, pieces: Pieces, shape: _Shape) -> Rotary:
        """The rotation of a layer; its tables become constants of the graph."""
        part = self._part(list(pieces.tables))
        made = [np.squeeze(table) for table in part.run(0, _ROWS)]
        wanted = (_ROWS, shape.head_dim)
        if any(table.shape != wanted for table in made):
            raise ValueError(
                f"its rotary tables are {[list(t.shape) for t in made]}, expected {list(wanted)}"
            )
        half = shape.head_dim // 2
        cos, sin, *of_keys = made
        if not (
            np.array_equal(cos, of_keys[0])
            and np.array_equal(sin, of_keys[1])
            and all(np.array_equal(table[:, :half], table[:, half:]) for table in (cos, sin))
        ):
            raise ValueError("queries and keys, or the halves of a head, are rotated differently")
        if self._rotary is None:
            sections, in_turns = self._sections(part, half)
            self._rotary = Rotary("mosaic.cos", "mosaic.sin", 0, False, sections, in_turns)
            self._cos, self._sin = cos.astype(np.float64), sin.astype(np.float64)
            for name, table in (("mosaic.cos", cos), ("mosaic.sin", sin)):
                self._index.initializers[name] = numpy_helper.from_array(
                    np.ascontiguousarray(table[:, :half]), name
                )
        elif not (np.array_equal(cos, self._cos) and np.array_equal(sin, self._sin)):
            raise ValueError("it is rotated otherwise than the first layer")
        return self._rotary

    def _sections(self, part: GraphPart, half: int) -> tuple[tuple[int, int, int], bool]:
        """Channels that count time, rows and columns, where positions are of three axes, and whether they
        take turns."""
        name = "position_ids"
        axes = (self._index.shape(name) or [0])[0] if name in part.inputs else 0
        if axes != 3:
            return (0, 0, 0), False
        turns = np.zeros((3, half), bool)
        for axis in range(3):
            positions = np.zeros((3, 1, _ROWS), np.int64)
            positions[axis] = np.arange(_ROWS)
            sin = np.squeeze(part.run(0, _ROWS, {name: positions})[1])[:, :half]
            turns[axis] = np.abs(sin).max(axis=0) > 0
        if not (turns.sum(axis=0) == 1).all():
            raise ValueError("a channel is turned by none or several of time, row and column")
        axis_of = turns.argmax(axis=0)
        t, h, w = (int(n) for n in turns.sum(axis=1))
        in_turns = np.zeros(half, int)
        for axis, count in ((1, h), (2, w)):
            in_turns[axis : 3 * count : 3] = axis
        for interleaved, order in ((False, np.repeat([0, 1, 2], (t, h, w))), (True, in_turns)):
            if np.array_equal(axis_of, order):
                return (t, h, w), interleaved
        raise ValueError("time, rows and columns are laid out over its channels in no known order")

    def _measure_scale(self, pieces: Pieces, shape: _Shape) -> float:
        """What the product of a query and a key is multiplied with, apart from the tables' own factor."""
        part = self._part([pieces.scores], pieces)
        ratios = []
        for _ in range(4):
            q, k, v, past = self._drawn(pieces, shape, 0, 1)
            (made,) = part.run(0, 1, self._fed(part, pieces, q, k, v, *past))
            group = shape.q_heads // shape.kv_heads
            plain = (q.astype(float) * np.repeat(k, group, axis=1)).sum(-1)[0, :, 0]
            best = int(np.abs(plain).argmax())
            ratios.append(float(made.reshape(shape.q_heads)[best]) / plain[best])
        measured = float(np.median(ratios)) / self._cos[0, 0] ** 2
        usual = 1.0 / math.sqrt(shape.head_dim)
        return 0.0 if abs(measured / usual - 1.0) < 2e-3 else float(f"{measured:.6g}")

    def _drawn(
        self, pieces: Pieces, shape: _Shape, before: int, now: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
        def some(heads: int, tokens: int) -> np.ndarray:
            return self._random.standard_normal((1, heads, tokens, shape.head_dim)).astype(self._kind(pieces))

        kv = shape.kv_heads
        return some(shape.q_heads, now), some(kv, now), some(kv, now), (some(kv, before), some(kv, before))

    def _fed(self, part: GraphPart, pieces: Pieces, *arrays: np.ndarray) -> dict[str, np.ndarray]:
        names = (pieces.query, pieces.key, pieces.value, pieces.past_key, pieces.past_value)
        return {name: x for name, x in zip(names, arrays, strict=True) if part.takes(name)}

    def _off(self, pieces: Pieces, shape: _Shape, scale: float, before: int, now: int) -> float:
        """How far the graph is from causal attention, as a share of the largest value."""
        q, k, v, past = self._drawn(pieces, shape, before, now)
        part = self._part([pieces.node.output[0]], pieces)
        (made,) = part.run(before, now, self._fed(part, pieces, q, k, v, *past))
        rows = slice(before, before + now)
        keys = np.concatenate([past[0].astype(float), self._rotate(k, rows)], axis=2)
        values = np.concatenate([past[1], v], axis=2).astype(float)
        group = shape.q_heads // shape.kv_heads
        keys, values = np.repeat(keys, group, axis=1), np.repeat(values, group, axis=1)
        scores = self._rotate(q, rows) @ keys.swapaxes(2, 3) * (scale or 1.0 / math.sqrt(shape.head_dim))
        future = np.arange(before + now)[None] > np.arange(before, before + now)[:, None]
        weights = np.exp(np.where(future, -np.inf, scores - scores.max(-1, keepdims=True)))
        expected = weights / weights.sum(-1, keepdims=True) @ values
        if made.shape != expected.shape:
            raise ValueError(f"it gives {list(made.shape)}, expected {list(expected.shape)}")
        return float(np.abs(made - expected).max() / np.abs(expected).max())

    def _rotate(self, x: np.ndarray, rows: slice) -> Array:
        half = x.shape[-1] // 2
        turned = np.concatenate([-x[..., half:], x[..., :half]], axis=-1).astype(float)
        return x.astype(float) * self._cos[rows] + turned * self._sin[rows]
