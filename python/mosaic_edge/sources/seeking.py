"""Where to begin to decode, so that the first picture at or after `start` is right in any container.

FFmpeg's own seek is exact where the file has an index. In MPEG-TS and MPEG-PS it lands anywhere, in raw H.264
nowhere, and in joined recordings on the wrong clock. There packets are read from the beginning, not decoded:
a group of pictures is kept until its successor begins before `start`, too.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from av.container import InputContainer
from av.error import FFmpegError
from av.format import Flags
from av.video.stream import VideoStream

from mosaic_edge.sources.decoding import has_breaks, has_flag, seconds, time_of
from mosaic_edge.sources.timeline import Timeline

if TYPE_CHECKING:
    from mosaic_edge.sources.decoding import VideoPacket

REORDER = 17
"""Pictures that a decoder may have to wait for before it shows one: 16 in H.264 and HEVC."""
GROUP_BYTES = 32 << 20
"""A group of pictures longer than this is decoded, not kept."""


def has_index(container: InputContainer) -> bool:
    """Whether FFmpeg's seek can be relied on."""
    unreliable = (Flags.generic_index, Flags.no_timestamps)
    return not has_breaks(container) and not any(has_flag(container, flag) for flag in unreliable)


def seek_before(container: InputContainer, video: VideoStream, start: float) -> bool:
    """Go to the key frame before `start`; False where that cannot be done."""
    try:
        container.seek(int(start / (video.time_base or 1)), stream=video, backward=True)
    except (FFmpegError, OSError, OverflowError):
        return False
    return True


class _Group:
    """A key frame and what follows it."""

    def __init__(self, number: int, raw: float | None) -> None:
        self.number, self.raw = number, raw
        self.packets: list[VideoPacket] = []


def skip_before(
    packets: Iterator[VideoPacket], start: float, clock: Timeline[int], shown: Timeline[Any]
) -> Iterator[VideoPacket]:
    """The packets from the last key frame on that is shown at or before `start`.

    clock: a timeline of its own for what is skipped; `shown`, that of the pictures, is told where they begin.
    """
    groups: list[_Group] = []
    held = 0
    ending: VideoPacket | None = None
    for number, packet, times in _timed(packets, clock):
        if packet is not None and not packet.size:
            ending = packet
        elif packet is not None:
            if packet.is_keyframe or not groups:
                groups.append(_Group(number, time_of(packet)))
            groups[-1].packets.append(packet)
            held += packet.size
        for known, pts in times:
            if pts > start:
                break
            for i, group in enumerate(groups):
                if group.number == known:
                    held -= sum(p.size for g in groups[:i] for p in g.packets)
                    groups = groups[i:]
                    shown.begin_at(pts, group.raw)
        else:
            if held <= GROUP_BYTES:
                continue
        break
    for group in groups:
        yield from group.packets
        group.packets = []
    if ending is not None:
        yield ending
    yield from packets


def _timed(
    packets: Iterator[VideoPacket], clock: Timeline[int]
) -> Iterator[tuple[int, VideoPacket | None, list[tuple[int, float]]]]:
    """Each packet with its number, and the times, by number, of those that are known by then: in the order
    they are shown, as far as that can be said without their pictures."""
    waiting: list[tuple[float, int]] = []
    decoded: float | None = None
    number = -1
    for number, packet in enumerate(packets):
        raw = time_of(packet) if packet.size else None
        dts = seconds(packet.dts, packet.time_base) if packet.size else None
        times: list[tuple[int, float]] = []
        if raw is None:
            times += _flush(waiting, clock, 0)
            if packet.size:
                times += clock.take(number, None)
        else:
            if dts is not None and decoded is not None and not -1.0 < dts - decoded < 10.0:
                times += _flush(waiting, clock, 0)
            heapq.heappush(waiting, (raw, number))
            times += _flush(waiting, clock, REORDER)
        decoded = dts if dts is not None else decoded
        yield number, packet, times
    yield number + 1, None, [*_flush(waiting, clock, 0), *clock.rest()]


def _flush(waiting: list[tuple[float, int]], clock: Timeline[int], least: int) -> list[tuple[int, float]]:
    times: list[tuple[int, float]] = []
    while len(waiting) > least:
        raw, number = heapq.heappop(waiting)
        times += clock.take(number, raw)
    return times
