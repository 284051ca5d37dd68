"""Pictures out of a container: what breaks is counted, what decodes comes upright in RGB."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from enum import Enum
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from av import VideoFrame, VideoStream
from av.container import InputContainer
from av.error import ExitError, FFmpegError
from av.format import Flags
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from numpy.typing import NDArray

from mosaic_edge.sources.tone import is_hdr, tone_mapped

if TYPE_CHECKING:
    from av import Packet

    VideoPacket: TypeAlias = Packet[VideoStream]

JOIN_PACKETS = 2
"""How near a key frame a packet must be that only looks cut short: the parser may mark the one before."""


class Damage:
    """What went wrong while a file was read: the first cause and how often."""

    def __init__(self) -> None:
        self.last_duration: float | None = None  # of the last packet, s
        self.clear()

    def clear(self) -> None:
        """What was read is read anew."""
        self.first: str | None = None
        self.count = 0
        self.broke_off: str | None = None
        """Why there was nothing more to read, other than that it was the end."""

    def add(self, cause: str, time: float | None) -> None:
        """Something went wrong, at `time` seconds where that is known."""
        self.count += 1
        if self.first is None:
            self.first = cause if time is None else f"{cause} at {time:.2f} s"

    def summary(self) -> str | None:
        """In one line; None if nothing was."""
        more = f" (and {self.count - 1} more)" if self.count > 1 else ""
        return None if self.first is None else f"{self.first}{more}"


def has_breaks(container: InputContainer) -> bool:
    """Whether times of its format may begin anew in the middle (MPEG-TS, MPEG-PS, HLS)."""
    return has_flag(container, Flags.ts_discont)


def has_flag(container: InputContainer, flag: Flags) -> bool:
    """Whether FFmpeg says so of its format."""
    flags: Any = container.format.flags  # an int, though typed as Flags
    return bool(flags & flag.value)


def packets_of(container: InputContainer, video: VideoStream, damage: Damage) -> Iterator[VideoPacket]:
    """The packets of a stream, with its last, empty one; where the container breaks off they end.

    In a format with breaks a packet that is marked as cut short next to a key frame is where two recordings
    were joined: the counter in their packets begins anew there, and nothing is missing.
    """
    joins = JOIN_PACKETS if has_breaks(container) else 0
    cut: float | None = None
    since_cut = -1  # packets; below 0: none is marked
    for packet in _until_it_breaks_off(container, video, damage):
        if since_cut >= 0:
            since_cut += 1
            if packet.size and packet.is_keyframe and since_cut <= joins:
                since_cut = -1
            elif not packet.size or since_cut > joins:
                damage.add("a packet is cut short", cut)
                since_cut = -1
        if packet.size:
            if packet.is_corrupt and since_cut < 0:
                since_cut, cut = 0, time_of(packet)
            damage.last_duration = seconds(packet.duration, packet.time_base)
        yield packet


def _until_it_breaks_off(
    container: InputContainer, video: VideoStream, damage: Damage
) -> Iterator[VideoPacket]:
    # PyAV's generator (18.1, 19.0) frees what it took from C at its end or when it is closed, and not when it
    # is forgotten: every picture that a client sends would leave 165 bytes behind.
    packets: Any = container.demux(video)  # a generator, though typed as an iterator
    with closing(packets):
        try:
            yield from packets
        except (FFmpegError, OSError) as error:
            damage.broke_off = f"it cannot be read on ({reason(error)})"
            damage.add(damage.broke_off, None)


def decode(packets: Iterable[VideoPacket], video: VideoStream, damage: Damage) -> Iterator[VideoFrame]:
    """Every picture that decodes; what does not is counted in `damage`, and what comes after it decodes.

    One picture at a time: a decoder that has several in work on as many threads loses, with one that is
    broken, those that are in work beside it, so that the number of cores would tell what is lost.
    """
    video.thread_type = "SLICE"
    for packet in packets:
        if not packet.size:
            break
        try:
            pictures = video.codec_context.decode(packet)
        except (FFmpegError, OSError) as error:
            damage.add(f"a packet does not decode ({reason(error)})", time_of(packet))
            continue
        yield from pictures
    try:
        yield from video.codec_context.decode(None)
    except (FFmpegError, OSError) as error:
        damage.add(f"the last pictures do not decode ({reason(error)})", None)


def _unnamed(kind: type[Enum], value: object) -> Enum | None:
    """A member for a number that PyAV has no name for."""
    if not isinstance(value, int):
        return None
    member = object.__new__(kind)
    member._name_, member._value_ = f"UNNAMED_{value}", value
    return kind._value2member_map_.setdefault(value, member)


# FFmpeg attaches more kinds of data to pictures than PyAV's enum has (EXIF, the eye a view is for), and PyAV
# then gives none of a picture's data at all, not even its display matrix.
SideDataType._missing_ = classmethod(_unnamed)  # type: ignore[assignment,method-assign]


MOST_STRETCH = 4
"""Pixels are at most so many times as wide as high, or as high as wide; a stream that says more is wrong."""


def upright(picture: VideoFrame, pixel: Fraction | None = None) -> NDArray[np.uint8]:
    """RGB pixels [H, W, 3], as wide as they are high, turned and mirrored as the display matrix says (to the
    nearest quarter turn); of a high dynamic range, as of the usual one. pixel: how wide a pixel of the stream
    is to its height; None or 0: as high.

    Of an interlaced picture one field is shown, its other lines between theirs: two times in one picture are
    combs on all that moves.
    """
    width = picture.width
    if pixel and 1 / MOST_STRETCH <= pixel <= MOST_STRETCH:
        width = max(1, round(width * pixel))
    if is_hdr(picture):
        image: NDArray[Any] = tone_mapped(picture, width)
    elif picture.interlaced_frame:
        image = _field(picture.to_ndarray(format="rgb24"))
        if width != picture.width:
            image = VideoFrame.from_ndarray(image, format="rgb24").to_ndarray(format="rgb24", width=width)
    else:
        image = picture.to_ndarray(format="rgb24", width=width)
    image = image.astype(np.uint8, copy=False)
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


def _field(image: NDArray[Any]) -> NDArray[Any]:
    """The even lines, and between them their means."""
    lines = image.copy()
    between = lines[1:-1:2]
    lines[1:-1:2] = (image[0:-2:2][: len(between)].astype(np.uint16) + image[2::2][: len(between)]) // 2
    if len(lines) % 2 == 0:
        lines[-1] = lines[-2]
    return lines


def time_of(packet: VideoPacket) -> float | None:
    """When what is in it is shown, or decoded; None where it does not say, s."""
    return seconds(packet.dts if packet.pts is None else packet.pts, packet.time_base)


def seconds(ticks: int | None, time_base: Fraction | None) -> float | None:
    """Of a time in ticks; None where there is none. A time base that is not set is None, or 0/1 (PyAV 19)."""
    return None if ticks is None or not time_base else float(ticks * time_base)


def reason(error: BaseException) -> str:
    """Why, in as few words as the error has."""
    if isinstance(error, ExitError):  # what FFmpeg says when its time is up
        return "no data came in time"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
