"""Who reads a live source: PyAV, or where that is not installed OpenCV or GStreamer."""

from __future__ import annotations

import importlib.util
import shlex
import shutil

from mosaic_edge.sources.connection import Connection
from mosaic_edge.sources.frame_source import SourceError
from mosaic_edge.sources.where import is_url, name_of

MODULES = ("av", "cv2")
"""Of these one is enough for files as well."""
HOW_TO_READ = "pip install av, or opencv-python-headless"


def is_installed(module: str) -> bool:
    """Whether it can be imported, which is not done."""
    return importlib.util.find_spec(module) is not None


def connect(path: str, form: str | None, timeout: tuple[float, float]) -> Connection:
    """Open a live source; form: FFmpeg's name of its format. SourceError where that fails."""
    if is_installed("av"):
        from mosaic_edge.sources.ffmpeg import FFmpegConnection

        return FFmpegConnection(path, form, timeout)
    if is_installed("cv2"):
        from mosaic_edge.sources.opencv import OpenCvConnection

        return OpenCvConnection(path, timeout)
    if shutil.which("gst-launch-1.0"):
        from mosaic_edge.sources.gstreamer import GStreamerConnection

        return GStreamerConnection(_pipeline(path), timeout)
    raise SourceError(name_of(path), None, f"nothing here reads video: {HOW_TO_READ}")


def _pipeline(path: str) -> str:
    if is_url(path):
        return f"uridecodebin uri={shlex.quote(path)}"
    if path.startswith("/dev/video"):
        return f"v4l2src device={shlex.quote(path)} ! decodebin"
    return f"filesrc location={shlex.quote(path)} ! decodebin"
