"""The graph that looks up token ids; onnxruntime-genai's takes image features too: a text has none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort

from mosaic_edge.models.onnx.trial import TrialSession
from mosaic_edge.models.onnx.vision import TYPES
from mosaic_edge.models.vlm import FloatArray, ModelError


class TextEmbedding:
    """input_ids [B, S] (and features, given empty) -> embeddings [S, hidden]."""

    def __init__(self, session: ort.InferenceSession | TrialSession, where: str) -> None:
        inputs = session.get_inputs()
        ids = [i for i in inputs if i.type in ("tensor(int64)", "tensor(int32)") and len(i.shape) == 2]
        others = [i for i in inputs if i not in ids]
        if len(ids) != 1 or any("float" not in i.type for i in others):
            said = ", ".join(f"{i.name} {i.shape} {i.type}" for i in inputs)
            raise ModelError(f"{where}: expected one input of token ids [B, S], got {said}")
        self._session = session
        self._ids = ids[0]
        self._output = session.get_outputs()[0].name
        self._none: dict[str, np.ndarray] = {}
        for other in others:
            self._none[other.name] = np.zeros(_without_rows(other.shape), TYPES[other.type])

    def look_up(self, ids: Sequence[int]) -> FloatArray:
        """Token ids -> [T, hidden] float32."""
        feed: dict[str, np.ndarray] = {self._ids.name: np.asarray(list(ids), TYPES[self._ids.type])[None]}
        out = self._session.run([self._output], feed | self._none)[0]
        return np.ascontiguousarray(out[0], np.float32)


def _without_rows(shape: list[object]) -> list[int]:
    """The declared shape with batch 1 and no rows: [N, hidden] -> [0, hidden], [B, N, hidden] -> [1, 0,
    hidden].
    """
    sizes = [n if isinstance(n, int) else 1 for n in shape]
    sizes[-2] = 0
    return sizes
