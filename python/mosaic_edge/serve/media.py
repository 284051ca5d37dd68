"""What clients may have opened: files of one folder, sources by the names the server gave them, and pictures
of hosts that were allowed. Everything else that a client names is refused."""

from __future__ import annotations

import base64
import binascii
import http.client
import re
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from mosaic_edge.serve.picture_size import MOST_PIXELS, check_picture
from mosaic_edge.sources import VideoSource, open_live
from mosaic_edge.threads import started

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mosaic_edge.sources import FrameSource

FETCH_BYTES = 64 << 20
FETCH_SECONDS = 10.0
MOST_URL = 8192
"""Letters of one that is no data: Python keeps the last 128 that it took apart."""
_DATA = re.compile(r"data:[^,;]*(?:;[^,;]*)*;base64,", re.ASCII)
_VIDEOS = (
    (4, b"ftyp"), (4, b"moov"), (0, b"\x1aE\xdf\xa3"), (8, b"AVI "), (0, b"G"), (0, b"\x00\x00\x01\xba"),
    (0, b"GIF8"), (0, b"FLV"), (0, b"OggS"),
)  # fmt: skip
"""Where a container has which bytes: MP4, Matroska and WebM, AVI, MPEG-TS and PS, GIF, FLV, Ogg. Playlists
are none: they name what is to be opened."""


class Media:
    """What may be opened, and how."""

    def __init__(self, folder: Path | None, sources: dict[str, str], hosts: Iterable[str]) -> None:
        self._folder = None if folder is None else folder.resolve()
        if self._folder is not None and not self._folder.is_dir():
            raise ValueError(f"media={str(folder)!r}: expected a folder")
        self._sources, self._hosts = sources, frozenset(host.lower() for host in hosts)

    @property
    def sources(self) -> list[str]:
        """The names of sources."""
        return sorted(self._sources)

    @property
    def has_files(self) -> bool:
        """Whether there is a folder of files."""
        return self._folder is not None

    def source(self, name: str, fps: float | None) -> FrameSource:
        """A source of that name, or a file of the folder. ValueError or SourceError."""
        if name in self._sources:
            return open_live(self._sources[name], fps)
        if self._folder is None or "://" in name:
            known = ", ".join(self.sources) or "none"
            raise ValueError(
                f"source={name[:80]!r}: the server was started with these: {known}. --source NAME=WHERE adds "
                "one, --media FOLDER lets files of a folder be named"
            )
        return VideoSource(self._file(name), fps)

    def picture(self, url: str) -> bytes:
        """An encoded picture, whose size was looked at."""
        data = self._found(url, "image_url")
        if isinstance(data, Path):
            with data.open("rb") as file:
                data = file.read(FETCH_BYTES)
        check_picture(data, "image_url")
        return data

    def video(self, url: str, fps: float | None, most: int) -> Iterator[tuple[NDArray[np.uint8], float]]:
        """Frames of a video and their seconds from its beginning."""
        where = self._found(url, "video_url")
        if isinstance(where, bytes) and not any(
            where[at : at + len(magic)] == magic for at, magic in _VIDEOS
        ):
            raise ValueError(
                f"video_url: {len(where)} bytes that are no MP4, Matroska, WebM, AVI, MPEG, FLV, Ogg or GIF"
            )
        for frame in VideoSource(where, fps):
            if frame.image.shape[0] * frame.image.shape[1] > MOST_PIXELS:
                raise ValueError(f"video_url: frames of more than {MOST_PIXELS} pixels")
            if frame.index >= most:
                raise ValueError(f"video_url: more than {most} frames; lower fps, or feed a session")
            yield frame.image, frame.pts

    def _found(self, url: str, what: str) -> bytes | Path:
        head = _DATA.match(url)
        if head:
            try:
                return base64.b64decode(url[head.end() :], validate=True)
            except (binascii.Error, ValueError):
                raise ValueError(f"{what}: what follows 'base64,' is no base64") from None
        if len(url) > MOST_URL:
            raise ValueError(
                f"{what}={url[:40]!r}: expected data:...;base64,... or at most {MOST_URL} letters, "
                f"got {len(url)}"
            )
        parts = urlsplit(url)
        if parts.scheme == "file" and parts.netloc in ("", "localhost"):
            return self._file(unquote(parts.path))
        if parts.scheme in ("http", "https"):
            return self._fetched(url, what)
        raise ValueError(f"{what}={url[:40]!r}: expected data:...;base64,..., http(s):// or file://")

    def _file(self, name: str) -> Path:
        """A file of the folder, by its path from there or from the root."""
        if self._folder is None:
            raise ValueError("files are not served: start the server with --media FOLDER")
        try:
            path = (self._folder / name).resolve(strict=True)
            if path.is_relative_to(self._folder) and path.is_file():
                return path
        except (OSError, ValueError, RuntimeError):
            pass
        raise ValueError(f"{name[:80]!r}: there is no such file in the folder of --media")

    def _fetched(self, url: str, what: str) -> bytes:
        """Of a host that was allowed, without redirects."""
        parts = urlsplit(url)
        host = (parts.hostname or "").lower()
        if host not in self._hosts:
            raise ValueError(
                f"{what}: host {host[:80]!r} is not allowed; --allow-host of the server names those"
            )
        if any(c <= " " or c > "~" for c in url):
            raise ValueError(f"{what}: no URL")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(host, parts.port, timeout=FETCH_SECONDS)
        data, late = b"", threading.Event()
        try:
            connection.connect()
            with _cut(connection.sock, late):
                target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                connection.request("GET", target, headers={"User-Agent": "mosaic-edge"})
                response = connection.getresponse()
                if response.status != 200:
                    raise ValueError(f"{what}: {host} answered {response.status}; redirects are not followed")
                data = _read(response, what)
        except (OSError, http.client.HTTPException) as error:
            if not late.is_set():
                raise ValueError(f"{what}: {host}: {error or type(error).__name__}") from error
        finally:
            connection.close()
        if late.is_set():
            raise ValueError(f"{what}: {host} took longer than {FETCH_SECONDS:g} s")
        return data


@contextmanager
def _cut(connection: socket.socket, late: threading.Event) -> Iterator[None]:
    """The connection ends after FETCH_SECONDS, which sets `late`: a host that trickles, be it headers, holds
    no thread for long."""

    def cut() -> None:
        late.set()
        with suppress(OSError):
            # Not TLS's own: that takes the connection's TLS from under who reads it.
            socket.socket.shutdown(connection, socket.SHUT_RDWR)

    timer = threading.Timer(FETCH_SECONDS, cut)
    timer.daemon = True
    started(timer, "fetching in time")
    try:
        yield
    finally:
        timer.cancel()


def _read(response: http.client.HTTPResponse, what: str) -> bytes:
    """All of it, within its size."""
    data = bytearray()
    while piece := response.read1(1 << 16):
        data += piece
        if len(data) > FETCH_BYTES:
            raise ValueError(f"{what}: the host sent more than {FETCH_BYTES} bytes")
    return bytes(data)
