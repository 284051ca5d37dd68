"""What an encoded picture says of its size, read from its first bytes: one that would fill the memory when
it is decoded is refused before that."""

from __future__ import annotations

import math
import struct

MOST_PIXELS = 1 << 24
_MOST_CHUNKS = 4096
_KINDS = "JPEG, PNG, WebP or GIF"


def check_picture(data: bytes, name: str = "frame") -> None:
    """ValueError for what is none of the formats above, has no size, or too large a one."""
    size = _size_of(data)
    if size is None:
        raise ValueError(f"{name}: {len(data)} bytes that are no {_KINDS}")
    check_pixels(*size, name)


def check_pixels(width: int, height: int, name: str) -> None:
    """ValueError for a picture that is none, or too large."""
    if not 0 < width * height <= MOST_PIXELS:
        raise ValueError(f"{name}: {width} x {height} pixels; expected 1 to {MOST_PIXELS}")


def _size_of(data: bytes) -> tuple[int, int] | None:
    try:
        if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR":
            return struct.unpack(">II", data[16:24])
        if data[:6] in (b"GIF87a", b"GIF89a"):
            return struct.unpack("<HH", data[6:10])
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _of_webp(data)
        if data[:3] == b"\xff\xd8\xff":
            return _of_jpeg(data)
    except (struct.error, IndexError):  # it ends in its header
        pass
    return None


def _of_webp(data: bytes) -> tuple[int, int] | None:
    """The largest that it says: a canvas may be smaller than the picture in it, which is what is decoded."""
    sizes, at = [], 12
    for _ in range(_MOST_CHUNKS):
        kind, head = data[at : at + 4], data[at + 8 : at + 18]
        if kind == b"VP8 ":
            width, height = struct.unpack("<HH", head[6:10])
            sizes.append((width & 0x3FFF, height & 0x3FFF))
        elif kind == b"VP8L":
            (bits,) = struct.unpack("<I", head[1:5])
            sizes.append(((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1))
        elif kind == b"VP8X":
            low_wide, high_wide, low_high, high_high = struct.unpack("<HBHB", head[4:10])
            sizes.append(((low_wide | high_wide << 16) + 1, (low_high | high_high << 16) + 1))
        if at + 8 >= len(data):
            return max(sizes, key=math.prod, default=None)
        (length,) = struct.unpack("<I", data[at + 4 : at + 8])
        # A frame of an animation holds chunks of its own, behind 16 bytes.
        at += 8 + (16 if kind == b"ANMF" else length + (length & 1))
    return None


def _of_jpeg(data: bytes) -> tuple[int, int] | None:
    """Of the frame header, behind the segments before it."""
    at = 2
    while at < len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        else:
            at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
    return None
