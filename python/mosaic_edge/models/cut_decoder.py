"""Run the segments of a cut decoder with ONNX Runtime, calling `attend` between them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from mosaic_edge.models.cut_cache import CachedCut, CachedSegment
from mosaic_edge.models.graph_cut import EMBEDS, LOGITS, CutGraph, Segment
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


def open_session(
    model: bytes | str, name: str, options: ort.SessionOptions, device: str = "cpu"
) -> ort.InferenceSession:
    """A session on `device`; whatever ONNX Runtime refuses becomes a one-line ModelError naming `name`."""
    providers = ["CPUExecutionProvider"]
    if device == "cuda":
        providers.insert(0, "CUDAExecutionProvider")
        if providers[0] not in ort.get_available_providers():
            raise ModelError(
                f'{name}: device="cuda" needs onnxruntime-gpu; this onnxruntime {ort.__version__} has '
                f"{', '.join(ort.get_available_providers())}"
            )
    try:
        return ort.InferenceSession(model, options, providers=providers)
    except Exception as error:  # ONNX Runtime raises a different class for every cause
        raise ModelError(
            f"{name}: onnxruntime {ort.__version__} cannot load it: {' '.join(str(error).split())[:400]}"
        ) from None


class CutDecoder:
    """layers + 1 sessions; holds weights only, no keys and no values.

    Tensors cross from one session to the next as OrtValues, where they lie. On a CPU q, k and v are written
    straight into arrays of one run, and what `attend` returns is read in place. On CUDA they are copied to
    the host and back, since the memory takes host arrays; that way is unproven, no GPU has run it.
    """

    def __init__(
        self, graph: CutGraph | CachedCut, name: str, threads: int = 1, folder: str = "", device: str = "cpu"
    ) -> None:
        self.facts = facts = graph.facts
        self._device = device
        options = session_options(threads, folder)
        self._steps: list[tuple[ort.InferenceSession, tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = []
        segments: Sequence[Segment | CachedSegment] = graph.segments
        for i, segment in enumerate(segments):
            used_later = {n for later in segments[i + 1 :] for n in later.inputs}
            done = tuple(n for n in segment.inputs if n not in used_later)
            session = open_session(segment.source(), f"{name} (segment {i})", options, device)
            self._steps.append((session, segment.inputs, segment.outputs, done))
        widths = (facts.q_heads, facts.kv_heads, facts.kv_heads)
        self._heads = tuple((heads, facts.head_dim) for heads in widths)
        self._ends = tuple(
            (1, -1, *heads) if apart else (1, -1, heads[0] * heads[1])
            for heads, apart in zip(self._heads, graph.heads_apart, strict=True)
        )
        self._out_shape = (
            (1, -1, *self._heads[0]) if graph.heads_first else (1, -1, facts.q_heads * facts.head_dim)
        )

    def run(self, embeds: FloatArray, attend: Attend, want_logits: bool = True) -> FloatArray | None:
        """Run embeds [T, hidden] to the last token's logits [vocab], or None; `attend` once per layer."""
        if embeds.ndim != 2 or embeds.shape[0] == 0:
            raise ValueError(f"embeds must be [T >= 1, hidden], got {embeds.shape}")
        tokens = embeds.shape[0]
        live = {EMBEDS: self._value(np.ascontiguousarray(embeds, np.float32)[None])}
        arrays = tuple(np.empty((tokens, *heads), np.float32) for heads in self._heads)
        ends = [self._value(a.reshape(end)) for a, end in zip(arrays, self._ends, strict=True)]
        for layer in range(self.facts.layers):
            names = [f"mosaic.{layer}.{end}" for end in ("query", "key", "value")]
            self._step(layer, live, dict(zip(names, ends, strict=True)) if self._device == "cpu" else {})
            values = [live.pop(name) for name in names]
            if self._device != "cpu":
                arrays = tuple(v.numpy().reshape(a.shape) for v, a in zip(values, arrays, strict=True))
            out = attend(layer, *arrays)
            if out.shape != arrays[0].shape:
                raise ValueError(f"attend of layer {layer} must return {arrays[0].shape}, got {out.shape}")
            out = np.ascontiguousarray(out, np.float32)
            live[f"mosaic.{layer}.out"] = self._value(out.reshape(self._out_shape))
        if not want_logits:
            return None
        self._step(self.facts.layers, live, {})
        logits = live[LOGITS].numpy()
        return logits.reshape(-1, logits.shape[-1])[-1]

    def _value(self, array: FloatArray) -> ort.OrtValue:
        """`array` as an OrtValue: the same memory on a CPU, a copy on CUDA."""
        return ort.OrtValue.ortvalue_from_numpy(array, self._device, 0)

    def _step(self, i: int, live: dict[str, ort.OrtValue], bound: dict[str, ort.OrtValue]) -> None:
        """Run segment i from and to `live`; outputs named in `bound` are written there, others where ORT
        likes.
        """
        session, inputs, outputs, done = self._steps[i]
        binding = session.io_binding()
        for name in inputs:
            binding.bind_ortvalue_input(name, live[name])
        for name in outputs:
            if name in bound:
                binding.bind_ortvalue_output(name, bound[name])
            else:
                binding.bind_output(name, self._device, 0)
        session.run_with_iobinding(binding)
        for name in done:
            del live[name]
        live.update(zip(outputs, binding.get_outputs(), strict=True))
