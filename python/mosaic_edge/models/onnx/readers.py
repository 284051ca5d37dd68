"""Find a decoder graph's attention nodes and read what each one does; refuse what the memory would compute
differently.

READERS is the list of what is understood; before those nodes com.microsoft RotaryEmbedding or
MRotaryEmbedding or ONNX RotaryEmbedding (rotary.py); attention of single operators is found and proven by
running it (single_operators.py, single_proof.py). A mask that the graph makes itself is run and must be the
causal one (causal_mask.py). Every attribute and input is either understood or refused by name, so that a
newer operator never changes the arithmetic unseen. A new node is one entry of READERS and its function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from mosaic_edge.models.onnx.causal_mask import CausalProof
from mosaic_edge.models.onnx.rotary import LAYOUT_OPS, check_attributes, is_rotary, rotary_before
from mosaic_edge.models.onnx.single_operators import find_pieces
from mosaic_edge.models.onnx.single_proof import SingleProof
from mosaic_edge.models.onnx.sites import (
    MICROSOFT,
    AttentionSite,
    GraphCutError,
    GraphIndex,
    Rotary,
    attributes,
    label,
    past_layer,
)

_OTHER_ATTENTION = {
    "PagedAttention",
    "SparseAttention",
    "DecoderMaskedMultiHeadAttention",
    "DecoderMaskedSelfAttention",
    "PackedMultiHeadAttention",
    "LinearAttention",
}


@dataclass(frozen=True)
class Graph:
    """What a node is read in."""

    past: Mapping[str, int]
    """Inputs of the KV cache -> layer."""
    index: GraphIndex
    proof: CausalProof


@dataclass(frozen=True)
class Node:
    """An attention node whose inputs and attributes have been looked over."""

    proto: onnx.NodeProto
    inputs: list[str]
    """Names by position, "" where one is absent; as long as Reader.inputs."""
    at: Mapping[str, Any]
    """Attributes."""

    @property
    def scale(self) -> float:
        """Multiplies q.k; 0: 1/sqrt(head_dim)."""
        return float(self.at.get("scale", 0.0))


@dataclass(frozen=True)
class Reader:
    """How one operator is read."""

    inputs: tuple[str, ...]
    """By position: "" for what is read, or harmless (positions and lengths are the memory's business); the
    name of one that would be lost, and so must be absent."""
    attributes: Mapping[str, tuple[Any, ...] | None]
    """Attribute -> values under which it does nothing. None: its value is read."""
    read: Callable[[Node, Graph], AttentionSite]


def find_sites(index: GraphIndex, proof: CausalProof) -> list[AttentionSite]:
    """All attention nodes in layer order; `proof` says of a mask whether it is the causal one. Raises
    GraphCutError for what is not exactly understood.
    """
    past = {name: layer for name in index.inputs if (layer := past_layer(name)) is not None}
    if not past:
        raise GraphCutError(
            f"the decoder has no past_key_values.N.key inputs (it has: {', '.join(index.inputs) or 'none'})"
        )
    sites: list[AttentionSite] = []
    single = {pieces.node.output[0]: pieces for pieces in find_pieces(index, past)}
    laid = {concat.output[0] for pieces in single.values() for concat in pieces.concats}
    prover = SingleProof(proof)
    for node in index.graph.node:
        reader = reader_of(node)
        if node.output and (pieces := single.get(node.output[0])) is not None:
            sites.append(prover.site(pieces))
        elif reader is not None:
            sites.append(_read(node, reader, Graph(past, index, proof)))
        elif node.op_type in _OTHER_ATTENTION:
            raise GraphCutError(
                f"{label(node)}: this attention operator cannot be cut; "
                "GroupQueryAttention, MultiHeadAttention and Attention can"
            )
        else:
            for name in node.input:
                if name in past and node.op_type != "Shape" and node.output[0] not in laid:
                    raise GraphCutError(
                        f"{label(node)} takes {name}: attention made of single operators in no known "
                        "order cannot be cut; export with GroupQueryAttention or Attention"
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


def reader_of(node: onnx.NodeProto) -> Reader | None:
    """How this node is read; None for one that is no attention, or cannot be cut."""
    return READERS.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type))


def _read(proto: onnx.NodeProto, reader: Reader, graph: Graph) -> AttentionSite:
    at = attributes(proto)
    check_attributes(proto, at, reader.attributes)
    inputs = [*proto.input, *[""] * (len(reader.inputs) - len(proto.input))]
    for i, name in enumerate(inputs):
        meaning = reader.inputs[i] if i < len(reader.inputs) else f"number {i}"
        if name and meaning:
            raise GraphCutError(f"{label(proto)}: input {meaning} ('{name}') would be lost")
    return reader.read(Node(proto, inputs, at), graph)


def _layer_of(node: Node, name: str, graph: Graph) -> int:
    if name not in graph.past:
        raise GraphCutError(
            f"{label(node.proto)}: its past keys come from '{name}', not from a past_key_values input"
        )
    return graph.past[name]


def _check_causal(node: Node, mask: str, meaning: str, flag: str, graph: Graph) -> None:
    """Causal by its own flag or by its mask, and by nothing more than that."""
    who = label(node.proto)
    if mask:
        if why := graph.proof.refutes(mask):
            raise GraphCutError(f"{who}: input {meaning} ('{mask}') is not the causal mask: {why}")
    elif node.at.get(flag, 0) != 1:
        raise GraphCutError(f"{who}: {flag}=0 and no mask; only causal attention can be cut")


def _read_group_query(node: Node, graph: Graph) -> AttentionSite:
    """com.microsoft GroupQueryAttention: rotary inside or before it, QKV packed or not, fused QK norm."""
    at, inputs = node.at, node.inputs
    query, key, value, past_key = inputs[:4]
    norm = None
    if inputs[14] or inputs[15]:
        if not (inputs[14] and inputs[15]):
            raise GraphCutError(f"{label(node.proto)}: QK norm with only one of its weights")
        norm = (inputs[14], inputs[15], float(at.get("qk_norm_epsilon", 1e-6)))
    rotary: Rotary | None = None
    nodes: tuple[onnx.NodeProto, ...] = ()
    if at.get("do_rotary", 0):
        rotary = Rotary(inputs[7], inputs[8], interleaved=bool(at.get("rotary_interleaved", 0)))
    elif key:
        rotary, nodes = rotary_before(node.proto, query, key, graph.index)
    return AttentionSite(
        node.proto, _layer_of(node, past_key, graph), "rows" if key else "packed", query, key, value,
        int(at.get("num_heads", 0)), int(at.get("kv_num_heads", 0)), node.scale, past_key, rotary, nodes,
        norm,
    )  # fmt: skip


def _read_onnx(node: Node, graph: Graph) -> AttentionSite:
    """ONNX Attention (opset 23 and later)."""
    at, index = node.at, graph.index
    query, key, value, mask, past_key, *_ = node.inputs
    _check_causal(node, mask, "attn_mask", "is_causal", graph)
    layer = _layer_of(node, past_key, graph)
    form = "rows" if at.get("q_num_heads") else "heads"
    rotary, nodes = rotary_before(node.proto, query, key, index)
    shape = index.shape(past_key) or []
    kv_heads = int(at.get("kv_num_heads", 0)) or (shape[1] if len(shape) == 4 else 0)
    q_heads = int(at.get("q_num_heads", 0)) or (_heads_made(query, index) if form == "heads" else 0)
    return AttentionSite(
        node.proto, layer, form, query, key, value, q_heads, kv_heads, node.scale, past_key, rotary, nodes
    )


def _read_multi_head(node: Node, graph: Graph) -> AttentionSite:
    """com.microsoft MultiHeadAttention."""
    query, key, value, bias, _, mask, past_key, *_ = node.inputs
    _check_causal(node, mask, "attention_bias", "unidirectional", graph)
    if not key or not value or len(graph.index.shape(key) or (0, 0, 0)) != 3:
        raise GraphCutError(
            f"{label(node.proto)}: key and value packed or by heads; only [B, T, H * D] can be cut"
        )
    rotary, nodes = (None, ()) if bias else rotary_before(node.proto, query, key, graph.index)
    heads = int(node.at.get("num_heads", 0))
    return AttentionSite(
        node.proto, _layer_of(node, past_key, graph), "rows", query, key, value, heads, heads, node.scale,
        past_key, rotary, nodes, bias=bias,
    )  # fmt: skip


def _read_projecting(node: Node, graph: Graph) -> AttentionSite:
    """com.microsoft Attention: one weight makes q, k and v."""
    source, weights, bias, _, past_kv, mask, *_ = node.inputs
    _check_causal(node, mask, "attention_bias", "unidirectional", graph)
    sizes = node.at.get("qkv_hidden_sizes", ())
    if len(set(sizes)) > 1:
        raise GraphCutError(f"{label(node.proto)}: qkv_hidden_sizes={sizes}; they must be equal")
    heads = int(node.at.get("num_heads", 0))
    return AttentionSite(
        node.proto, _layer_of(node, past_kv, graph), "packed", source, "", "", heads, heads, node.scale,
        past_kv, bias=bias, projection=weights,
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
        if node is None or not (is_rotary(node) or node.op_type in LAYOUT_OPS):
            return 0
        if node.op_type == "Reshape":
            made = index.constant(node.input[1])
            return int(made[2]) if made is not None and len(made) == 4 and made[2] > 0 else 0
        name = node.input[0]
    return 0


_MASKED: Mapping[str, tuple[Any, ...] | None] = {
    "num_heads": None,
    "scale": None,
    "unidirectional": None,
    "mask_filter_value": None,
}
READERS: Mapping[tuple[str, str], Reader] = {
    (MICROSOFT, "GroupQueryAttention"): Reader(
        (*[""] * 10, "attention_bias", "head_sink", "k_scale", "v_scale", "", ""),
        {
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
        },
        _read_group_query,
    ),
    # query, key, value, bias, key_padding_mask (one sequence has no padding), attention_bias, past_key,
    # past_value, ...
    (MICROSOFT, "MultiHeadAttention"): Reader(
        (*[""] * 8, "past_sequence_length", "cache_indirection"), _MASKED, _read_multi_head
    ),
    # input, weights, bias, mask_index (as key_padding_mask), past, attention_bias, ...
    (MICROSOFT, "Attention"): Reader(
        (*[""] * 6, "past_sequence_length"),
        {
            **_MASKED,
            "qkv_hidden_sizes": None,
            "do_rotary": (0,),
            "rotary_embedding_dim": (0,),
            "past_present_share_buffer": (0,),
        },
        _read_projecting,
    ),
    ("", "Attention"): Reader(
        (*[""] * 6, "nonpad_kv_seqlen"),
        {
            "q_num_heads": None,
            "kv_num_heads": None,
            "scale": None,
            "is_causal": None,
            "softcap": (0.0,),
            "qk_matmul_output_mode": None,
            "softmax_precision": None,
            "left_window_size": (-1,),
            "right_window_size": (-1,),
        },
        _read_onnx,
    ),
}
"""(domain, operator) -> how it is read."""
