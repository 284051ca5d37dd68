"""Where frames come from: files, cameras, arrays that a program holds already. A new kind is a file in this
folder, its class marked with @scheme (registry.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mosaic_edge.sources.arrays import frames_from_arrays
from mosaic_edge.sources.frame_source import Frame, FrameSource, SourceError
from mosaic_edge.sources.live import LiveSource, LiveStats, open_live
from mosaic_edge.sources.registry import open_source

if TYPE_CHECKING:
    from mosaic_edge.sources.files import VideoSource

__all__ = [
    "Frame", "FrameSource", "LiveSource", "LiveStats", "SourceError", "VideoSource", "frames_from_arrays",
    "open_live", "open_source",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """VideoSource, when it is asked for: it needs PyAV, the others do not."""
    if name != "VideoSource":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mosaic_edge.sources.files import VideoSource

    return VideoSource
