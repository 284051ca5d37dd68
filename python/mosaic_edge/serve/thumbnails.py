"""Small pictures of what a session saw, for who looks at its evidence: so many bytes, whatever comes."""

from __future__ import annotations

import threading
from bisect import bisect_left
from fractions import Fraction
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

WIDE, LIVE_WIDE = 160, 640
LIVE_SHARE = 4
"""The newest picture may take the quota's so-manieth part."""


class Thumbnails:
    """JPEGs by time, all inside `quota_bytes`: the newest in a size to look at, and small ones spread evenly
    over the stream. When they fill the quota every other one goes, and every other frame is left out from
    then on. Any thread may call."""

    def __init__(self, quota_bytes: int) -> None:
        self.quota_bytes = quota_bytes
        self._lock = threading.Lock()
        self._times: list[float] = []
        self._pictures: list[bytes] = []
        self._live: tuple[float, bytes] | None = None
        self._used = 0  # of the small ones
        self._stride, self._seen = 1, 0

    @property
    def used_bytes(self) -> int:
        """What they take now."""
        with self._lock:
            return self._used + (len(self._live[1]) if self._live else 0)

    def add(self, image: NDArray[np.uint8], pts: float) -> None:
        """A frame uint8 [H, W, 3] seen at `pts` seconds, not before the last."""
        if not self.quota_bytes:
            return
        live = as_jpeg(image, LIVE_WIDE)
        if len(live) > self.quota_bytes // LIVE_SHARE:
            live = as_jpeg(image, WIDE)
        wanted = self._seen % self._stride == 0
        small = as_jpeg(image, WIDE) if wanted else b""
        with self._lock:
            self._seen += 1
            self._live = (pts, live) if len(live) <= self.quota_bytes // LIVE_SHARE else None
            if wanted:
                self._keep(small, pts)

    def newest(self) -> tuple[float, bytes] | None:
        """Time and JPEG of the newest frame."""
        return self._live

    def nearest(self, pts: float) -> tuple[float, bytes] | None:
        """Time and JPEG of the small picture nearest to `pts` seconds."""
        with self._lock:
            if not self._times:
                return None
            behind = bisect_left(self._times, pts)
            near = [i for i in (behind - 1, behind) if 0 <= i < len(self._times)]
            best = min(near, key=lambda i: abs(self._times[i] - pts))
            return self._times[best], self._pictures[best]

    def _keep(self, small: bytes, pts: float) -> None:
        room = self.quota_bytes - self.quota_bytes // LIVE_SHARE
        if len(small) > room:
            return
        while self._used + len(small) > room:
            if len(self._pictures) <= 1:
                return
            del self._times[1::2], self._pictures[1::2]
            self._used = sum(map(len, self._pictures))
            self._stride *= 2
        self._times.append(pts)
        self._pictures.append(small)
        self._used += len(small)


def as_jpeg(image: NDArray[np.uint8], most_wide: int) -> bytes:
    """uint8 [H, W, 3] as a JPEG of at most so many pixels a side, both even."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    scale = min(1.0, most_wide / max(frame.width, frame.height))
    encoder: Any = av.CodecContext.create("mjpeg", "w")
    encoder.width = max(2, round(frame.width * scale / 2) * 2)
    encoder.height = max(2, round(frame.height * scale / 2) * 2)
    encoder.pix_fmt, encoder.time_base = "yuvj420p", Fraction(1, 25)
    encoder.thread_count = 1  # threads cost more to start than a small picture takes
    encoder.options = {"qmin": "4", "qmax": "8"}
    shrunk = frame.reformat(encoder.width, encoder.height, "yuvj420p")
    shrunk.pts = 0
    return b"".join(bytes(packet) for packet in [*encoder.encode(shrunk), *encoder.encode(None)])
