"""Video read by OpenCV, where PyAV is not installed: the usual files and cameras. It says nothing of damage,
and a file is read, not sought, up to `start`."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2

from mosaic_edge.sources.connection import Picture, RgbPicture
from mosaic_edge.sources.frame_source import Frame, SourceError, Where, is_held
from mosaic_edge.sources.registry import FILE_SCHEMES, scheme
from mosaic_edge.sources.timeline import Ticks, Timeline
from mosaic_edge.sources.where import CONNECT_S, READ_S, check_there, check_window, is_pipe, is_url, name_of

MOST_RATE = 1000.0
"""Pictures a second; where there are no times OpenCV tells the ticks of a clock."""
_OPTIONS, _ENVIRONMENT = "OPENCV_FFMPEG_CAPTURE_OPTIONS", threading.Lock()


class OpenCvConnection:
    """A live source. path: a URL, a device or a pipe."""

    def __init__(self, path: str, timeout: tuple[float, float] | None) -> None:
        self.timeless = self.patient = self.over = False
        self.broken = 0
        self.broke_off: str | None = None
        self._capture = _captured(path, timeout)
        if not self._capture.isOpened():
            raise SourceError(name_of(path), None, "not a readable video (OpenCV does not say why)")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if 0 < rate < MOST_RATE else None

    def pictures(self) -> Iterator[tuple[Picture, float | None]]:
        """Each with its time, s."""
        while self._capture.grab():
            found, pixels = self._capture.retrieve()
            if found:  # a stream without times has zeros
                yield (
                    RgbPicture(pixels, is_bgr=True),
                    self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000.0 or None,
                )
            else:
                self.broken += 1

    def abort(self) -> None:
        """OpenCV's calls end by their own timeouts."""

    def close(self) -> None:
        """Close it."""
        self._capture.release()


@scheme(*FILE_SCHEMES, without="av")
class OpenCvVideo:
    """The frames of a video file, as VideoSource gives them where PyAV is installed."""

    def __init__(
        self, path: Where, fps: float | None = None, start: float = 0.0, end: float | None = None
    ) -> None:
        check_window(fps, start, end)
        if is_held(path):
            raise ValueError("a video that is no file on a disk is read by PyAV alone: pip install av")
        check_there(path)
        self.path = os.fspath(path)  # type: ignore[arg-type]
        self.fps, self.start, self.end = fps, float(start), end
        self._closed = False
        self._opened: OpenCvConnection | None = OpenCvConnection(self.path, None)

    def __iter__(self) -> Iterator[Frame]:
        opened, self._opened = self._opened, None
        if opened is None:
            if is_pipe(self.path):
                raise SourceError(name_of(self.path), None, "it can be read once, and was")
            opened = OpenCvConnection(self.path, None)
        self._closed = False
        try:
            yield from self._frames(opened)
        finally:
            opened.close()

    def close(self) -> None:
        """End the iteration before its next frame."""
        self._closed = True
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _frames(self, opened: OpenCvConnection) -> Iterator[Frame]:
        ticks, given = Ticks(self.fps), 0
        timeline: Timeline[Picture] = Timeline(1.0 / (opened.rate or 30.0))
        for picture, pts in _timed(timeline, opened):
            if self._closed or (self.end is not None and pts >= self.end):
                return
            if pts >= self.start and ticks.take(pts):
                yield Frame(picture.image(), pts, given)
                given += 1
        if not given:
            last = (
                f"its last frame is at {timeline.last:.2f} s" if timeline.count else "nothing in it decodes"
            )
            raise SourceError(name_of(self.path), None, f"start={self.start:g}: {last}")


def _timed(timeline: Timeline[Picture], opened: OpenCvConnection) -> Iterator[tuple[Picture, float]]:
    for picture, raw in opened.pictures():
        yield from timeline.take(picture, raw)
    yield from timeline.rest()


def _captured(path: str, timeout: tuple[float, float] | None) -> Any:
    """timeout: seconds for a connection and for data."""
    if path.startswith("/dev/video"):
        return cv2.VideoCapture(path, cv2.CAP_V4L2)
    if is_url(path):
        limits = (cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, cv2.CAP_PROP_READ_TIMEOUT_MSEC)
        milliseconds = (min(round(1000 * min(s, 1e6)), 1 << 30) for s in timeout or (CONNECT_S, READ_S))
        said = [value for pair in zip(limits, milliseconds, strict=True) for value in pair]
        return cv2.VideoCapture(path, cv2.CAP_FFMPEG, said)
    with _ENVIRONMENT:  # a playlist in a local file connects to nobody; there is no other way to say so
        before = os.environ.get(_OPTIONS)
        os.environ[_OPTIONS] = "protocol_whitelist;file,crypto,data"
        try:
            return cv2.VideoCapture(str(Path(path).absolute()), cv2.CAP_FFMPEG)
        finally:
            del os.environ[_OPTIONS]
            if before is not None:
                os.environ[_OPTIONS] = before
