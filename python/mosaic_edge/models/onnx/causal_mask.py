"""Is a mask that a decoder graph makes for itself the causal one? The graph that makes it is run to find out.

Only then is attention over past and present tokens, which is what the memory does, the same as the node's.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import onnx

from mosaic_edge.models.onnx.graph_part import GraphPart
from mosaic_edge.models.onnx.sites import GraphIndex
from mosaic_edge.models.sandbox import OF_THE_MACHINE

_TRIALS = ((0, 5), (3, 4), (7, 1))  # tokens before, tokens now
_FAR = (
    40_000,
    4_095,
    1_023,
)  # tokens before one: past any window that models have, or as far as a table of masks goes
_MASKED = -1e4  # exporters use anything from -1e4 to minus infinity


def _is_causal(value: np.ndarray, before: int, now: int) -> bool:
    """Whether a mask [..., now, before + now] hides what comes later and nothing else."""
    seen = np.arange(before + now)[None] <= np.arange(before, before + now)[:, None]
    right = value == seen if value.dtype == np.bool_ else np.where(seen, value == 0, value <= _MASKED)
    return bool(right.all())


class CausalProof:
    """Runs the makers of masks; each mask once, since all layers share it."""

    def __init__(self, model: onnx.ModelProto, index: GraphIndex, folder: str = "") -> None:
        self.model = model
        self.index = index
        self.folder = folder
        self._known: dict[str, str] = {}

    def refutes(self, mask: str) -> str:
        """Empty if `mask` lets every token see exactly the tokens before it and itself; else why not."""
        if mask not in self._known:
            try:
                self._known[mask] = self._run(mask)
            except OF_THE_MACHINE:
                raise
            except Exception as error:  # ONNX Runtime raises a different class for every cause
                self._known[mask] = f"it could not be run alone ({' '.join(str(error).split())[:200]})"
        return self._known[mask]

    def _run(self, mask: str) -> str:
        part = GraphPart(self.model, self.index, self.folder, [mask])
        for before, now in _TRIALS:
            (value,) = part.run(before, now)
            if value.ndim < 2 or value.shape[-2:] != (now, before + now):
                return f"its shape is {list(value.shape)} for {now} tokens after {before}"
            if not _is_causal(value, before, now):
                return f"it masks otherwise for {now} tokens after {before}"
        for before in _FAR:
            with suppress(Exception):  # a graph may hold a table of masks, which ends
                (value,) = part.run(before, 1)
                if value.ndim >= 2 and value.shape[-2:] == (1, before + 1):
                    return (
                        ""
                        if _is_causal(value, before, 1)
                        else f"it is a window: not all of {before} tokens are seen"
                    )
        return ""
