"""Containers, opened: a path is a path whatever is in its name, and opens nothing of another kind."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import av
from av import VideoStream
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition

from mosaic_edge.sources.decoding import reason
from mosaic_edge.sources.frame_source import SourceError, Where, is_held
from mosaic_edge.sources.lists import check_list

CONNECT_S = READ_S = 10.0
"""The longest that a connection may take, and a stream say nothing."""

# What a stream may open by itself (segments of a playlist, parts of a session), by what it came through.
_WEB = "http,https,httpproxy,tls,tcp,crypto,data"
_PROTOCOLS = {"": "file,crypto,data", "file": "file,crypto,data", "http": _WEB, "https": _WEB}
_PROTOCOLS |= dict.fromkeys(("rtsp", "rtsps"), "rtp,srtp,udp,tcp,tls,http,https")
_PROTOCOLS |= dict.fromkeys(("rtmp", "rtmps"), "rtmp,rtmps,tcp,tls")
_PROTOCOLS |= {"tls": "tls,tcp", "ftp": "ftp,tcp", "rtp": "rtp,udp", "srt": "srt,udp"}


def is_url(where: str) -> bool:
    """Whether it is not a path."""
    return "://" in where


def is_pipe(where: Where) -> bool:
    """Whether it can be read once, from its beginning: a FIFO, a pipe, a terminal."""
    if is_held(where):
        return not isinstance(where, bytes) and not _seekable(where)
    path = os.fspath(where)  # type: ignore[arg-type]
    if is_url(path):
        return urlsplit(path).scheme.lower() in ("tcp", "unix", "udp")
    try:
        kind = Path(path).stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(kind) or stat.S_ISDIR(kind))


def name_of(where: Where) -> str:
    """For messages. The password of a URL is nobody's business who reads them."""
    if isinstance(where, bytes):
        return f"<{len(where)} bytes>"
    if is_held(where):
        name = getattr(where, "name", None)
        return name if isinstance(name, str) else f"<{type(where).__name__}>"
    path = os.fspath(where)  # type: ignore[arg-type]
    before, at, after = path.rpartition("@")
    head, colon, secret = before.rpartition(":")
    if is_url(path) and at and colon and not secret.startswith("//") and "/" not in secret:
        return f"{head}:***@{after}"
    return path


def check_there(where: Where) -> None:
    """SourceError for a path where no video can be."""
    if is_held(where) or is_url(os.fspath(where)):  # type: ignore[arg-type]
        return
    path = os.fspath(where)  # type: ignore[arg-type]
    file = Path(path)
    try:
        if not file.exists():
            raise SourceError(path, None, "no such file")
        if file.is_dir():
            raise SourceError(path, None, "it is a directory, not a video file")
        if file.is_file() and file.stat().st_size == 0:
            raise SourceError(path, None, "the file is empty (0 bytes)")
        check_list(path)
    except OSError as error:
        raise SourceError(path, None, error.strerror or str(error)) from error


def open_container(
    where: Where,
    form: str | None = None,
    timeout: tuple[float, float] = (CONNECT_S, READ_S),
    live: bool = False,
) -> InputContainer:
    """Open it with FFmpeg's demuxer `form` (None: it finds out). SourceError where it is no video.

    timeout: seconds for a connection and for data, of what is not a file. live: look at no more of it than
    says what it is; FFmpeg else waits for twenty pictures to tell their rate.
    """
    file: Any = io.BytesIO(where) if isinstance(where, bytes) else where
    scheme = ""
    if not is_held(where):
        file = os.fspath(file)
        scheme = urlsplit(file).scheme.lower() if is_url(file) else ""
        if not scheme and form is None:
            file = f"file:{file}"  # else "10:30.mp4" is a protocol "10"
    options = {"protocol_whitelist": _PROTOCOLS.get(scheme, scheme)}
    if scheme in ("rtsp", "rtsps"):
        options["rtsp_flags"] = "prefer_tcp"  # UDP loses packets as soon as a frame is more than one
    if form is not None:  # a device
        options = {}
    if live:
        options["fpsprobesize"] = "0"
    limits: dict[str, Any] = {"timeout": timeout} if scheme else {}
    try:
        return av.open(file, format=form, options=options, metadata_errors="replace", **limits)
    except (FFmpegError, OSError, ValueError) as error:
        cause = f"not a readable video ({reason(error)})"
        if _is_mp4(where):
            cause = f"its index (moov) is missing or damaged; recording not finished? ({reason(error)})"
        raise SourceError(name_of(where), None, cause) from error


def video_stream(container: InputContainer, name: str, wanted: int | None) -> VideoStream:
    """The stream of that index, or the one FFmpeg calls best."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if wanted is not None:
        for video in streams:
            if video.index == wanted:
                return video
        found = ", ".join(str(s.index) for s in streams) or "none"
        raise ValueError(f"stream: got {wanted}, expected a video stream of {name}: {found}")
    if not streams:
        raise SourceError(name, None, "there is no video stream in it")
    best = container.streams.best("video")
    video = next((s for s in streams if best is not None and s.index == best.index), streams[0])
    if video.codec_context is None:
        raise SourceError(name, None, "there is no decoder for its video codec")
    return video


def _seekable(file: Any) -> bool:
    seekable = getattr(file, "seekable", None)
    return bool(seekable()) if callable(seekable) else hasattr(file, "seek")


def _is_mp4(where: Where) -> bool:
    if isinstance(where, bytes):
        return where[4:8] == b"ftyp"
    if is_held(where) or is_pipe(where):
        return False
    try:
        with Path(where).open("rb") as file:  # type: ignore[arg-type]
            return file.read(8)[4:] == b"ftyp"
    except OSError:
        return False
