"""Run the segments of a cut decoder with ONNX Runtime, calling `attend` between them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from mosaic_edge.models.graph_cut import EMBEDS, LOGITS, CutGraph
from mosaic_edge.models.vlm import Attend, FloatArray, ModelError


def session_options(threads: int, folder: str = "") -> ort.SessionOptions:
    """Quiet, all optimisations, no arena and no memory pattern: what runs leaves nothing behind and nothing
    grows.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = False
    # Layers + 1 sessions share the cores: threads that spin while another session works would only steal from
    # it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if folder:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(Path(folder).resolve())
        )
    return options


def open_session(model: bytes | str, name: str, options: ort.SessionOptions) -> ort.InferenceSession:
    """A session on the CPU; whatever ONNX Runtime refuses becomes a one-line ModelError naming `name`."""
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a different class for every cause
        raise ModelError(
            f"{name}: ONNX Runtime cannot load it: {' '.join(str(error).split())[:400]}"
        ) from None


class CutDecoder:
    """layers + 1 sessions; holds weights only, no keys and no values."""

    def __init__(self, graph: CutGraph, name: str, threads: int = 1, folder: str = "") -> None:
        self.facts = graph.facts
        options = session_options(threads, folder)
        self._steps: list[tuple[ort.InferenceSession, tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = []
        for i, segment in enumerate(graph.segments):
            used_later = {n for later in graph.segments[i + 1 :] for n in later.inputs}
            done = tuple(n for n in segment.inputs if n not in used_later)
            session = open_session(segment.model.SerializeToString(), f"{name} (segment {i})", options)
            self._steps.append((session, segment.inputs, segment.outputs, done))
        facts = graph.facts
        heads = (1, -1, facts.q_heads, facts.head_dim)
        self._out_shape = heads if graph.heads_first else (1, -1, facts.q_heads * facts.head_dim)

    def run(self, embeds: FloatArray, attend: Attend, want_logits: bool = True) -> FloatArray | None:
        """Run embeds [T, hidden] to the last token's logits [vocab], or None; `attend` once per layer."""
        if embeds.ndim != 2 or embeds.shape[0] == 0:
            raise ValueError(f"embeds must be [T >= 1, hidden], got {embeds.shape}")
        facts, tokens = self.facts, embeds.shape[0]
        q_shape, kv_shape = (tokens, facts.q_heads, facts.head_dim), (tokens, facts.kv_heads, facts.head_dim)
        live: dict[str, np.ndarray] = {EMBEDS: np.ascontiguousarray(embeds, np.float32)[None]}
        for layer in range(facts.layers):
            self._step(layer, live)
            q = live.pop(f"mosaic.{layer}.query").reshape(q_shape)
            k = live.pop(f"mosaic.{layer}.key").reshape(kv_shape)
            v = live.pop(f"mosaic.{layer}.value").reshape(kv_shape)
            out = attend(layer, q, k, v)
            if out.shape != q_shape:
                raise ValueError(f"attend of layer {layer} must return {q_shape}, got {out.shape}")
            live[f"mosaic.{layer}.out"] = out.reshape(self._out_shape)
        if not want_logits:
            return None
        self._step(facts.layers, live)
        logits = live[LOGITS]
        return logits.reshape(-1, logits.shape[-1])[-1]

    def _step(self, i: int, live: dict[str, np.ndarray]) -> None:
        session, inputs, outputs, done = self._steps[i]
        values = session.run(outputs, {name: live[name] for name in inputs})
        for name in done:
            del live[name]
        live.update(zip(outputs, values, strict=True))
