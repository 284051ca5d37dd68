"""Frames of a video file, or of a stream that FFmpeg opens by its URL, one at a time with their real times.

Memory is constant: a frame is decoded, handed over and forgotten. What a file cannot give is said once, at
the end, in one line: `SourceError` names the file, the time that was reached and the cause.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import av
from av import VideoStream
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition

from mosaic_edge.sources.decoding import Clock, Damage, decode, reason, seconds, upright
from mosaic_edge.sources.frame_source import Frame, SourceError
from mosaic_edge.sources.registry import scheme

# Matroska rounds times to the millisecond, so a frame this close before a tick is the frame of that tick.
TICK_TOLERANCE_S = 1e-3
# A file that ends this much before the duration it declares was cut off.
TRUNCATION_TOLERANCE_S = 0.5


@scheme("file", "http", "https", "ftp", "unix", "tcp", "tls", "udp", "rtp", "srt")
class VideoSource:
    """The frames of a video file, in order, at most `fps` of them a second.

    Sampling follows the pts timeline, so a variable frame rate is no special case: ticks lie 1/fps apart from
    the first frame on, and each tick takes the first frame at or after it. A frame is given once, so a slower
    video gives fewer frames, and nothing waits for the future. Frames between ticks are decoded (later ones
    need them) but never converted to RGB.

    Args:
        path: any file PyAV reads. Audio is ignored, attached pictures (cover art) too.
        fps: frames per second to give; None gives every frame.
        start: seconds on the file's timeline; frames before it are skipped. 0 is the file's beginning.
        end: seconds on the same timeline; frames at or after it are not read. None reads to the end.
        stream: index of a video stream in the file; None takes the one FFmpeg calls best.

    Attributes: rate (average frames per second, None where unknown), first (pts of the beginning, s) and
    duration (s, None where the file does not say).

    Raises:
        ValueError: fps, start, end or stream is out of range.
        SourceError: here for no such file, a directory, an empty file, no container, no video stream; while
            frames are read for a corrupt or truncated file: what decodes is given first, then this, once.
    """

    FORMAT: str | None = None
    """FFmpeg's demuxer; None: it finds out by itself."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        fps: float | None = None,
        start: float = 0.0,
        end: float | None = None,
        stream: int | None = None,
    ) -> None:
        if fps is not None and not 0 < fps < math.inf:
            raise ValueError(f"fps: got {fps}, expected a positive number or None for every frame")
        if not 0 <= start < math.inf:
            raise ValueError(f"start: got {start}, expected seconds from 0 on")
        if end is not None and not end > start:
            raise ValueError(f"end: got {end}, expected more than start={start}")
        self.path, self.fps, self.start, self.end = os.fspath(path), fps, float(start), end
        self._wanted = stream
        self._closed = False
        self._check_path()
        with self._open() as container:
            video = self._pick(container)
            self.rate = float(video.average_rate) if video.average_rate else None
            self.first = seconds(video.start_time, video.time_base) or 0.0
            self._declared = self._declared_end(container, video)
            self.duration = None if self._declared is None else self._declared - self.first
            if self.duration is None and container.duration is not None:
                self.duration = container.duration / av.time_base

    def __iter__(self) -> Iterator[Frame]:
        """Read from `start` on. Every call opens the file anew."""
        self._closed = False
        with self._open() as container:
            video = self._pick(container)
            video.thread_type = "AUTO"
            if self.start > 0:
                self._seek(container, video)
            yield from self._frames(container, video)

    def close(self) -> None:
        """End the iteration before its next frame; the file is closed there."""
        self._closed = True

    def _frames(self, container: InputContainer, video: VideoStream) -> Iterator[Frame]:
        damage = Damage()
        clock = Clock(1.0 / self.rate if self.rate else 1.0 / 30)
        anchor, tick, given = None, 0, 0
        for picture in decode(container, video, damage):
            time = clock.read(picture)
            if self._closed:
                return
            if time is None or (self.start > 0 and time < self.start - 1e-9):
                continue
            if self.end is not None and time >= self.end:
                return
            if self.fps is not None:
                anchor = time if anchor is None else anchor
                due = math.floor((time - anchor + TICK_TOLERANCE_S) * self.fps)
                if due < tick:
                    continue
                tick = due + 1
            try:
                image = upright(picture)
            except (FFmpegError, ValueError) as error:
                damage.add(f"a picture does not convert to RGB ({reason(error)})", time)
                continue
            yield Frame(image, time, given)
            given += 1
        cause = damage.summary()
        if not clock.frames:
            raise SourceError(self.path, None, cause or "nothing in its video stream decodes")
        finish = clock.last + (damage.last_duration or 0.0)
        if self._declared is not None and finish < self._declared - TRUNCATION_TOLERANCE_S:
            cut = f"it ends at {finish:.2f} s of {self._declared:.2f} s (truncated?)"
            cause = f"{cause}; {cut}" if cause else cut
        if cause:
            raise SourceError(self.path, clock.last, cause)

    def _check_path(self) -> None:
        if "://" in self.path:
            return
        file = Path(self.path)
        try:
            if not file.exists():
                raise SourceError(self.path, None, "no such file")
            if file.is_dir():
                raise SourceError(self.path, None, "it is a directory, not a video file")
            if file.is_file() and file.stat().st_size == 0:
                raise SourceError(self.path, None, "the file is empty (0 bytes)")
        except OSError as error:
            raise SourceError(self.path, None, error.strerror or str(error)) from error

    def _open(self) -> InputContainer:
        try:
            return av.open(self.path, format=self.FORMAT)
        except (FFmpegError, OSError, ValueError) as error:
            cause = f"not a readable video ({reason(error)})"
            if _is_mp4(self.path):
                cause = f"its index (moov) is missing or damaged; recording not finished? ({reason(error)})"
            raise SourceError(self.path, None, cause) from error

    def _pick(self, container: InputContainer) -> VideoStream:
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if self._wanted is not None:
            for video in streams:
                if video.index == self._wanted:
                    return video
            found = ", ".join(str(s.index) for s in streams) or "none"
            raise ValueError(f"stream: got {self._wanted}, expected a video stream of {self.path}: {found}")
        if not streams:
            raise SourceError(self.path, None, "there is no video stream in it")
        best = container.streams.best("video")
        video = next((s for s in streams if best is not None and s.index == best.index), streams[0])
        if video.codec_context is None:
            raise SourceError(self.path, None, "there is no decoder for its video codec")
        return video

    def _seek(self, container: InputContainer, video: VideoStream) -> None:
        try:
            container.seek(int(self.start / (video.time_base or 1)), stream=video, backward=True)
        except FFmpegError:  # no index: read from the beginning and drop what comes before
            container.seek(0)

    def _declared_end(self, container: InputContainer, video: VideoStream) -> float | None:
        """Where the video should end on its timeline (s); None where the file does not say."""
        length = seconds(video.duration, video.time_base)
        if length is not None:
            return self.first + length
        # Matroska: a tag per stream, else the segment's duration (maybe another stream's). Both count from 0.
        tag = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", video.metadata.get("DURATION", ""))
        if tag:
            return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
        if len(container.streams) == 1 and container.duration is not None:
            return container.duration / av.time_base
        return None


def _is_mp4(path: str) -> bool:
    try:
        with Path(path).open("rb") as file:
            return file.read(8)[4:] == b"ftyp"
    except OSError:
        return False
