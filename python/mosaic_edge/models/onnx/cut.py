"""Cut a decoder graph at its attention nodes, so that attention is ours and every weight stays where it was.

    embeds -> [segment 0] -> q0 k0 v0 -> attend -> out0 -> [segment 1] -> ... -> [segment L] -> logits

Keys and queries leave before rotation (rotary nodes are bypassed), after QK norm. Tensors that cross a cut,
such as the residual stream, become outputs of the segment that makes them and inputs of those that use them;
which ones is found by following the graph, not by name. The cut works on protos only: weights outside the
file stay outside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mosaic_edge.models.onnx.causal_mask import CausalProof
from mosaic_edge.models.onnx.facts import DecoderFacts, element_type, read_facts
from mosaic_edge.models.onnx.last_token import gather_last_token
from mosaic_edge.models.onnx.readers import find_sites
from mosaic_edge.models.onnx.sites import (
    AttentionSite,
    GraphCutError,
    GraphIndex,
    label,
    past_layer,
)

CUTTER_VERSION = 2
"""Raised with every change of what cut() makes, so that cached cuts of an earlier version are not used."""
EMBEDS = "mosaic.embeds"
LOGITS = "mosaic.logits"
_CONSTANT = -1


@dataclass(frozen=True)
class Segment:
    """One piece between two attention nodes, a model of its own; `inputs` and `outputs` name its tensors.

    Segment i > 0 takes `mosaic.{i-1}.out`; every segment but the last makes `mosaic.{i}.query`, `.key`,
    `.value`.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    build: Callable[[], onnx.ModelProto]

    @property
    def model(self) -> onnx.ModelProto:
        """The proto, made anew with a copy of its weights, so that one at a time is held."""
        return self.build()

    def source(self) -> bytes | str:
        """What an inference session is made of."""
        return self.model.SerializeToString()


@dataclass(frozen=True)
class CutGraph:
    """layers + 1 segments and what was read from the graph. All named tensors are float32 except carried
    ones.
    """

    segments: tuple[Segment, ...]
    facts: DecoderFacts
    heads_first: bool
    """Attention outputs are given as [1, T, H_q, D] rather than [1, T, H_q * D]."""
    heads_apart: tuple[bool, bool, bool]
    """Whether query, key, value come as [1, T, H, D] rather than [1, T, H * D]."""


def cut(model: onnx.ModelProto, hints: Mapping[str, object] | None = None, folder: str = "") -> CutGraph:
    """Cut `model`, a decoder with inputs_embeds and past_key_values.N.key/value inputs.

    hints: config.json or genai_config facts by their Hugging Face names (rope_theta, head_dim,
    num_attention_heads, num_key_value_heads), used where the graph is silent and compared where it speaks.
    folder: where external data lies. Raises GraphCutError naming the node and operator of anything the cut
    would change or lose.
    """
    graph = model.graph
    if graph.sparse_initializer:
        raise GraphCutError("the decoder has sparse initializers, which cannot be cut")
    for function in model.functions:
        for node in function.node:
            _Levels.check(node)
    index = GraphIndex(graph)
    embeds, logits = _embeds_input(index), _logits_output(index)
    sites = find_sites(index, CausalProof(model, index, folder))
    facts = read_facts(index, sites, hints or {}, folder)
    nodes = _rewrite(index, sites, facts, embeds, logits)
    extra = _extra_initializers(facts)
    initializers = index.initializers | {t.name: t for t in extra}
    levels = _Levels(nodes, initializers, facts.layers)
    if len(index.shape(logits) or ()) == 3:
        nodes, gathered = gather_last_token(nodes, LOGITS, levels.of, facts.layers, initializers)
        initializers |= {t.name: t for t in gathered}
        levels = _Levels(nodes, initializers, facts.layers)
    types = element_type(index, nodes, initializers)
    segments = tuple(_segment(model, level, levels, initializers, types) for level in range(facts.layers + 1))
    first, normed = sites[0].form == "heads", sites[0].norm is not None
    return CutGraph(segments, facts, first, (first or normed, first or normed, first))


def _embeds_input(index: GraphIndex) -> str:
    if "inputs_embeds" in index.inputs:
        return "inputs_embeds"
    if "input_ids" in index.inputs:
        raise GraphCutError("the decoder takes input_ids; export it with embeddings outside (inputs_embeds)")
    floats = [
        n
        for n, v in index.inputs.items()
        if v.type.tensor_type.elem_type in (1, 10) and past_layer(n) is None
    ]
    if len(floats) != 1:
        raise GraphCutError(f"the decoder has no inputs_embeds input (it has: {', '.join(index.inputs)})")
    return floats[0]


