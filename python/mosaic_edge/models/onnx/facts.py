"""What a decoder graph says about itself: heads, scale, rotation and the types of its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto

from mosaic_edge.models.onnx.sites import (
    AttentionSite,
    GraphCutError,
    GraphIndex,
    Rotary,
    attributes,
    label,
)
from mosaic_edge.models.rope import recover_frequencies, recover_theta
from mosaic_edge.models.vlm import RopeSpec


@dataclass(frozen=True)
class DecoderFacts:
    """The part of VlmSpec a decoder graph decides. kv_type: ONNX element type of its keys and values."""

    layers: int
    q_heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: RopeSpec
    kv_type: int


def read_facts(
    index: GraphIndex, sites: list[AttentionSite], hints: Mapping[str, object], folder: str
) -> DecoderFacts:
    """Read and cross-check the facts of all attention nodes. Raises GraphCutError if layers differ or facts
    are missing.
    """
    kv_type = index.inputs[sites[0].past_key].type.tensor_type.elem_type
    if kv_type not in (TensorProto.FLOAT, TensorProto.FLOAT16):
        name = TensorProto.DataType.Name(kv_type)
        raise GraphCutError(
            f"{label(sites[0].node)}: a key-value cache of {name} cannot be cut, only FLOAT or FLOAT16"
        )
    ropes: dict[Rotary, tuple[RopeSpec, float]] = {}
    facts = [(*_site_facts(index, site, hints, folder, ropes), len(sites), kv_type) for site in sites]
    for site, fact in zip(sites, facts, strict=True):
        if fact != facts[0]:
            raise GraphCutError(
                f"{label(site.node)}: layer {site.layer} has {fact[:5]}, layer 0 has {facts[0][:5]}"
            )
    q_heads, kv_heads, head_dim, scale, rope, layers, _ = facts[0]
    return DecoderFacts(layers, q_heads, kv_heads, head_dim, scale, rope, kv_type)


def _site_facts(
    index: GraphIndex,
    site: AttentionSite,
    hints: Mapping[str, object],
    folder: str,
    ropes: dict[Rotary, tuple[RopeSpec, float]],
) -> tuple[int, int, int, float, RopeSpec]:
    q_heads = site.q_heads or _hint(hints, "num_attention_heads")
    kv_heads = site.kv_heads or _hint(hints, "num_key_value_heads")
    if not q_heads or not kv_heads:
        raise GraphCutError(f"{label(site.node)}: neither the node nor config.json tells its number of heads")
    if q_heads % kv_heads:
        raise GraphCutError(f"{label(site.node)}: {q_heads} query heads cannot share {kv_heads} KV heads")
    head_dim = _head_dim(index, site, q_heads, kv_heads) or _hint(hints, "head_dim")
    if not head_dim:
        raise GraphCutError(f"{label(site.node)}: neither the graph nor config.json tells the head size")
    if site.rotary is None:
        rope, factor = RopeSpec(0, 0.0, "none"), 1.0
    else:
        if site.rotary not in ropes:
            ropes[site.rotary] = _rope(index, site, site.rotary, head_dim, hints, folder)
        rope, factor = ropes[site.rotary]
    scale = site.scale or 1.0 / math.sqrt(head_dim)
    return q_heads, kv_heads, head_dim, scale * factor**2, rope


def _hint(hints: Mapping[str, object], name: str) -> int:
    value = hints.get(name, 0)
    return int(value) if isinstance(value, int | float) else 0


def _head_dim(index: GraphIndex, site: AttentionSite, q_heads: int, kv_heads: int) -> int:
    """From the cache's declared shape, else from the width of the query projection; 0 if neither is."""
    for name in (site.past_key, site.node.output[1] if len(site.node.output) > 1 else ""):
        shape = index.shape(name)
        if shape and len(shape) in (4, 5) and shape[-1]:  # [B, H, P, D], or [2, B, H, P, D] of both
            return shape[-1]
    heads = q_heads + 2 * kv_heads if site.form == "packed" else 1 if site.form == "heads" else q_heads
    shape = index.shape(site.projection or site.query)
    if shape and shape[-1]:
        return shape[-1] // heads
    node = index.producer.get(site.query)
    if node is None:
        return 0
    width = int(attributes(node).get("N", 0))
    if not width and len(node.input) > 1 and (weight := index.shape(node.input[1])):
        width = weight[-1]
    return width // heads


