"""What a decoder graph's attention nodes are, once read (readers.py), and the graph as an index."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from mosaic_edge.models.vlm import ModelError

MICROSOFT = "com.microsoft"
_PAST = re.compile(
    r"past_key_values\.(\d+)\.(?:\w+\.)?(?:key|value)$|past_(?:key|value)s?[._](\d+)$|past_(\d+)$"
)


class GraphCutError(ModelError):
    """A decoder graph that cannot be cut, naming the node and its operator."""


def label(node: onnx.NodeProto) -> str:
    """`Op 'name'`, with the domain when it is not ONNX's own."""
    op = f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
    return f"{op} '{node.name or (node.output[0] if node.output else '?')}'"


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values."""
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


@dataclass(frozen=True)
class Rotary:
    """One rotation: table names, channels rotated (0: all the tables hold), pairing, M-RoPE sections."""

    cos: str
    sin: str
    rotary_dim: int = 0
    interleaved: bool = False
    sections: tuple[int, int, int] = (0, 0, 0)
    sections_interleaved: bool = False


@dataclass(frozen=True)
class AttentionSite:
    """One attention node, read. Heads are 0 where the node does not say; scale 0 means 1/sqrt(head_dim)."""

    node: onnx.NodeProto
    layer: int
    form: str
    """`packed` (q, k, v in one tensor [B, T, (H_q + 2 H_kv) D]), `rows` ([B, T, H D]) or `heads` ([B, H, T,
    D]).
    """
    query: str
    key: str
    value: str
    q_heads: int
    kv_heads: int
    scale: float
    past_key: str
    rotary: Rotary | None = None
    rotary_nodes: tuple[onnx.NodeProto, ...] = ()
    norm: tuple[str, str, float] | None = None
    """Fused QK norm: names of the q and k weights [D], epsilon."""
    bias: str = ""
    """Added to q, k, v by the node itself: [(H_q + 2 H_kv) D]."""
    projection: str = ""
    """Weights [hidden, (H_q + 2 H_kv) D] by which the node itself makes packed q, k, v from `query`."""


@dataclass
class GraphIndex:
    """Who makes and who uses each tensor of a graph."""

    graph: onnx.GraphProto
    producer: dict[str, onnx.NodeProto] = field(default_factory=dict)
    initializers: dict[str, onnx.TensorProto] = field(default_factory=dict)
    inputs: dict[str, onnx.ValueInfoProto] = field(default_factory=dict)
    values: dict[str, onnx.ValueInfoProto] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in self.graph.node:
            self.producer.update((name, node) for name in node.output if name)
        self.initializers = {t.name: t for t in self.graph.initializer}
        self.inputs = {v.name: v for v in self.graph.input if v.name not in self.initializers}
        self.values = {v.name: v for v in (*self.graph.value_info, *self.graph.input, *self.graph.output)}

    def constant(self, name: str, folder: str = "") -> NDArray[Any] | None:
        """The value of an initializer (its external data in `folder`) or a Constant node; None for what is
        computed.
        """
        tensor = self.initializers.get(name)
        if tensor is None:
            node = self.producer.get(name)
            tensor = (
                attributes(node).get("value") if node is not None and node.op_type == "Constant" else None
            )
        if tensor is None:
            return None
        if uses_external_data(tensor):
            copy = onnx.TensorProto()
            copy.CopyFrom(tensor)
            try:
                load_external_data_for_tensor(copy, folder)
            except Exception as error:  # ONNX's own class, for a link that leads out
                raise GraphCutError(f"external data of '{name}': {' '.join(str(error).split())}") from None
            tensor = copy
        try:
            return numpy_helper.to_array(tensor)
        except (ValueError, TypeError) as error:
            raise GraphCutError(f"tensor '{name}' cannot be read ({error})") from None

    def shape(self, name: str) -> list[int] | None:
        """Declared shape with 0 for what is not a number; None if nothing is declared."""
        if name in self.initializers:
            return list(self.initializers[name].dims)
        value = self.values.get(name)
        if value is None or not value.type.tensor_type.HasField("shape"):
            return None
        return [d.dim_value if d.HasField("dim_value") else 0 for d in value.type.tensor_type.shape.dim]


def past_layer(name: str) -> int | None:
    """The layer a KV-cache input belongs to, or None for any other input."""
    match = _PAST.match(name)
    return int(match[1] or match[2] or match[3]) if match else None
