"""Attention that an exporter wrote as single operators: MatMul, Softmax, MatMul, the rotation in pieces
before them and the heads of keys and values repeated, as TorchScript exports have it.

Where it begins and ends is found by following the graph: queries and keys before their rotation, values, the
product that ends it. What lies in between is not read: it is run (single_proof.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx

from mosaic_edge.models.onnx.sites import GraphIndex

_MOVES = {"Cast", "Identity", "Reshape", "Transpose", "Unsqueeze", "Expand", "Tile"}
"""They move or repeat numbers; what they do is the proof's business. Their first input is followed."""
_SCALES = {"Mul", "Div"}
_AFTER_SOFTMAX = {"Cast", "Identity", "Dropout", "IsNaN", "Where"}
_HALVES = {"Slice", "Split", "Gather", "Neg", "Identity"}
_DEPTH = 12


@dataclass(frozen=True)
class Pieces:
    """One attention: names of its tensors."""

    node: onnx.NodeProto
    """The MatMul that ends it: [B, H_q, T, D]."""
    layer: int
    query: str
    """[B, H_q, T, D], before its rotation, as the key [B, H_kv, T, D]."""
    key: str
    value: str
    past_key: str
    past_value: str
    concats: tuple[onnx.NodeProto, ...]
    """They lay what is new behind the past."""
    tables: tuple[str, str, str, str]
    """Cosine and sine of the query's rotation, of the key's."""
    scores: str
    """What the Softmax takes."""
    mask: str
    """What is added to the scores."""


def find_pieces(index: GraphIndex, past: Mapping[str, int]) -> list[Pieces]:
    """Every such attention of a graph, in its order. past: inputs of the KV cache -> layer."""
    return _Finder(index, past).all()


class _Finder:
    def __init__(self, index: GraphIndex, past: Mapping[str, int]) -> None:
        self._producer, self._past, self._graph = index.producer, past, index.graph
        self._users: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in index.graph.node:
            for name in node.input:
                self._users[name].append(node)

    def all(self) -> list[Pieces]:
        found = (self._around(node) for node in self._graph.node if node.op_type == "Softmax")
        return [pieces for pieces in found if pieces is not None]

    def _around(self, softmax: onnx.NodeProto) -> Pieces | None:
        end = self._product_behind(softmax)
        value = self._up(end.input[1], self._is_cached) if end is not None else None
        scores = self._up(softmax.input[0], self._is_product, through=("Add",))
        if end is None or value is None or scores is None:
            return None
        product = self._producer[scores]
        key = self._up(product.input[1], self._is_cached)
        query = self._rotated(product.input[0])
        rotated = self._rotated(self._producer[key].input[1]) if key is not None else None
        mask = self._added(softmax.input[0], scores)
        if key is None or query is None or rotated is None or not mask:
            return None
        concats = self._producer[key], self._producer[value]
        past_key, past_value = (concat.input[0] for concat in concats)
        if self._past[past_key] != self._past[past_value]:
            return None
        fresh = concats[1].input[1]
        return Pieces(
            end, self._past[past_key], query[0], rotated[0], fresh, past_key, past_value, concats,
            (*query[1:], *rotated[1:]), softmax.input[0], mask,
        )  # fmt: skip

    def _product_behind(self, softmax: onnx.NodeProto) -> onnx.NodeProto | None:
        """The MatMul of what a Softmax gives with the values."""
        names, seen = list(softmax.output), 0
        while names and seen < _DEPTH:
            seen += 1
            for node in self._users[names.pop(0)]:
                if node.op_type == "MatMul":
                    return node
                if node.op_type in _AFTER_SOFTMAX:
                    names += node.output
        return None

    def _up(
        self, name: str, wanted: Callable[[str], bool], through: tuple[str, ...] = (), depth: int = _DEPTH
    ) -> str | None:
        """The first tensor before `name` that is wanted, past what moves, repeats and scales."""
        node = self._producer.get(name)
        if node is None or not depth:
            return None
        if wanted(name):
            return name
        both = node.op_type in _SCALES or node.op_type in through
        if not both and node.op_type not in _MOVES:
            return None
        for source in node.input if both else node.input[:1]:
            if (found := self._up(source, wanted, through, depth - 1)) is not None:
                return found
        return None

    def _is_product(self, name: str) -> bool:
        return self._producer[name].op_type == "MatMul"

    def _is_cached(self, name: str) -> bool:
        """Whether this is the past with what is new behind it."""
        node = self._producer[name]
        past = [source in self._past for source in node.input]
        return node.op_type == "Concat" and past == [True, False]

    def _rotated(self, name: str) -> tuple[str, str, str] | None:
        """x, cos and sin of x * cos + (x, its halves exchanged) * sin."""
        end = self._up(name, lambda made: self._parts(made) is not None)
        return None if end is None else self._parts(end)

    def _parts(self, name: str) -> tuple[str, str, str] | None:
        node = self._producer[name]
        if node.op_type != "Add":
            return None
        products = [self._producer.get(source) for source in node.input]
        for first, second in (products, products[::-1]):
            if first is None or second is None or {first.op_type, second.op_type} != {"Mul"}:
                return None
            for i in (0, 1):
                for j in (0, 1):
                    if self._exchanges(second.input[j], first.input[i]):
                        return first.input[i], first.input[1 - i], second.input[1 - j]
        return None

    def _exchanges(self, name: str, source: str) -> bool:
        """Whether a tensor is put together of parts of another."""
        node = self._producer.get(name)
        if node is None or node.op_type != "Concat":
            return False
        return all(self._is_part(part, source) for part in node.input)

    def _is_part(self, name: str, source: str) -> bool:
        for _ in range(4):
            node = self._producer.get(name)
            if node is None or node.op_type not in _HALVES:
                return False
            name = node.input[0]
            if name == source:
                return True
        return False

    def _added(self, name: str, scores: str) -> str:
        """What is added to the scores on their way to the Softmax; "" for nothing, or in more than one
        place."""
        masks: list[str] = []
        while name != scores:
            node = self._producer[name]
            ways = [self._up(source, lambda made: made == scores, ("Add",)) for source in node.input]
            at = next((i for i, way in enumerate(ways) if way is not None), 0)
            if node.op_type == "Add":
                masks.append(node.input[1 - at])
            name = node.input[at]
        return masks[0] if len(masks) == 1 else ""
