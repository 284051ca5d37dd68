"""Pictures out of a container, with real times: what breaks is counted, what decodes comes upright in RGB."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from av import VideoFrame, VideoStream
from av.container import InputContainer
from av.error import FFmpegError
from av.sidedata.sidedata import SideDataContainer
from numpy.typing import NDArray

# Times that jump back further than this start a new stretch (joined recordings); it continues the timeline.
JUMP_BACK_S = 1.0


class Damage:
    """What went wrong while a file was read: the first cause and how often."""

    def __init__(self) -> None:
        self.first: str | None = None
        self.count = 0
        self.last_duration: float | None = None  # of the last packet, s

    def add(self, cause: str, time: float | None) -> None:
        """Something went wrong, at `time` seconds where that is known."""
        self.count += 1
        if self.first is None:
            self.first = cause if time is None else f"{cause} at {time:.2f} s"

    def summary(self) -> str | None:
        """In one line; None if nothing was."""
        more = f" (and {self.count - 1} more)" if self.count > 1 else ""
        return None if self.first is None else f"{self.first}{more}"


class Clock:
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


def decode(container: InputContainer, video: VideoStream, damage: Damage) -> Iterator[VideoFrame]:
    """Every picture of the stream that decodes; what does not is counted in `damage`."""
    packets = container.demux(video)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except (FFmpegError, OSError) as error:  # the container breaks off: drain the decoder and stop
            damage.add(f"the file cannot be read on ({reason(error)})", None)
            packet = None
        time = None
        if packet is not None and packet.size:
            time = seconds(packet.pts if packet.pts is not None else packet.dts, packet.time_base)
            damage.last_duration = seconds(packet.duration, packet.time_base)
            if packet.is_corrupt:
                damage.add("a packet is cut short", time)
        try:
            yield from video.codec_context.decode(packet)
        except (FFmpegError, OSError) as error:
            damage.add(f"a packet does not decode ({reason(error)})", time)
        if packet is None:
            return


def upright(picture: VideoFrame) -> NDArray[np.uint8]:
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


def seconds(ticks: int | None, time_base: Fraction | None) -> float | None:
    """Of a time in ticks; None where there is none."""
    return None if ticks is None or time_base is None else float(ticks * time_base)


def reason(error: BaseException) -> str:
    """Why, in as few words as the error has."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
