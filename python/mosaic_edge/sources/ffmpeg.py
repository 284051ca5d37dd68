"""A live connection read by FFmpeg, through PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from urllib.parse import urlsplit

import numpy as np
from av import VideoFrame
from av.error import FFmpegError
from av.format import Flags
from numpy.typing import NDArray

from mosaic_edge.sources.connection import Picture
from mosaic_edge.sources.decoding import Damage, decode, has_flag, packets_of, reason, upright
from mosaic_edge.sources.opening import open_container, video_stream
from mosaic_edge.sources.where import name_of


@dataclass(frozen=True, eq=False)
class _Decoded:
    """A picture as FFmpeg decoded it: most of them are dropped, and need not become RGB."""

    frame: VideoFrame
    pixel: Fraction | None

    @property
    def nbytes(self) -> int:
        return sum(plane.buffer_size for plane in self.frame.planes)

    def image(self) -> NDArray[np.uint8]:
        try:
            return upright(self.frame, self.pixel)
        except FFmpegError as error:
            raise ValueError(reason(error)) from None


class FFmpegConnection:
    """path: a URL, a device or a pipe. form: FFmpeg's demuxer; None: it finds out by itself."""

    def __init__(self, path: str, form: str | None, timeout: tuple[float, float]) -> None:
        self._damage = Damage()
        self._container = open_container(path, form, timeout, live=True)
        try:
            self._video = video_stream(self._container, name_of(path), None)
            self.rate = float(self._video.average_rate) if self._video.average_rate else None
            self.timeless = has_flag(self._container, Flags.no_timestamps)
            # A file on a web server has a length.
            web = urlsplit(path).scheme.lower() in ("http", "https", "ftp")
            self.patient = self.over = web and bool(self._container.duration)
        except BaseException:
            self._container.close()
            raise

    @property
    def broken(self) -> int:
        """Packets and pictures that did not decode."""
        return self._damage.count - (self._damage.broke_off is not None)

    @property
    def broke_off(self) -> str | None:
        """Why there was nothing more to read."""
        return self._damage.broke_off

    def pictures(self) -> Iterator[tuple[Picture, float | None]]:
        """Each with its time, s."""
        pixel = self._video.sample_aspect_ratio
        packets = packets_of(self._container, self._video, self._damage)
        for frame in decode(packets, self._video, self._damage):
            yield _Decoded(frame, pixel), frame.time

    def abort(self) -> None:
        """FFmpeg's calls end by their own timeouts; the thread that is in one is waited for by nobody."""

    def close(self) -> None:
        """Close the container."""
        self._container.close()
