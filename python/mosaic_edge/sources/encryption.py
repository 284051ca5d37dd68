"""Whether a file that does not decode is encrypted: FFmpeg does not say so, it decodes what it is given."""

from __future__ import annotations

import re
from pathlib import Path

_HEADER_BYTES = 4 << 20
"""Where a container's header stands, at its beginning or (MP4) at its end."""
_TS_PACKET = 188


def encryption_of(path: str) -> str | None:
    """What encrypts the file at `path`; None where nothing says that it is."""
    try:
        file = Path(path)
        if not file.is_file():
            return None
        with file.open("rb") as opened:
            start = opened.read(_HEADER_BYTES)
            opened.seek(max(_HEADER_BYTES, file.stat().st_size - _HEADER_BYTES))
            rest = opened.read(_HEADER_BYTES)
    except OSError:
        return None
    if start[4:8] in (b"ftyp", b"styp", b"moov", b"moof"):
        return _of_mp4(start + rest)
    if start[:4] == b"\x1a\x45\xdf\xa3":
        return "Matroska content encryption" if _CONTENT_ENCRYPTION.search(start) else None
    if start[:7] == b"#EXTM3U":
        method = re.search(rb"#EXT-X-(?:SESSION-)?KEY:[^\n]*METHOD=([A-Z0-9-]+)", start)
        return f"HLS, {method[1].decode()}" if method and method[1] != b"NONE" else None
    return _of_ts(start)


# An element ContentEncoding (0x6240) that has a ContentEncryption (0x5035) in it, near its beginning.
_CONTENT_ENCRYPTION = re.compile(rb"\x62\x40.{0,64}?\x50\x35", re.DOTALL)
# A sample entry of a track that is encrypted (encv) has its scheme in a box schm.
_SCHEME = re.compile(rb"schm....(cenc|cbc1|cens|cbcs|piff)", re.DOTALL)


def _of_mp4(data: bytes) -> str | None:
    if found := _SCHEME.search(data):
        return f"MP4 common encryption, {found[1].decode()}"
    return "MP4 common encryption" if b"encv" in data else None


def _of_ts(data: bytes) -> str | None:
    """Two bits of a transport packet's header say that what follows is scrambled."""
    begin = next(
        (i for i in range(_TS_PACKET) if data[i : i + 5 * _TS_PACKET : _TS_PACKET] == b"\x47" * 5), None
    )
    if begin is None:
        return None
    flags = data[begin + 3 :: _TS_PACKET]
    scrambled = sum(flag >> 6 in (2, 3) for flag in flags)
    return "scrambled MPEG-TS" if scrambled * 10 > len(flags) else None
