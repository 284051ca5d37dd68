"""A part of a decoder graph, run on its own to see what it computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from mosaic_edge.models.onnx.sites import GraphIndex, past_layer
from mosaic_edge.models.onnx.trial import TrialSession, loaded

_TYPES = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16}


class GraphPart:
    """What makes `outputs`, from the graph's inputs and from tensors of its middle that are `given` (name ->
    element type), as a session of its own."""

    def __init__(
        self,
        model: onnx.ModelProto,
        index: GraphIndex,
        folder: str,
        outputs: Sequence[str],
        given: Mapping[str, int] | None = None,
    ) -> None:
        self._index, self._outputs = index, list(outputs)
        given = given or {}
        needed: set[str] = set()
        stack = list(outputs)
        while stack:
            name = stack.pop()
            if name and name not in needed:
                needed.add(name)
                if name not in given and name in index.producer:
                    stack += index.producer[name].input
        self.inputs = [name for name in index.inputs if name in needed]
        graph = helper.make_graph(
            [
                node
                for node in index.graph.node
                if any(name in needed for name in node.output)
                and not any(name in given for name in node.output)
            ],
            "part",
            [index.inputs[name] for name in self.inputs]
            + [
                helper.make_tensor_value_info(name, kind, None)
                for name, kind in given.items()
                if name in needed
            ],
            [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(outputs)],
            [tensor for name, tensor in index.initializers.items() if name in needed],
        )
        part = helper.make_model(graph, opset_imports=model.opset_import, functions=model.functions)
        part.ir_version = model.ir_version
        options = ort.SessionOptions()
        options.log_severity_level = 4
        if folder:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        where = f"{folder or 'the decoder'}: a part that is looked at"
        session = loaded(part.SerializeToString(), options, ["CPUExecutionProvider"], where)
        self._session = TrialSession(session, where)
        self.holds_graphs = any(
            a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
            for node in graph.node
            for a in node.attribute
        )
        """Whether a node of it runs a graph of its own (Loop, If)."""
        self._taken = {value.name for value in self._session.get_inputs()}

    def takes(self, name: str) -> bool:
        """Whether it needs this input, or tensor of the middle."""
        return name in self._taken

    def run(self, before: int, now: int, given: Mapping[str, np.ndarray] | None = None) -> list[np.ndarray]:
        """Its outputs for `now` tokens of one sequence without padding, behind `before`. given: its tensors
        of the middle, and inputs to be other than usual."""
        given = given or {}
        usual = {name: self._usual(name, before, now) for name in self.inputs if name not in given}
        return [np.asarray(made) for made in self._session.run(self._outputs, usual | dict(given))]

    def _usual(self, name: str, before: int, now: int) -> np.ndarray:
        """An input of one sequence; of embeddings and past only the shape can matter."""
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
