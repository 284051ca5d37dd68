"""The judges of a cut decoder: the graph as exported, and attention over everything seen in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from fixtures_models import HIDDEN
from mosaic_edge.models.onnx.cut import CutGraph, cut
from mosaic_edge.models.onnx.decoder import CutDecoder
from mosaic_edge.models.vlm import RopeSpec


class NumpyMemory:
    """Full causal attention over everything seen, in float64: what a memory that forgets nothing computes."""

    def __init__(self, graph: CutGraph) -> None:
        self.facts = graph.facts
        self.keys: dict[int, np.ndarray] = {}
        self.values: dict[int, np.ndarray] = {}
        self.positions = np.zeros((0, 3), int)

    def begin(self, positions: np.ndarray) -> None:
        """positions [T, 3] of the block that is about to run."""
        self.positions = np.concatenate([self.positions, positions])

    def attend(self, layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        for x in (q, k, v):
            assert x.dtype == np.float32 and x.flags.c_contiguous
        empty = np.zeros((0, *k.shape[1:]))
        self.keys[layer] = np.concatenate([self.keys.get(layer, empty), k])
        self.values[layer] = np.concatenate([self.values.get(layer, empty), v])
        group = self.facts.q_heads // self.facts.kv_heads
        total, tokens = len(self.positions), len(q)
        keys = np.repeat(rotate(self.keys[layer], self.positions, self.facts.rope), group, axis=1)
        logits = np.einsum("qhd,khd->hqk", rotate(q, self.positions[-tokens:], self.facts.rope), keys)
        logits *= self.facts.scale
        future = np.arange(total)[None] > np.arange(total - tokens, total)[:, None]
        logits = np.where(future, -np.inf, logits)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out = np.einsum("hqk,khd->qhd", weights, np.repeat(self.values[layer], group, axis=1))
        return out.astype(np.float32)


class ValueMemory(NumpyMemory):
    """The same for a decoder on a device: OrtValues in, and the answer written into one."""

    device = "cpu"

    def __call__(self, layer: int, q: Any, k: Any, v: Any, out: Any = None, stream: int | None = None) -> Any:
        heads = (self.facts.q_heads, self.facts.kv_heads, self.facts.kv_heads)
        arrays = [
            x.numpy().reshape(-1, n, self.facts.head_dim) for x, n in zip((q, k, v), heads, strict=True)
        ]
        out.update_inplace(self.attend(layer, *arrays).reshape(out.shape()))
        return out


def rotate(x: np.ndarray, positions: np.ndarray, rope: RopeSpec) -> np.ndarray:
    """x [T, H, D] rotated at positions [T, 3] in float64."""
    x = x.astype(np.float64)
    if rope.layout == "none":
        return x
    half = rope.rotary_dim // 2
    axis = np.zeros(half, int)
    if sum(rope.sections) and rope.sections_interleaved:
        for a in (1, 2):
            axis[a : 3 * rope.sections[a] : 3] = a
    elif sum(rope.sections):
        axis = np.repeat([0, 1, 2], rope.sections)
    powers = rope.theta ** (-2.0 * np.arange(half) / rope.rotary_dim) if rope.theta else 0.0
    angle = positions[:, axis] * (np.array(rope.frequencies) if rope.frequencies else powers)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    first = slice(0, rope.rotary_dim, 2) if rope.layout == "interleaved" else slice(0, half)
    second = slice(1, rope.rotary_dim, 2) if rope.layout == "interleaved" else slice(half, rope.rotary_dim)
    out = x.copy()
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., second] * cos + x[..., first] * sin
    return out


class Uncut:
    """The decoder as exported, run by ONNX Runtime with its own past_key_values."""

    def __init__(self, model: onnx.ModelProto, head: int = 0) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self.session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.past = {}
        for value in self.session.get_inputs():
            if value.name.startswith("past"):
                self.half = value.type == "tensor(float16)"
                graph_dims = next(
                    i for i in model.graph.input if i.name == value.name
                ).type.tensor_type.shape.dim
                shape = (1, graph_dims[1].dim_value, 0, graph_dims[3].dim_value or head or HIDDEN // 4)
                if len(graph_dims) == 5:  # keys and values in one
                    shape = (2, 1, graph_dims[2].dim_value, 0, graph_dims[4].dim_value)
                self.past[value.name] = np.zeros(shape, np.float16 if self.half else np.float32)
        self.seen = 0

    def run(self, embeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """embeds [T, hidden], positions [T, 3] -> logits of every token [T, vocab]."""
        self.seen += len(embeds)
        embeds = embeds.astype(np.float16) if self.half else embeds
        feed = {"inputs_embeds": embeds[None], "attention_mask": np.ones((1, self.seen), np.int64)}
        for value in self.session.get_inputs():
            if value.name == "position_ids":
                feed["position_ids"] = (
                    positions.T[:, None] if len(value.shape) == 3 else positions[:, 0][None]
                )
        names = [o.name for o in self.session.get_outputs()]
        wanted = {i.name for i in self.session.get_inputs()}
        out = dict(
            zip(
                names,
                self.session.run(None, {k: v for k, v in (feed | self.past).items() if k in wanted}),
                strict=True,
            )
        )
        self.past = {
            n: out[n.replace("past_key_values", "present").replace("past_", "present_")] for n in self.past
        }
        return out["logits"][0].astype(np.float32)


def flat_positions(first: int, count: int) -> np.ndarray:
    return np.repeat(np.arange(first, first + count)[:, None], 3, axis=1)


def assert_same(
    model: onnx.ModelProto, tolerance: float = 1e-4, multi: bool = False, folder: str = "", head: int = 0
) -> CutGraph:
    """Prefix, three frames of 16 and a question: uncut token by token and in chunks, cut in chunks, tensors
    copied and bound.
    """
    graph = cut(model, {"head_dim": head} if head else {}, folder)
    cut_decoder, memory = CutDecoder(graph, "test", 1, folder), NumpyMemory(graph)
    binding, beside = CutDecoder(graph, "test", 1, folder, bound_bytes=0), NumpyMemory(graph)
    values, apart = CutDecoder(graph, "test", 1, folder, as_values=True), ValueMemory(graph)
    by_token, by_chunk = Uncut(model, head), Uncut(model, head)
    rng = np.random.default_rng(3)
    at = 0
    for size in (5, 16, 16, 16, 7, 1, 1):
        embeds = rng.standard_normal((size, HIDDEN)).astype(np.float32)
        positions = flat_positions(at, size)
        if multi and size == 16:
            positions = positions[:1] + np.stack(
                [np.zeros(16), np.arange(16) // 4, np.arange(16) % 4], 1
            ).astype(int)
        at = int(positions.max()) + 1
        chunk = by_chunk.run(embeds, positions)
        token = np.concatenate([by_token.run(embeds[i : i + 1], positions[i : i + 1]) for i in range(size)])
        memory.begin(positions)
        logits = cut_decoder.run(embeds, memory.attend, want_logits=True)
        assert logits is not None and logits.shape == (chunk.shape[1],) and logits.dtype == np.float32
        beside.begin(positions)
        np.testing.assert_allclose(binding.run(embeds, beside.attend), logits, atol=1e-5, rtol=0)
        apart.begin(positions)
        np.testing.assert_allclose(values.run(embeds, apart), logits, atol=1e-5, rtol=0)
        assert np.ptp(token[-1]) > 0.5
        np.testing.assert_allclose(logits, chunk[-1], atol=tolerance, rtol=0)
        np.testing.assert_allclose(logits, token[-1], atol=tolerance, rtol=0)
    return graph
