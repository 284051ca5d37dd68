"""Files that make FFmpeg open others. A list that comes back to a list, or to itself, it would follow until
memory or descriptors are gone: that is refused before it is opened.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mosaic_edge.sources.frame_source import SourceError

_PLAYLIST, _CONCAT = b"#EXTM3U", b"ffconcat version"
_OF_PLAYLISTS = (b"#EXT-X-STREAM-INF:", b"#EXT-X-MEDIA:")
_BYTES, _NAMES = 1 << 20, 1000
_SCHEME = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*):")


def check_list(path: str) -> None:
    """SourceError for a list of files (ffconcat), and for a playlist of playlists (HLS) that names another
    of its kind, too many, or what is no file."""
    try:
        if not Path(path).is_file():
            return
        head = _head(Path(path))
    except (OSError, ValueError):
        return  # which opening it says better
    if head.startswith(_CONCAT):
        raise SourceError(path, None, "it is a list of files (ffconcat), not a video")
    if not _names_playlists(head):
        return
    names = _names(head)
    if len(head) > _BYTES or len(names) > _NAMES:
        raise SourceError(path, None, f"it is a playlist of more than {_NAMES} playlists")
    for name in names:
        scheme = _SCHEME.match(name)
        if scheme is not None and scheme[1].lower() not in (b"file", b"http", b"https"):
            raise SourceError(path, None, f"its playlist names {name[:80]!r}: expected files")
        child = re.sub(rb"^file:(//)?", b"", name, flags=re.IGNORECASE)
        plain = Path(path).parent / os.fsdecode(child)
        if _is_of_playlists(plain) or _is_of_playlists(Path(os.path.normpath(plain))):
            raise SourceError(path, None, f"it is a playlist of playlists that names another, {name[:80]!r}")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        start = file.read(32)
        return start + file.read(_BYTES) if start.startswith(_PLAYLIST) else start


def _is_of_playlists(path: Path) -> bool:
    try:
        return path.is_file() and _names_playlists(_head(path))
    except (OSError, ValueError):
        return False


def _names_playlists(head: bytes) -> bool:
    return head.startswith(_PLAYLIST) and any(tag in head for tag in _OF_PLAYLISTS)


def _names(head: bytes) -> list[bytes]:
    lines = [line.strip() for line in head.splitlines()]
    media = (found[1] for line in lines if (found := re.search(rb'URI="?([^",]*)', line)))
    return [name for name in (*(line for line in lines if not line.startswith(b"#")), *media) if name]