def _logits_output(index: GraphIndex) -> str:
    names = [v.name for v in index.graph.output]
    if "logits" in names:
        return "logits"
    left = [n for n in names if "present" not in n]
    if len(left) != 1:
        raise GraphCutError(f"the decoder has no logits output (it has: {', '.join(names)})")
    return left[0]


def _rewrite(
    index: GraphIndex, sites: list[AttentionSite], facts: DecoderFacts, embeds: str, logits: str
) -> list[onnx.NodeProto]:
    """The graph's nodes with attention replaced by its seams and rotation taken out."""
    by_output = {site.node.output[0]: site for site in sites}
    alias = {node.output[0]: node.input[0] for site in sites for node in site.rotary_nodes}
    in_type = index.inputs[embeds].type.tensor_type.elem_type
    nodes = [_cast(EMBEDS, embeds, in_type)]
    for node in index.graph.node:
        if node.output and node.output[0] in by_output:
            nodes += _seam(by_output[node.output[0]], facts, alias)
        elif node.output and node.output[0] in alias:
            continue
        else:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            for i, name in enumerate(copy.input):
                copy.input[i] = alias.get(name, name)
            nodes.append(copy)
    return [*nodes, _cast(logits, LOGITS, TensorProto.FLOAT)]


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}.cast", to=to)


def _seam(site: AttentionSite, facts: DecoderFacts, alias: Mapping[str, str]) -> list[onnx.NodeProto]:
    """What stands in for an attention node: three outputs before it, one input after it."""
    at = f"mosaic.{site.layer}"
    ends = [f"{at}.query", f"{at}.key", f"{at}.value"]
    nodes: list[onnx.NodeProto] = []
    if site.form == "packed":
        sources = [f"{end}.rows" for end in ends]
        packed = alias.get(site.query, site.query)
        if site.projection:
            nodes.append(
                helper.make_node(
                    "MatMul", [packed, site.projection], [f"{at}.projected"], name=f"{at}.matmul"
                )
            )
            packed = f"{at}.projected"
        if site.bias:
            nodes.append(helper.make_node("Add", [packed, site.bias], [f"{at}.biased"], name=f"{at}.bias"))
            packed = f"{at}.biased"
        nodes.append(
            helper.make_node("Split", [packed, "mosaic.split"], sources, name=f"{at}.split", axis=-1)
        )
    else:
        sources = [alias.get(name, name) for name in (site.query, site.key, site.value)]
        if site.bias:
            parts, biased = [f"{end}.bias" for end in ends], [f"{end}.biased" for end in ends]
            nodes.append(
                helper.make_node("Split", [site.bias, "mosaic.split"], parts, name=f"{at}.bias", axis=0)
            )
            for source, part, made in zip(sources, parts, biased, strict=True):
                nodes.append(helper.make_node("Add", [source, part], [made], name=made))
            sources = biased
    if site.form == "heads":
        for i, end in enumerate(ends):
            nodes.append(helper.make_node("Transpose", [sources[i]], [f"{end}.rows"], perm=[0, 2, 1, 3]))
            sources[i] = f"{end}.rows"
    if site.norm:
        for i in (0, 1):
            nodes += _norm(sources[i], ends[i], (site.norm[0], site.norm[1])[i], site.norm[2])
            sources[i] = f"{ends[i]}.normed"
    nodes += [_cast(source, end, TensorProto.FLOAT) for source, end in zip(sources, ends, strict=True)]
    if site.form == "heads":
        nodes.append(_cast(f"{at}.out", f"{at}.out.typed", facts.kv_type))
        nodes.append(
            helper.make_node("Transpose", [f"{at}.out.typed"], [site.node.output[0]], perm=[0, 2, 1, 3])
        )
    else:
        nodes.append(_cast(f"{at}.out", site.node.output[0], facts.kv_type))
    return nodes


def _norm(source: str, end: str, weight: str, epsilon: float) -> list[onnx.NodeProto]:
    """The per-head RMS norm that a fused attention node would have done: over D of [B, T, H * D]."""
    return [
        helper.make_node("Reshape", [source, "mosaic.heads"], [f"{end}.heads"]),
        helper.make_node(
            "SimplifiedLayerNormalization", [f"{end}.heads", weight], [f"{end}.normed"], epsilon=epsilon
        ),
    ]


