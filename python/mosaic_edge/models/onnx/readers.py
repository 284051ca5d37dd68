"""Find a decoder graph's attention nodes and read what each one does; refuse what the memory would compute
differently.

Understood: com.microsoft GroupQueryAttention (rotary inside or before it, QKV packed or not, fused QK norm),
MultiHeadAttention and Attention (its own projection included), ONNX Attention (opset 23 and later); before
them com.microsoft RotaryEmbedding or MRotaryEmbedding or ONNX RotaryEmbedding. A mask that the graph makes
itself is run and must be the causal one (causal_mask.py). Every attribute and input is either understood or
refused by name, so that a newer operator never changes the arithmetic unseen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx

from mosaic_edge.models.onnx.causal_mask import CausalProof
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
_LAYOUT_OPS = {"Cast", "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze"}

# Inputs after past_key, past_value by position; "" is harmless (positions and lengths are the memory's
# business).
_GQA_INPUTS = (
    "", "", "", "", "", "", "", "", "", "", "attention_bias", "head_sink", "k_scale", "v_scale", "", "",
)  # fmt: skip
_ONNX_INPUTS = ("", "", "", "", "", "", "nonpad_kv_seqlen")
# query, key, value, bias, key_padding_mask (one sequence has no padding), attention_bias, past_key,
# past_value, ...
_MHA_INPUTS = ("", "", "", "", "", "", "", "", "past_sequence_length", "cache_indirection")
# input, weights, bias, mask_index (as key_padding_mask), past, attention_bias, ...
_MICROSOFT_INPUTS = ("", "", "", "", "", "", "past_sequence_length")
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
    "is_causal": None,
    "softcap": (0.0,),
    "qk_matmul_output_mode": None,
    "softmax_precision": None,
    "left_window_size": (-1,),
    "right_window_size": (-1,),
}
_MHA_ATTRIBUTES: dict[str, tuple[Any, ...] | None] = {
    "num_heads": None,
    "scale": None,
    "unidirectional": None,
    "mask_filter_value": None,
}
_MICROSOFT_ATTRIBUTES: dict[str, tuple[Any, ...] | None] = {
    **_MHA_ATTRIBUTES,
    "qkv_hidden_sizes": None,
    "do_rotary": (0,),
    "rotary_embedding_dim": (0,),
    "past_present_share_buffer": (0,),
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
    for node in index.graph.node:
        if is_attention(node):
            sites.append(_read(node, past, index, proof))
        elif node.op_type in _OTHER_ATTENTION:
            raise GraphCutError(
                f"{label(node)}: this attention operator cannot be cut; "
                "GroupQueryAttention, MultiHeadAttention and Attention can"
            )
        else:
            for name in node.input:
                if name in past and node.op_type != "Shape":
                    raise GraphCutError(
                        f"{label(node)} takes {name}: attention made of single operators cannot be cut; "
                        "export with GroupQueryAttention, MultiHeadAttention or Attention"
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


def is_attention(node: onnx.NodeProto) -> bool:
    """Whether this is one of the operators that can be cut."""
    if node.domain == MICROSOFT:
        return node.op_type in ("GroupQueryAttention", "MultiHeadAttention", "Attention")
    return node.domain in ("", "ai.onnx") and node.op_type == "Attention"


def is_rotary(node: onnx.NodeProto) -> bool:
    """Whether this node rotates queries or keys."""
    return node.op_type in ("RotaryEmbedding", "MRotaryEmbedding", "GemmaRotaryEmbedding")


def _read(
    node: onnx.NodeProto, past: Mapping[str, int], index: GraphIndex, proof: CausalProof
) -> AttentionSite:
    if node.op_type == "GroupQueryAttention":
        return _read_group_query(node, past, index)
    if node.op_type == "MultiHeadAttention":
        return _read_multi_head(node, past, index, proof)
    return (_read_projecting if node.domain == MICROSOFT else _read_onnx)(node, past, index, proof)


def _inputs(node: onnx.NodeProto, known: tuple[str, ...]) -> list[str]:
    """Input names padded with "" to all `known` ones; refuses those with a name in `known`, and more."""
    inputs = [*node.input, *[""] * (len(known) - len(node.input))]
    for i, name in enumerate(inputs):
        meaning = known[i] if i < len(known) else f"number {i}"
        if name and meaning:
            raise GraphCutError(f"{label(node)}: input {meaning} ('{name}') would be lost")
    return inputs


def _layer_of(node: onnx.NodeProto, name: str, past: Mapping[str, int]) -> int:
    if name not in past:
        raise GraphCutError(
            f"{label(node)}: its past keys come from '{name}', not from a past_key_values input"
        )
    return past[name]


def _check_causal(
    node: onnx.NodeProto, mask: str, meaning: str, flag: str, at: dict[str, Any], proof: CausalProof
) -> None:
    """Causal by its own flag or by its mask, and by nothing more than that."""
    if mask:
        if why := proof.refutes(mask):
            raise GraphCutError(f"{label(node)}: input {meaning} ('{mask}') is not the causal mask: {why}")
    elif at.get(flag, 0) != 1:
        raise GraphCutError(f"{label(node)}: {flag}=0 and no mask; only causal attention can be cut")


def _read_group_query(node: onnx.NodeProto, past: Mapping[str, int], index: GraphIndex) -> AttentionSite:
    at = attributes(node)
    _check_attributes(node, at, _GQA_ATTRIBUTES)
    inputs = _inputs(node, _GQA_INPUTS)
    query, key, value, past_key = inputs[:4]
    norm = None
    if inputs[14] or inputs[15]:
        if not (inputs[14] and inputs[15]):
            raise GraphCutError(f"{label(node)}: QK norm with only one of its weights")
        norm = (inputs[14], inputs[15], float(at.get("qk_norm_epsilon", 1e-6)))
    rotary: Rotary | None = None
    nodes: tuple[onnx.NodeProto, ...] = ()
    if at.get("do_rotary", 0):
        rotary = Rotary(inputs[7], inputs[8], interleaved=bool(at.get("rotary_interleaved", 0)))
    elif key:
        rotary, nodes = _rotary_before(node, query, key, index)
    return AttentionSite(
        node, _layer_of(node, past_key, past), "rows" if key else "packed", query, key, value,
        int(at.get("num_heads", 0)), int(at.get("kv_num_heads", 0)), float(at.get("scale", 0.0)), past_key,
        rotary, nodes, norm,
    )  # fmt: skip


def _read_onnx(
    node: onnx.NodeProto, past: Mapping[str, int], index: GraphIndex, proof: CausalProof
) -> AttentionSite:
    at = attributes(node)
    _check_attributes(node, at, _ONNX_ATTRIBUTES)
    query, key, value, mask, past_key, *_ = _inputs(node, _ONNX_INPUTS)
    _check_causal(node, mask, "attn_mask", "is_causal", at, proof)
    layer = _layer_of(node, past_key, past)
    form = "rows" if at.get("q_num_heads") else "heads"
    rotary, nodes = _rotary_before(node, query, key, index)
    shape = index.shape(past_key) or []
    kv_heads = int(at.get("kv_num_heads", 0)) or (shape[1] if len(shape) == 4 else 0)
    q_heads = int(at.get("q_num_heads", 0)) or (_heads_made(query, index) if form == "heads" else 0)
    return AttentionSite(
        node, layer, form, query, key, value, q_heads, kv_heads, float(at.get("scale", 0.0)), past_key,
        rotary, nodes,
    )  # fmt: skip


def _read_multi_head(
    node: onnx.NodeProto, past: Mapping[str, int], index: GraphIndex, proof: CausalProof
) -> AttentionSite:
    at = attributes(node)
    _check_attributes(node, at, _MHA_ATTRIBUTES)
    query, key, value, bias, _, mask, past_key, *_ = _inputs(node, _MHA_INPUTS)
    _check_causal(node, mask, "attention_bias", "unidirectional", at, proof)
    if not key or not value or len(index.shape(key) or (0, 0, 0)) != 3:
        raise GraphCutError(f"{label(node)}: key and value packed or by heads; only [B, T, H * D] can be cut")
    rotary, nodes = (None, ()) if bias else _rotary_before(node, query, key, index)
    heads = int(at.get("num_heads", 0))
    return AttentionSite(
        node, _layer_of(node, past_key, past), "rows", query, key, value, heads, heads,
        float(at.get("scale", 0.0)), past_key, rotary, nodes, bias=bias,
    )  # fmt: skip


def _read_projecting(
    node: onnx.NodeProto, past: Mapping[str, int], index: GraphIndex, proof: CausalProof
) -> AttentionSite:
    """com.microsoft Attention: one weight makes q, k and v."""
    at = attributes(node)
    _check_attributes(node, at, _MICROSOFT_ATTRIBUTES)
    source, weights, bias, _, past_kv, mask, *_ = _inputs(node, _MICROSOFT_INPUTS)
    _check_causal(node, mask, "attention_bias", "unidirectional", at, proof)
    if len(set(at.get("qkv_hidden_sizes", ()))) > 1:
        raise GraphCutError(f"{label(node)}: qkv_hidden_sizes={at['qkv_hidden_sizes']}; they must be equal")
    heads = int(at.get("num_heads", 0))
    return AttentionSite(
        node, _layer_of(node, past_kv, past), "packed", source, "", "", heads, heads,
        float(at.get("scale", 0.0)), past_kv, bias=bias, projection=weights,
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
