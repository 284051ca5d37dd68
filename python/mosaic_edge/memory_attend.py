"""The attention of a session's memory, as a model calls it."""

from __future__ import annotations

from typing import Any

from mosaic_edge.models.vlm import FloatArray


class MemoryAttend:
    """A session's `attend`, as models see it (vlm.DeviceAttend)."""

    def __init__(self, memory: Any, out: FloatArray, device: str) -> None:
        self._memory = memory
        self._out = out
        self.device = device

    def __call__(self, layer: int, q: Any, k: Any, v: Any, out: Any = None, stream: int | None = None) -> Any:
        """Attention of a layer's queries over the memory and the block's own keys and values."""
        if out is None:
            out = self._out[: len(q)]
        self._memory.attend(layer, q, k, v, out, stream=stream)
        return out
