"""Where frames come from: files and cameras (files.py), arrays that a robot already holds."""

from __future__ import annotations

from mosaic_edge.sources.files import Frame, SourceError, VideoSource, frames_from_arrays

__all__ = ["Frame", "SourceError", "VideoSource", "frames_from_arrays"]