def _rope(
    index: GraphIndex,
    site: AttentionSite,
    rotary: Rotary,
    head_dim: int,
    hints: Mapping[str, object],
    folder: str,
) -> tuple[RopeSpec, float]:
    """How a site rotates, and the factor that its tables carry beside."""
    cos, sin = index.constant(rotary.cos, folder), index.constant(rotary.sin, folder)
    said = hints.get("rope_theta")
    theta = float(said) if isinstance(said, int | float) else 0.0
    rotary_dim = rotary.rotary_dim
    scaled: tuple[float, ...] = ()
    factor = 1.0
    if cos is not None and sin is not None:
        try:
            found = recover_theta(cos, sin)
        except ValueError as error:
            scaled, factor = _scaled(site, cos, sin, head_dim, error)
            found = theta
        if theta and cos.shape[1] > 1 and abs(found / theta - 1.0) > 1e-3:
            raise GraphCutError(
                f"{label(site.node)}: its rotary tables have theta {found:g}, config.json says {theta:g}"
            )
        theta, rotary_dim = theta or found, 2 * cos.shape[1]
        if rotary.rotary_dim not in (0, rotary_dim):
            raise GraphCutError(
                f"{label(site.node)}: rotates {rotary.rotary_dim} channels with tables for {rotary_dim}"
            )
    elif not theta:
        raise GraphCutError(
            f"{label(site.node)}: its rotary tables '{rotary.cos}' are computed in the graph "
            "and config.json has no rope_theta"
        )
    rotary_dim = rotary_dim or head_dim
    if rotary_dim > head_dim or rotary_dim % 2:
        raise GraphCutError(f"{label(site.node)}: rotates {rotary_dim} channels of heads of {head_dim}")
    if sum(rotary.sections) not in (0, rotary_dim // 2):
        raise GraphCutError(
            f"{label(site.node)}: M-RoPE sections {rotary.sections} do not sum to {rotary_dim // 2}"
        )
    spec = RopeSpec(
        rotary_dim,
        theta,
        "interleaved" if rotary.interleaved else "half",
        rotary.sections,
        rotary.sections_interleaved,
        frequencies=scaled,
    )
    return spec, factor


def _scaled(
    site: AttentionSite, cos: np.ndarray, sin: np.ndarray, head_dim: int, why: ValueError
) -> tuple[tuple[float, ...], float]:
    """Frequencies of tables that are not those of one theta, and their factor."""
    try:
        scaled, factor = recover_frequencies(cos, sin)
    except (ValueError, IndexError):
        raise GraphCutError(f"{label(site.node)}: {why}") from None
    if factor != 1 and 2 * cos.shape[1] != head_dim:
        raise GraphCutError(
            f"{label(site.node)}: its rotary tables scale a part of each head by {factor:g}, "
            "which is not supported"
        )
    return scaled, factor


_FIXED_TYPES = {
    "Shape": 7,
    "Size": 7,
    "NonZero": 7,
    "ArgMax": 7,
    "Equal": 9,
    "Less": 9,
    "Greater": 9,
    "Not": 9,
    "And": 9,
}


def element_type(
    index: GraphIndex, nodes: list[onnx.NodeProto], initializers: Mapping[str, TensorProto]
) -> dict[str, int]:
    """ONNX element type of every tensor: as declared, else by the operator's rule (most follow their first
    input).
    """
    types = {name: tensor.data_type for name, tensor in initializers.items()}
    for name, value in index.values.items():
        if value.type.tensor_type.elem_type:
            types.setdefault(name, value.type.tensor_type.elem_type)
    for node in nodes:
        for name in node.output:
            if name and name not in types:
                types[name] = _output_type(node, types)
    return _SeamTypes(types)


def _output_type(node: onnx.NodeProto, types: Mapping[str, int]) -> int:
    at = attributes(node)
    if node.op_type == "Cast":
        return int(at["to"])
    if node.op_type in _FIXED_TYPES:
        return _FIXED_TYPES[node.op_type]
    if node.op_type in ("Constant", "ConstantOfShape"):
        value = at.get("value")
        if value is not None:
            return int(value.data_type)
        return TensorProto.INT64 if any("int" in key for key in at) else TensorProto.FLOAT
    source = {"Where": 1, "DequantizeLinear": 1}.get(node.op_type, 0)
    return types.get(node.input[source], TensorProto.FLOAT) if len(node.input) > source else TensorProto.FLOAT


class _SeamTypes(dict[str, int]):
    """Tensors of our own that no node makes (embeddings in, attention out) are float32."""

    def __missing__(self, name: str) -> int:
        return TensorProto.FLOAT
