"""Run the segments of a cut decoder with ONNX Runtime, calling `attend` between them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from mosaic_edge.models.onnx.cut import EMBEDS, LOGITS, CutGraph, Segment
from mosaic_edge.models.onnx.cut_cache import CachedCut, CachedSegment
from mosaic_edge.models.onnx.trial import loaded
from mosaic_edge.models.sandbox import OF_THE_MACHINE
from mosaic_edge.models.vlm import Attend, DeviceAttend, FloatArray, ModelError


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
        return loaded(model, options, providers, name)
    except (ModelError, *OF_THE_MACHINE):
        raise
    except Exception as error:  # ONNX Runtime raises a different class for every cause
        raise ModelError(
            f"{name}: onnxruntime {ort.__version__} cannot load it: {' '.join(str(error).split())[:400]}"
        ) from None


BOUND_BYTES = 256 << 10
"""Of q, k and v of a block: for fewer, binding costs more than the copies that it saves."""


class CutDecoder:
    """layers + 1 sessions; holds weights only, no keys and no values.

    Tensors of large blocks cross from one session to the next as OrtValues, where they lie. q, k and v are
    written straight into arrays of one run, and what `attend` returns is read in place. On a GPU, where the
    memory's kernels run there too, q, k, v and out are OrtValues as well and no host sees them; where the
    memory is on the CPU they are copies. device="cuda" is unproven: no GPU has run it.
    """

    def __init__(
        self,
        graph: CutGraph | CachedCut,
        name: str,
        threads: int = 1,
        folder: str = "",
        device: str = "cpu",
        bound_bytes: int = BOUND_BYTES,
        as_values: bool | None = None,
    ) -> None:
        self._bound_bytes = bound_bytes
        self._as_values = device != "cpu" if as_values is None else as_values
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
        if self._as_values and isinstance(attend, DeviceAttend) and attend.device == self._device:
            return self._run_values(embeds, attend, want_logits)
        tokens = embeds.shape[0]
        live: dict[str, Any] = {EMBEDS: np.ascontiguousarray(embeds, np.float32)[None]}
        arrays = [np.empty((tokens, *heads), np.float32) for heads in self._heads]
        if sum(array.nbytes for array in arrays) < self._bound_bytes:
            ends: list[FloatArray] = []
        else:
            ends = [array.reshape(shape) for array, shape in zip(arrays, self._ends, strict=True)]
        for layer in range(self.facts.layers):
            names = (f"mosaic.{layer}.query", f"mosaic.{layer}.key", f"mosaic.{layer}.value")
            self._step(layer, live, dict(zip(names, ends, strict=False)))
            if not ends:
                arrays = [live.pop(n).reshape(a.shape) for n, a in zip(names, arrays, strict=True)]
            q, k, v = arrays
            out = attend(layer, q, k, v)
            if out.shape != q.shape:
                raise ValueError(f"attend of layer {layer} must return {q.shape}, got {out.shape}")
            live[f"mosaic.{layer}.out"] = np.ascontiguousarray(out, np.float32).reshape(self._out_shape)
        if not want_logits:
            return None
        self._step(self.facts.layers, live, {})
        logits: FloatArray = live[LOGITS]
        return logits.reshape(-1, logits.shape[-1])[-1]

    def _run_values(self, embeds: FloatArray, attend: DeviceAttend, want_logits: bool) -> FloatArray | None:
        """run() with every tensor an OrtValue on the device, `attend`'s too."""
        rows = np.ascontiguousarray(embeds, np.float32)[None]
        live = {EMBEDS: ort.OrtValue.ortvalue_from_numpy(rows, self._device, 0)}
        shape = [embeds.shape[0] if n == -1 else n for n in self._out_shape]
        out = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, self._device, 0)
        for layer in range(self.facts.layers):
            self._step_values(layer, live)
            q, k, v = (live.pop(f"mosaic.{layer}.{name}") for name in ("query", "key", "value"))
            live[f"mosaic.{layer}.out"] = attend(layer, q, k, v, out)
        if not want_logits:
            return None
        self._step_values(self.facts.layers, live)
        logits: FloatArray = live[LOGITS].numpy()
        return logits.reshape(-1, logits.shape[-1])[-1]

    def _step_values(self, i: int, live: dict[str, Any]) -> None:
        session, inputs, outputs, done = self._steps[i]
        binding = session.io_binding()
        for name in inputs:
            binding.bind_ortvalue_input(name, live[name])
        for name in outputs:
            binding.bind_output(name, self._device)
        session.run_with_iobinding(binding)  # has run when it returns: the memory's stream needs no order
        live.update(zip(outputs, binding.get_outputs(), strict=True))
        for name in done:
            del live[name]

    def _step(self, i: int, live: dict[str, Any], arrays: dict[str, FloatArray]) -> None:
        """Run segment i from and to `live`, whose values are arrays or, between large blocks, OrtValues.

        Outputs named in `arrays` are written into those and not put into `live`. Without any, arrays are
        taken and copied out, which costs a small block less than a binding.
        """
        session, inputs, outputs, done = self._steps[i]
        if not arrays:
            feed = {name: live[name] for name in inputs}
            bound = {name: v.numpy() for name, v in feed.items() if not isinstance(v, np.ndarray)}
            live.update(zip(outputs, session.run(outputs, feed | bound), strict=True))
        else:
            binding = session.io_binding()
            for name in inputs:
                value = live[name]
                if isinstance(value, np.ndarray):
                    binding.bind_cpu_input(name, value)
                else:
                    binding.bind_ortvalue_input(name, value)
            for name in outputs:
                if (array := arrays.get(name)) is not None:
                    binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
                else:
                    binding.bind_output(name, self._device)
            session.run_with_iobinding(binding)
            made = zip(outputs, binding.get_outputs(), strict=True)
            live.update((name, value) for name, value in made if name not in arrays)
        for name in done:
            del live[name]
