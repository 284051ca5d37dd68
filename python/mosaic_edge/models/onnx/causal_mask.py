"""Is a mask that a decoder graph makes for itself the causal one? The graph that makes it is run to find out.

Only then is attention over past and present tokens, which is what the memory does, the same as the node's.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from mosaic_edge.models.onnx.sites import GraphIndex, past_layer

_TRIALS = ((0, 5), (3, 4), (7, 1))  # tokens before, tokens now
_FAR = (
    40_000,
    4_095,
    1_023,
)  # tokens before one: past any window that models have, or as far as a table of masks goes
_MASKED = -1e4  # exporters use anything from -1e4 to minus infinity
_TYPES = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16}


def _is_causal(value: np.ndarray, before: int, now: int) -> bool:
    """Whether a mask [..., now, before + now] hides what comes later and nothing else."""
    seen = np.arange(before + now)[None] <= np.arange(before, before + now)[:, None]
    right = value == seen if value.dtype == np.bool_ else np.where(seen, value == 0, value <= _MASKED)
    return bool(right.all())


class CausalProof:
    """Runs the makers of masks; each mask once, since all layers share it."""

    def __init__(self, model: onnx.ModelProto, index: GraphIndex, folder: str = "") -> None:
        self._model = model
        self._index = index
        self._folder = folder
        self._known: dict[str, str] = {}

    def refutes(self, mask: str) -> str:
        """Empty if `mask` lets every token see exactly the tokens before it and itself; else why not."""
        if mask not in self._known:
            try:
                self._known[mask] = self._run(mask)
            except Exception as error:  # ONNX Runtime raises a different class for every cause
                self._known[mask] = f"it could not be run alone ({' '.join(str(error).split())[:200]})"
        return self._known[mask]

    def _run(self, mask: str) -> str:
        session, inputs = self._maker(mask)

        def made(before: int, now: int) -> np.ndarray:
            feed = {name: self._trial(name, before, now) for name in inputs}
            return np.asarray(session.run([mask], feed)[0])

        for before, now in _TRIALS:
            value = made(before, now)
            if value.ndim < 2 or value.shape[-2:] != (now, before + now):
                return f"its shape is {list(value.shape)} for {now} tokens after {before}"
            if not _is_causal(value, before, now):
                return f"it masks otherwise for {now} tokens after {before}"
        for before in _FAR:
            with suppress(Exception):  # a graph may hold a table of masks, which ends
                value = made(before, 1)
                if value.ndim >= 2 and value.shape[-2:] == (1, before + 1):
                    return (
                        ""
                        if _is_causal(value, before, 1)
                        else f"it is a window: not all of {before} tokens are seen"
                    )
        return ""

    def _maker(self, mask: str) -> tuple[ort.InferenceSession, list[str]]:
        """The part of the graph that makes `mask`, as a session, and the graph inputs it takes."""
        index = self._index
        needed: set[str] = set()
        stack = [mask]
        while stack:
            name = stack.pop()
            if name and name not in needed:
                needed.add(name)
                stack += index.producer[name].input if name in index.producer else ()
        inputs = [name for name in index.inputs if name in needed]
        graph = helper.make_graph(
            [node for node in index.graph.node if any(name in needed for name in node.output)],
            "mask",
            [index.inputs[name] for name in inputs],
            [onnx.ValueInfoProto(name=mask)],
            [tensor for name, tensor in index.initializers.items() if name in needed],
        )
        model = helper.make_model(
            graph, opset_imports=self._model.opset_import, functions=self._model.functions
        )
        model.ir_version = self._model.ir_version
        options = ort.SessionOptions()
        options.log_severity_level = 4
        if self._folder:
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", self._folder
            )
        providers = ["CPUExecutionProvider"]
        return ort.InferenceSession(model.SerializeToString(), options, providers=providers), inputs

    def _trial(self, name: str, before: int, now: int) -> np.ndarray:
        """An input of one sequence without padding; of embeddings and past only the shape can matter."""
        value = self._index.inputs[name].type.tensor_type
        shape = self._index.shape(name) or []
        kind = _TYPES[value.elem_type]
        if past_layer(name) is not None:
            sizes = [n or 1 for n in shape]
            sizes[-2] = before
            return np.zeros(sizes, kind)
        if name == "position_ids":
            positions: np.ndarray = np.arange(before, before + now, dtype=kind)
            return np.broadcast_to(positions, (*[n or 1 for n in shape[:-1]], now)).copy()
        if "mask" in name:
            return np.ones((1, before + now), kind)
        if len(shape) == 3:
            return np.zeros((1, now, shape[2] or 1), kind)
        raise ValueError(f"it is made from '{name}'")