def _extra_initializers(facts: DecoderFacts) -> list[TensorProto]:
    q, kv = facts.q_heads * facts.head_dim, facts.kv_heads * facts.head_dim
    return [
        numpy_helper.from_array(np.array([q, kv, kv], np.int64), "mosaic.split"),
        numpy_helper.from_array(np.array([0, 0, -1, facts.head_dim], np.int64), "mosaic.heads"),
    ]


class _Levels:
    """The segment in which each needed tensor can first be made: one more than the last attention it depends
    on.
    """

    def __init__(self, nodes: list[onnx.NodeProto], initializers: Mapping[str, object], layers: int) -> None:
        self.of = dict.fromkeys(initializers, _CONSTANT)
        self.of |= {"": _CONSTANT, EMBEDS: 0} | {f"mosaic.{i}.out": i + 1 for i in range(layers)}
        self.seams = {i: [f"mosaic.{i}.{end}" for end in ("query", "key", "value")] for i in range(layers)}
        self.targets = [LOGITS, *(name for names in self.seams.values() for name in names)]
        producer = {name: node for node in nodes for name in node.output if name}
        needed = _needed(self.targets, producer)
        self.nodes = [node for node in nodes if any(name in needed for name in node.output)]
        for node in self.nodes:
            self.check(node)
            for name in node.input:
                if name not in self.of:
                    raise GraphCutError(
                        f"{label(node)} needs '{name}', which only the uncut graph has: it cannot be cut"
                    )
            level = max((self.of[name] for name in node.input), default=_CONSTANT)
            self.of.update((name, level) for name in node.output)
        if self.of[LOGITS] != layers:
            raise GraphCutError(
                f"the logits depend on {self.of[LOGITS]} of {layers} attention nodes: a damaged export"
            )
        for i, names in self.seams.items():
            for name in names:
                if self.of[name] > i:
                    raise GraphCutError(
                        f"attention {i} takes '{name}', which depends on attention {self.of[name] - 1}"
                    )

    @staticmethod
    def check(node: onnx.NodeProto) -> None:
        """Refuse a node that runs a graph of its own (Loop, If): what that depends on is not followed."""
        if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
            raise GraphCutError(f"{label(node)} holds a graph of its own and cannot be cut")


def _needed(targets: list[str], producer: Mapping[str, onnx.NodeProto]) -> set[str]:
    seen: set[str] = set()
    stack = list(targets)
    while stack:
        name = stack.pop()
        if name in seen or not name:
            continue
        seen.add(name)
        if name in producer:
            stack += producer[name].input
    return seen


def _segment(
    model: onnx.ModelProto,
    level: int,
    levels: _Levels,
    initializers: Mapping[str, TensorProto],
    types: Mapping[str, int],
) -> Segment:
    """The nodes of one level, with the constants they use, as a model of its own."""
    own = [n for n in levels.nodes if levels.of[n.output[0]] == level]
    constants = [n for n in levels.nodes if levels.of[n.output[0]] == _CONSTANT]
    maker = {name: n for n in constants for name in n.output}
    used = _needed([name for n in own for name in n.input], maker)
    nodes = [n for n in constants if any(name in used for name in n.output)] + own
    made = {name for n in nodes for name in n.output if name}
    inputs = sorted(
        name
        for name in {name for n in own for name in n.input if name} - made
        if levels.of[name] != _CONSTANT
    )
    later = {name for n in levels.nodes if levels.of[n.output[0]] > level for name in n.input}
    own_made = [name for n in own for name in n.output if name]
    outputs = [name for name in own_made if name in later or name in levels.targets]
    build = partial(
        _model,
        model,
        level,
        nodes,
        inputs,
        outputs,
        types,
        {n: initializers[n] for n in initializers if n in used},
    )
    return Segment(tuple(inputs), tuple(outputs), build)


def _model(
    whole: onnx.ModelProto,
    level: int,
    nodes: list[onnx.NodeProto],
    inputs: list[str],
    outputs: list[str],
    types: Mapping[str, int],
    initializers: Mapping[str, TensorProto],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        f"segment_{level}",
        [helper.make_tensor_value_info(name, types[name], None) for name in inputs],
        [helper.make_tensor_value_info(name, types[name], None) for name in outputs],
        list(initializers.values()),
    )
    piece = helper.make_model(graph, opset_imports=whole.opset_import, functions=whole.functions)
    piece.ir_version = whole.ir_version
    return piece
