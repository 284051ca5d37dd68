"""Keep only the last token before the vocabulary projection: full logits of every position cost more than the
KV.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mosaic_edge.models.onnx.sites import attributes

_POINTWISE = {
    "Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Neg", "Abs", "Exp", "Log", "Sqrt", "Reciprocal", "Erf",
    "Tanh", "Sigmoid", "HardSigmoid", "Relu", "Gelu", "FastGelu", "QuickGelu", "BiasGelu", "Silu", "Swish",
    "Softplus", "Cast", "Identity", "Clip",
}  # fmt: skip
_LAST_AXIS = {
    "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "LayerNormalization",
    "SkipLayerNormalization", "RMSNormalization", "MatMul", "MatMulNBits", "ReduceMean",
}  # fmt: skip
_INDEX = "mosaic.last"


def gather_last_token(
    nodes: list[onnx.NodeProto],
    logits: str,
    levels: Mapping[str, int],
    last: int,
    initializers: Mapping[str, TensorProto],
) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """Take the last row of [B, T, *] tensors as far before `logits` as every operator works on tokens one by
    one.

    Walks back from the logits through the nodes of segment `last`; where the walk meets another kind of
    operator or the segment's inputs, a Gather is put. Usually that is the very entry of the segment, so its
    MLP runs on one token too. Returns the new nodes and initializers; the nodes unchanged if not even the
    logits projection can be passed.
    """
    producer = {name: node for node in nodes for name in node.output if name}
    inside: set[str] = set()
    frontier: set[str] = set()
    stack = [logits]
    while stack:
        name = stack.pop()
        if name in inside or name in frontier or levels.get(name, -1) < 0:
            continue
        node = producer.get(name)
        if node is not None and levels[name] == last and _by_token(node, levels, initializers):
            inside.add(name)
            stack += [n for n in node.input if n]
        else:
            frontier.add(name)
    if logits in frontier or not frontier:
        return nodes, []
    renamed = {name: f"{name}.last" for name in frontier}
    out: list[onnx.NodeProto] = []
    pending = set(frontier)

    def gather(name: str) -> onnx.NodeProto:
        pending.discard(name)
        return helper.make_node("Gather", [name, _INDEX], [renamed[name]], name=renamed[name], axis=1)

    out += [gather(name) for name in sorted(frontier) if name not in producer]
    for node in nodes:
        if any(name in inside for name in node.output):
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            for i, name in enumerate(copy.input):
                copy.input[i] = renamed.get(name, name)
            out.append(copy)
        else:
            out.append(node)
        out += [gather(name) for name in node.output if name in pending]
    return out, [numpy_helper.from_array(np.array([-1], np.int64), _INDEX)]


def _by_token(
    node: onnx.NodeProto, levels: Mapping[str, int], initializers: Mapping[str, TensorProto]
) -> bool:
    """Whether each token's output depends on that token alone."""
    constants = [name for name in node.input if name and levels.get(name, 0) < 0]
    if node.op_type in _POINTWISE:
        return all(_broadcasts_over_tokens(name, initializers) for name in constants)
    if node.op_type not in _LAST_AXIS:
        return False
    if node.op_type in ("MatMul", "MatMulNBits"):
        return len(constants) == sum(1 for name in node.input if name) - 1 and node.input[0] not in constants
    if node.op_type == "ReduceMean":
        axes = attributes(node).get("axes")
        if axes is None and len(node.input) > 1 and node.input[1] in initializers:
            axes = numpy_helper.to_array(initializers[node.input[1]]).tolist()
        return axes == [-1] and attributes(node).get("keepdims", 1) == 1
    return attributes(node).get("axis", -1) == -1


def _broadcasts_over_tokens(name: str, initializers: Mapping[str, TensorProto]) -> bool:
    """Constants made by nodes are scalars in practice; initializers are looked at."""
    return name not in initializers or all(d == 1 for d in initializers[name].dims[:-1])
