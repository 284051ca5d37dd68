"""Video in: frames of a file, or of arrays a robot already holds, one at a time with their real times.

Memory is constant: a frame is decoded, handed over and forgotten. What a file cannot give is said once, at
the end, in one line: `SourceError` names the file, the time that was reached and the cause.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av import VideoFrame, VideoStream
from av.container import InputContainer
from av.error import FFmpegError
from av.sidedata.sidedata import SideDataContainer
from av.stream import Disposition
from numpy.typing import NDArray

# Matroska rounds times to the millisecond, so a frame this close before a tick is the frame of that tick.
TICK_TOLERANCE_S = 1e-3
# A file that ends this much before the duration it declares was cut off.
TRUNCATION_TOLERANCE_S = 0.5
# Times that jump back further than this start a new stretch (joined recordings); it continues the timeline.
JUMP_BACK_S = 1.0


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a stream.

    image: uint8 [H, W, 3] RGB, upright. pts: seconds on the stream's own timeline, which need not start at 0;
    it always rises. index: how many frames this source gave before it.
    """

    image: NDArray[np.uint8]
    pts: float
    index: int


class SourceError(ValueError):
    """A source that cannot be read, or not to its end: path, seconds reached (None: no frame) and cause."""

    def __init__(self, path: str | os.PathLike[str], reached: float | None, cause: str) -> None:
        self.path = os.fspath(path)
        self.reached = reached
        self.cause = " ".join(cause.split())
        where = "no frame could be read" if reached is None else f"read up to {reached:.2f} s"
        super().__init__(f"{self.path}: {where}: {self.cause}")


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
        self._check_path()
        with self._open() as container:
            video = self._pick(container)
            self.rate = float(video.average_rate) if video.average_rate else None
            self.first = _seconds(video.start_time, video.time_base) or 0.0
            self._declared = self._declared_end(container, video)
            self.duration = None if self._declared is None else self._declared - self.first
            if self.duration is None and container.duration is not None:
                self.duration = container.duration / av.time_base

    def __iter__(self) -> Iterator[Frame]:
        """Read from `start` on. Every call opens the file anew."""
        with self._open() as container:
            video = self._pick(container)
            video.thread_type = "AUTO"
            if self.start > 0:
                self._seek(container, video)
            yield from self._frames(container, video)

    def _frames(self, container: InputContainer, video: VideoStream) -> Iterator[Frame]:
        damage = _Damage()
        clock = _Clock(1.0 / self.rate if self.rate else 1.0 / 30)
        anchor, tick, given = None, 0, 0
        for picture in _decode(container, video, damage):
            time = clock.read(picture)
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
                image = _upright(picture)
            except (FFmpegError, ValueError) as error:
                damage.add(f"a picture does not convert to RGB ({_reason(error)})", time)
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
            # A V4L2 camera has no header that FFmpeg could know it by.
            return av.open(self.path, format="v4l2" if self.path.startswith("/dev/video") else None)
        except (FFmpegError, OSError, ValueError) as error:
            cause = f"not a readable video ({_reason(error)})"
            if _is_mp4(self.path):
                cause = f"its index (moov) is missing or damaged; recording not finished? ({_reason(error)})"
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
        length = _seconds(video.duration, video.time_base)
        if length is not None:
            return self.first + length
        # Matroska: a tag per stream, else the segment's duration (maybe another stream's). Both count from 0.
        tag = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", video.metadata.get("DURATION", ""))
        if tag:
            return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
        if len(container.streams) == 1 and container.duration is not None:
            return container.duration / av.time_base
        return None


def frames_from_arrays(
    images: Iterable[NDArray[np.uint8]], fps: float, start: float = 0.0
) -> Iterator[Frame]:
    """Frames from pictures a camera or a robot already holds.

    images: uint8 [H, W, 3] RGB each, `fps` of them a second, the first at `start` seconds. Nothing is copied.
    Raises ValueError, naming the frame, for another shape or type.
    """
    if not 0 < fps < math.inf:
        raise ValueError(f"fps: got {fps}, expected a positive number")
    for index, image in enumerate(images):
        array = isinstance(image, np.ndarray)
        if not array or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            got = f"{image.dtype} {list(image.shape)}" if array else type(image).__name__
            raise ValueError(f"frame {index}: got {got}, expected uint8 [H, W, 3]")
        yield Frame(image, start + index / fps, index)


class _Damage:
    """What went wrong while a file was read: the first cause and how often."""

    def __init__(self) -> None:
        self.first: str | None = None
        self.count = 0
        self.last_duration: float | None = None  # of the last packet, s

    def add(self, cause: str, time: float | None) -> None:
        self.count += 1
        if self.first is None:
            self.first = cause if time is None else f"{cause} at {time:.2f} s"

    def summary(self) -> str | None:
        more = f" (and {self.count - 1} more)" if self.count > 1 else ""
        return None if self.first is None else f"{self.first}{more}"


class _Clock:
    """Times of decoded pictures: real pts, rising. A picture without one follows its forerunner by `step`."""

    def __init__(self, step: float) -> None:
        self._step, self._offset = step, 0.0
        self.last, self.frames = 0.0, 0

    def read(self, picture: VideoFrame) -> float | None:
        """Seconds, or None for a picture that is not later than the one before it."""
        if picture.time is None:
            time = self.last + self._step if self.frames else 0.0
        else:
            time = float(picture.time) + self._offset
        if self.frames and time < self.last - JUMP_BACK_S:
            self._offset += self.last + self._step - time
            time = self.last + self._step
        if self.frames and time <= self.last:
            return None
        self.last, self.frames = time, self.frames + 1
        return time


def _decode(container: InputContainer, video: VideoStream, damage: _Damage) -> Iterator[VideoFrame]:
    """Every picture of the stream that decodes; what does not is counted in `damage`."""
    packets = container.demux(video)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except (FFmpegError, OSError) as error:  # the container breaks off: drain the decoder and stop
            damage.add(f"the file cannot be read on ({_reason(error)})", None)
            packet = None
        time = None
        if packet is not None and packet.size:
            time = _seconds(packet.pts if packet.pts is not None else packet.dts, packet.time_base)
            damage.last_duration = _seconds(packet.duration, packet.time_base)
            if packet.is_corrupt:
                damage.add("a packet is cut short", time)
        try:
            yield from video.codec_context.decode(packet)
        except (FFmpegError, OSError) as error:
            damage.add(f"a packet does not decode ({_reason(error)})", time)
        if packet is None:
            return


def _upright(picture: VideoFrame) -> NDArray[np.uint8]:
    """RGB pixels [H, W, 3], turned and mirrored as the display matrix says (to the nearest quarter turn)."""
    image = picture.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    # Not picture.side_data: that is kept in the picture and points back at it, and what goes in a circle is
    # freed only when the garbage collector comes by, a hundred MiB of pictures later.
    side: Any = SideDataContainer(picture).get("DISPLAYMATRIX")  # type: ignore[call-arg]
    if side is None:
        return image
    # Rows (a b u)(c d v)(x y w) in fixed point: x' = a x + c y, y' = b x + d y, with y pointing down.
    a, b, _, c, d = (int(v) for v in np.frombuffer(bytes(side), dtype=np.int32)[:5])
    if abs(b) + abs(c) > abs(a) + abs(d):
        image, a, d = image.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _seconds(ticks: int | None, time_base: Fraction | None) -> float | None:
    return None if ticks is None or time_base is None else float(ticks * time_base)


def _is_mp4(path: str) -> bool:
    try:
        with Path(path).open("rb") as file:
            return file.read(8)[4:] == b"ftyp"
    except OSError:
        return False


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
