"""Find a decoder graph's attention nodes and read what each one does; refuse what the memory would compute
differently.

Understood: com.microsoft GroupQueryAttention (rotary inside or before it, QKV packed or not, fused QK norm)
and ONNX Attention (opset 23 and later), with com.microsoft RotaryEmbedding or MRotaryEmbedding or ONNX
RotaryEmbedding before. Every attribute and input is either understood or refused by name, so that a newer
operator never changes the arithmetic unseen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from mosaic_edge.models.vlm import ModelError

MICROSOFT = "com.microsoft"
_PAST = re.compile(r"past_key_values\.(\d+)\.(?:\w+\.)?(key|value)$|past_(key|value)s?[._](\d+)$")
_OTHER_ATTENTION = {
    "MultiHeadAttention",
    "PagedAttention",
    "SparseAttention",
    "DecoderMaskedMultiHeadAttention",
    "DecoderMaskedSelfAttention",
    "PackedMultiHeadAttention",
    "LinearAttention",
}
_LAYOUT_OPS = {"Cast", "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze"}

# Inputs after past_key, past_value by position; "" is harmless (positions and lengths are the memory's
# business).
_GQA_INPUTS = (
    "", "", "", "", "", "", "", "", "", "", "attention_bias", "head_sink", "k_scale", "v_scale", "", "",
)  # fmt: skip
_ONNX_INPUTS = ("", "", "", "attn_mask", "", "", "nonpad_kv_seqlen")
# Attribute -> values under which it does nothing. None: read elsewhere in this file.
_GQA_ATTRIBUTES: dict[str, tuple[Any, ...] | None] = {
    "num_heads": None,
    "kv_num_heads": None,
    "scale": None,
    "do_rotary": None,
    "rotary_interleaved": None,
    "qk_norm_epsilon": None,
    "softcap": (0.0,),
    "local_window_size": (-1,),
    "smooth_softmax": (0, -1),
    "causal": (1,),
    "qk_output": (0,),
    "k_quant_type": (b"NONE", b""),
    "v_quant_type": (b"NONE", b""),
    "kv_cache_bit_width": (0,),
    "sliding_window_cache": (0,),
}
_ONNX_ATTRIBUTES: dict[str, tuple[Any, ...] | None] = {
    "q_num_heads": None,
    "kv_num_heads": None,
    "scale": None,
    "is_causal": (1,),
    "softcap": (0.0,),
    "qk_matmul_output_mode": None,
    "softmax_precision": None,
    "left_window_size": (-1,),
    "right_window_size": (-1,),
}
_ROTARY_ATTRIBUTES: dict[str, tuple[Any, ...] | None] = {
    "interleaved": None,
    "num_heads": None,
    "rotary_embedding_dim": None,
    "mrope_section": None,
    "mrope_layout": None,
    "is_packed_batching": (0,),
    "scale": (1.0,),
}


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
            load_external_data_for_tensor(copy, folder)
            tensor = copy
        return numpy_helper.to_array(tensor)

    def shape(self, name: str) -> list[int] | None:
        """Declared shape with 0 for what is not a number; None if nothing is declared."""
        if name in self.initializers:
            return list(self.initializers[name].dims)
        value = self.values.get(name)
        if value is None or not value.type.tensor_type.HasField("shape"):
            return None
        return [d.dim_value if d.HasField("dim_value") else 0 for d in value.type.tensor_type.shape.dim]


def find_sites(index: GraphIndex) -> list[AttentionSite]:
    """All attention nodes in layer order. Raises GraphCutError for what is not exactly understood."""
    past = {name: layer for name in index.inputs if (layer := past_layer(name)) is not None}
    if not past:
        raise GraphCutError(
            f"the decoder has no past_key_values.N.key inputs (it has: {', '.join(index.inputs) or 'none'})"
        )
    sites: list[AttentionSite] = []
    for node in index.graph.node:
        if is_attention(node):
            sites.append(_read(node, past, index))
        elif node.op_type in _OTHER_ATTENTION or (node.domain == MICROSOFT and node.op_type == "Attention"):
            raise GraphCutError(
                f"{label(node)}: this attention operator cannot be cut; GroupQueryAttention and Attention can"
            )
        else:
            for name in node.input:
                if name in past and node.op_type != "Shape":
                    raise GraphCutError(
                        f"{label(node)} takes {name}: attention made of single operators cannot be cut; "
                        "export with GroupQueryAttention or ONNX Attention"
                    )
    bypassed = {id(rotary) for site in sites for rotary in site.rotary_nodes}
    for node in index.graph.node:
        if is_rotary(node) and id(node) not in bypassed:
            raise GraphCutError(
                f"{label(node)} is not directly before an attention node that could rotate in its place"
            )
    layers = [site.layer for site in sites]
    if layers != list(range(len(layers))) or len(layers) != len(set(past.values())):
        raise GraphCutError(
            f"attention nodes cover layers {layers}, past_key_values layers {sorted(set(past.values()))}"
        )
    return sites


def past_layer(name: str) -> int | None:
    """The layer a KV-cache input belongs to, or None for any other input."""
    match = _PAST.match(name)
    return int(match[1] or match[4]) if match else None


def is_attention(node: onnx.NodeProto) -> bool:
    """Whether this is one of the two operators that can be cut."""
    return (node.domain == MICROSOFT and node.op_type == "GroupQueryAttention") or (
        node.domain in ("", "ai.onnx") and node.op_type == "Attention"
    )


def is_rotary(node: onnx.NodeProto) -> bool:
    """Whether this node rotates queries or keys."""
    return node.op_type in ("RotaryEmbedding", "MRotaryEmbedding", "GemmaRotaryEmbedding")


def _read(node: onnx.NodeProto, past: Mapping[str, int], index: GraphIndex) -> AttentionSite:
    microsoft = node.domain == MICROSOFT
    at = attributes(node)
    _check_attributes(node, at, _GQA_ATTRIBUTES if microsoft else _ONNX_ATTRIBUTES)
    if not microsoft and at.get("is_causal", 0) != 1:
        raise GraphCutError(f"{label(node)}: is_causal=0; only causal attention can be cut")
    known = _GQA_INPUTS if microsoft else _ONNX_INPUTS
    inputs = [*node.input, *[""] * (len(known) - len(node.input))]
    for at_input, name in enumerate(inputs):
        meaning = known[at_input] if at_input < len(known) else f"number {at_input}"
        if name and meaning:
            raise GraphCutError(f"{label(node)}: input {meaning} ('{name}') would be lost")
    past_key = inputs[3] if microsoft else inputs[4]
    if past_key not in past:
        raise GraphCutError(
            f"{label(node)}: its past keys come from '{past_key}', not from a past_key_values input"
        )
    query, key, value = inputs[:3]
    form = "packed" if not key else "rows" if microsoft or at.get("q_num_heads") else "heads"
    norm = None
    if microsoft and (inputs[14] or inputs[15]):
        if not (inputs[14] and inputs[15]):
            raise GraphCutError(f"{label(node)}: QK norm with only one of its weights")
        norm = (inputs[14], inputs[15], float(at.get("qk_norm_epsilon", 1e-6)))
    if microsoft and at.get("do_rotary", 0):
        rotary: Rotary | None = Rotary(
            inputs[7], inputs[8], interleaved=bool(at.get("rotary_interleaved", 0))
        )
        nodes: tuple[onnx.NodeProto, ...] = ()
    elif form == "packed":
        rotary, nodes = None, ()
    else:
        rotary, nodes = _rotary_before(node, query, key, index)
    shape = index.shape(past_key) or []
    kv_heads = int(at.get("kv_num_heads", 0)) or (shape[1] if len(shape) == 4 else 0)
    q_heads = int(at.get("num_heads" if microsoft else "q_num_heads", 0))
    if not q_heads and form == "heads":
        q_heads = _heads_made(query, index)
    return AttentionSite(
        node, past[past_key], form, query, key, value, q_heads, kv_heads, float(at.get("scale", 0.0)),
        past_key,
        rotary, nodes, norm,
    )  # fmt: skip


def _heads_made(query: str, index: GraphIndex) -> int:
    """H of a query [B, H, T, D]: as declared, or as the Reshape to [B, T, H, D] before it says; 0 if neither
    does.
    """
    shape = index.shape(query)
    if shape and len(shape) == 4 and shape[1]:
        return shape[1]
    name = query
    for _ in range(8):
        node = index.producer.get(name)
        if node is None or not (is_rotary(node) or node.op_type in _LAYOUT_OPS):
            return 0
        if node.op_type == "Reshape":
            made = index.constant(node.input[1])
            return int(made[2]) if made is not None and len(made) == 4 and made[2] > 0 else 0
        name = node.input[0]
    return 0


def _rotary_before(
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
        if node is None or not (is_rotary(node) or node.op_type in _LAYOUT_OPS):
            return None
        if is_rotary(node):
            return node
        name = node.input[0]
    return None


def _read_rotary(node: onnx.NodeProto) -> Rotary:
    at = attributes(node)
    if node.op_type == "GemmaRotaryEmbedding":
        raise GraphCutError(f"{label(node)}: this rotary operator cannot be cut")
    _check_attributes(node, at, _ROTARY_ATTRIBUTES)
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


def _check_attributes(
    node: onnx.NodeProto, at: dict[str, Any], known: dict[str, tuple[Any, ...] | None]
) -> None:
    for name, value in at.items():
        if name not in known:
            raise GraphCutError(f"{label(node)}: unknown attribute {name}={value!r}")
        neutral = known[name]
        if neutral is not None and value not in neutral:
            raise GraphCutError(
                f"{label(node)}: {name}={value!r} changes the attention; only {neutral[0]!r} can be cut"
            )
