"""Frames of a video file, or of a stream that FFmpeg opens by its URL, one at a time with their real times.

Memory is constant: a frame is decoded, handed over and forgotten. What a file cannot give is said once, at
the end, in one line: `SourceError` names the file, the time that was reached and the cause.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator
from copy import copy
from weakref import WeakSet

import av
from av import VideoFrame, VideoStream
from av.container import InputContainer
from av.error import FFmpegError

from mosaic_edge.sources.ahead import Ahead, aside, left_alone
from mosaic_edge.sources.decoding import (
    Damage,
    decode,
    has_breaks,
    packets_of,
    reason,
    seconds,
    upright,
)
from mosaic_edge.sources.encryption import encryption_of
from mosaic_edge.sources.frame_source import Frame, SourceError, Where, is_held
from mosaic_edge.sources.opening import open_container, video_stream
from mosaic_edge.sources.registry import FILE_SCHEMES, scheme
from mosaic_edge.sources.seeking import has_index, seek_before, skip_before
from mosaic_edge.sources.timeline import Ticks, Timeline
from mosaic_edge.sources.where import check_there, check_window, is_pipe, name_of, waits

# A file that ends this much before the duration it declares was cut off.
TRUNCATION_TOLERANCE_S = 0.5
_ROUNDING_S = 1e-9
_STEP_S = 1.0 / 30
"""Between pictures of a stream that does not say how many come a second."""


@scheme(*FILE_SCHEMES)
class VideoSource:
    """The frames of a video file, in order, at most `fps` of them a second.

    Sampling follows the pts timeline, so a variable frame rate is no special case: ticks lie 1/fps apart from
    the first frame on, and each tick takes the first frame at or after it. A frame is given once, so a slower
    video gives fewer frames, and nothing waits for the future. Frames between ticks are decoded (later ones
    need them) but never converted to RGB. A clock that begins anew on the way (joined recordings) goes on.

    Args:
        path: any file PyAV reads, or its bytes, or a binary file that is open. Audio is ignored, attached
            pictures (cover art) too. It is opened once, here, and read by the first iteration; another
            iteration opens it again, which a pipe does not allow.
        fps: frames per second to give; None gives every frame.
        start: seconds on the file's timeline; frames before it are skipped. 0 is the file's beginning. A file
            without an index (MPEG-TS, MPEG-PS, raw H.264) is read, not decoded, up to there.
        end: seconds on the same timeline; frames at or after it are not read. None reads to the end.
        stream: index of a video stream in the file; None takes the one FFmpeg calls best.

    Attributes: rate (average frames per second, None where unknown), first (pts of the beginning, s) and
    duration (s, None where the file does not say).

    Raises:
        ValueError: fps, start, end or stream is out of range.
        SourceError: here for no such file, a directory, an empty file, no container, no video stream; while
            frames are read for a corrupt or truncated file: what decodes is given first, then this, once; and
            for a `start` behind the last frame, or an `end` before the first.
    """

    def __init__(
        self,
        path: Where,
        fps: float | None = None,
        start: float = 0.0,
        end: float | None = None,
        stream: int | None = None,
    ) -> None:
        check_window(fps, start, end)
        self.path: Where = path if is_held(path) else os.fspath(path)  # type: ignore[arg-type]
        self.fps, self.start, self.end = fps, float(start), end
        self._name, self._wanted = name_of(path), stream
        self._closed = self._reading = False
        check_there(path)
        self._at = path.tell() if hasattr(path, "tell") and not is_pipe(path) else 0
        self._waits = waits(self.path)
        self._ahead: WeakSet[Ahead[Frame]] = WeakSet()
        container = self._open()
        try:
            video = video_stream(container, self._name, stream)
            self.rate = float(video.average_rate) if video.average_rate else None
            self._pixel = video.sample_aspect_ratio
            self.first = seconds(video.start_time, video.time_base) or 0.0
            self._declared = self._declared_end(container, video)
            self.duration = None if self._declared is None else self._declared - self.first
            if self.duration is None and container.duration is not None:
                self.duration = container.duration / av.time_base
        except BaseException:
            self._drop(container)
            raise
        self._opened: InputContainer | None = container

    def __iter__(self) -> Iterator[Frame]:
        """Read from `start` on. Every call but the first opens the file anew."""
        self._closed = False
        if self._waits:
            reader = copy(self)  # what it opens is its own
            self._opened = None
            ahead = Ahead(reader._read(), f"{self._name}: reading it", reader._end)
            self._ahead.add(ahead)
            yield from ahead
        else:
            yield from self._read()

    def _end(self) -> None:
        self._closed = True

    def _read(self) -> Generator[Frame, None, None]:
        self._reading = True
        damage = Damage()
        timeline: Timeline[VideoFrame] = Timeline(self._step(), self._has_breaks())
        pictures = self._pictures(timeline, damage)
        try:
            yield from self._frames(pictures, timeline, damage)
        finally:
            pictures.close()
            self._reading = False
            if self._opened is not None:
                self._opened.close()
            self._opened = None

    def close(self) -> None:
        """End the iteration before its next frame; the file is closed there, or here if there is none."""
        self._closed = True
        for ahead in list(self._ahead):
            ahead.close()
        if self._opened is not None and not self._reading:
            self._drop(self._opened)
            self._opened = None

    def _open(self) -> InputContainer:
        if not self._waits:
            return open_container(self.path)
        return aside(lambda: open_container(self.path), f"{self._name}: opening it")

    def _drop(self, container: InputContainer) -> None:
        if self._waits:
            left_alone(container.close)
        else:
            container.close()

    def _step(self) -> float:
        return 1.0 / self.rate if self.rate else _STEP_S

    def _has_breaks(self) -> bool:
        return has_breaks(self._container())

    def _container(self) -> InputContainer:
        """The file at its beginning, open."""
        if self._opened is None:
            if is_pipe(self.path):
                raise SourceError(self._name, None, "it can be read once, and was")
            if hasattr(self.path, "seek"):
                self.path.seek(self._at)
            self._opened = open_container(self.path)
        return self._opened

    def _again(self) -> InputContainer:
        assert self._opened is not None
        self._opened.close()
        self._opened = None
        return self._container()

    def _pictures(
        self, timeline: Timeline[VideoFrame], damage: Damage
    ) -> Generator[tuple[VideoFrame, float], None, None]:
        """Pictures and their times, from the last key frame before `start` on, or from the beginning."""
        container = self._container()
        video = video_stream(container, self._name, self._wanted)
        if self.start > self.first and not is_pipe(self.path) and has_index(container):
            if seek_before(container, video, self.start):
                sought = decode(packets_of(container, video, damage), video, damage)
                begun = next(sought, None)
                if begun is not None and (begun.time is None or begun.time <= self.start):
                    yield from _timed(timeline, begun, sought)
                    return
            damage.clear()
            container = self._again()  # the index is missing, or wrong
            video = video_stream(container, self._name, self._wanted)
        packets = packets_of(container, video, damage)
        if self.start > self.first:
            clock: Timeline[int] = Timeline(self._step(), has_breaks(container))
            packets = skip_before(packets, self.start, clock, timeline)
        yield from _timed(timeline, None, decode(packets, video, damage))

    def _frames(
        self, pictures: Iterator[tuple[VideoFrame, float]], timeline: Timeline[VideoFrame], damage: Damage
    ) -> Iterator[Frame]:
        ticks, given, in_window = Ticks(self.fps), 0, False
        for picture, time in pictures:
            if self._closed:
                return
            if self.start > 0 and time < self.start - _ROUNDING_S:
                continue
            if self.end is not None and time >= self.end - _ROUNDING_S:
                if timeline.count == 1:
                    raise SourceError(self._name, None, f"end={self.end:g}: it begins at {time:.2f} s")
                return
            in_window = True
            if not ticks.take(time):
                continue
            try:
                image = upright(picture, self._pixel)
            except (FFmpegError, ValueError) as error:
                damage.add(f"a picture does not convert to RGB ({reason(error)})", time)
                continue
            yield Frame(image, time, given)
            given += 1
        self._check_end(timeline, damage, in_window)

    def _check_end(self, timeline: Timeline[VideoFrame], damage: Damage, in_window: bool) -> None:
        """The file ended: SourceError for what was wrong with it, or where nothing of it was wanted."""
        cause = damage.summary()
        if cause or not timeline.count:
            encrypted = None if is_held(self.path) else encryption_of(self.path)  # type: ignore[arg-type]
            cause = f"it is encrypted ({encrypted})" if encrypted else cause
        if not timeline.count:
            raise SourceError(self._name, None, cause or "nothing in its video stream decodes")
        finish = max(timeline.last, timeline.furthest) + (damage.last_duration or 0.0)
        if self._declared is not None and finish < self._declared - TRUNCATION_TOLERANCE_S:
            cut = f"it ends at {finish:.2f} s of {self._declared:.2f} s (truncated?)"
            cause = f"{cause}; {cut}" if cause else cut
        if not in_window:
            outside = f"start={self.start:g}: its last frame is at {timeline.last:.2f} s"
            raise SourceError(self._name, None, f"{outside}; {cause}" if cause else outside)
        if cause:
            raise SourceError(self._name, timeline.last, cause)

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


def _timed(
    timeline: Timeline[VideoFrame], first: VideoFrame | None, pictures: Iterator[VideoFrame]
) -> Iterator[tuple[VideoFrame, float]]:
    if first is not None:
        yield from timeline.take(first, first.time)
        del first
    for picture in pictures:
        yield from timeline.take(picture, picture.time)
    yield from timeline.rest()
