"""The rotation before an attention node: which nodes do it, and with what tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx

from mosaic_edge.models.onnx.sites import MICROSOFT, GraphCutError, GraphIndex, Rotary, attributes, label

LAYOUT_OPS = {"Cast", "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze"}
"""Nodes that may stand between a rotation and the attention: they move numbers and change none."""

_ATTRIBUTES: dict[str, tuple[Any, ...] | None] = {
    "interleaved": None,
    "num_heads": None,
    "rotary_embedding_dim": None,
    "mrope_section": None,
    "mrope_layout": None,
    "is_packed_batching": (0,),
    "scale": (1.0,),
}


def is_rotary(node: onnx.NodeProto) -> bool:
    """Whether this node rotates queries or keys."""
    return node.op_type in ("RotaryEmbedding", "MRotaryEmbedding", "GemmaRotaryEmbedding")


def rotary_before(
    node: onnx.NodeProto, query: str, key: str, index: GraphIndex
) -> tuple[Rotary | None, tuple[onnx.NodeProto, ...]]:
    """The rotation of both query and key just before an attention node, past casts and reshapes."""
    found = [_walk_to_rotary(name, index) for name in (query, key)]
    if found == [None, None]:
        return None, ()
    if found[0] is None or found[1] is None:
        raise GraphCutError(f"{label(node)}: only one of query and key is rotated by a RotaryEmbedding")
    q, k = _read_rotary(found[0]), _read_rotary(found[1])
    if q != k:
        raise GraphCutError(f"{label(node)}: query and key are rotated differently ({q} and {k})")
    return q, (found[0], found[1])


def _walk_to_rotary(name: str, index: GraphIndex) -> onnx.NodeProto | None:
    for _ in range(8):
        node = index.producer.get(name)
        if node is None or not (is_rotary(node) or node.op_type in LAYOUT_OPS):
            return None
        if is_rotary(node):
            return node
        name = node.input[0]
    return None


def _read_rotary(node: onnx.NodeProto) -> Rotary:
    at = attributes(node)
    if node.op_type == "GemmaRotaryEmbedding":
        raise GraphCutError(f"{label(node)}: this rotary operator cannot be cut")
    check_attributes(node, at, _ATTRIBUTES)
    cos, sin = (node.input[2], node.input[3]) if node.domain == MICROSOFT else (node.input[1], node.input[2])
    t, h, w = (int(n) for n in at.get("mrope_section", (0, 0, 0)))
    return Rotary(
        cos,
        sin,
        int(at.get("rotary_embedding_dim", 0)),
        bool(at.get("interleaved", 0)),
        (t, h, w),
        bool(at.get("mrope_layout", 0)),
    )


def check_attributes(
    node: onnx.NodeProto, at: Mapping[str, Any], known: Mapping[str, tuple[Any, ...] | None]
) -> None:
    """Refuse an attribute that is not `known`, or has a value beside those under which it does nothing (None:
    its value is read).
    """
    for name, value in at.items():
        if name not in known:
            raise GraphCutError(f"{label(node)}: unknown attribute {name}={value!r}")
        neutral = known[name]
        if neutral is not None and value not in neutral:
            raise GraphCutError(
                f"{label(node)}: {name}={value!r} changes the attention; only {neutral[0]!r} can be cut"
            )
