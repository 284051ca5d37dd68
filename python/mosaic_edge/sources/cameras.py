"""Cameras: V4L2 devices by their path, network cameras by their URL."""

from __future__ import annotations

from mosaic_edge.sources.live import LiveSource
from mosaic_edge.sources.registry import scheme


@scheme("v4l2")
class V4l2Camera(LiveSource):
    """A camera of this machine: "/dev/video0"."""

    FORMAT = "v4l2"  # it has no header that FFmpeg could know it by


@scheme("rtsp", "rtsps", "rtmp", "rtmps")
class NetworkCamera(LiveSource):
    """A camera that sends: "rtsp://..."."""
