"""Containers, opened: a path is a path whatever is in its name, and opens nothing of another kind."""

from __future__ import annotations

import io
import os
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
from mosaic_edge.sources.where import CONNECT_S, READ_S, is_pipe, is_url, name_of

_TAGS: dict[str, Any] = {} if int(av.__version__.partition(".")[0]) >= 19 else {"metadata_errors": "replace"}
"""A tag that is not UTF-8 is no reason to refuse a file; PyAV 19 reads it without being told."""
# What a stream may open by itself (segments of a playlist, parts of a session), by what it came through.
_WEB = "http,https,httpproxy,tls,tcp,crypto,data"
_PROTOCOLS = {"": "file,crypto,data", "file": "file,crypto,data", "http": _WEB, "https": _WEB}
_PROTOCOLS |= dict.fromkeys(("rtsp", "rtsps"), "rtp,srtp,udp,tcp,tls,http,https")
_PROTOCOLS |= dict.fromkeys(("rtmp", "rtmps"), "rtmp,rtmps,tcp,tls")
_PROTOCOLS |= {"tls": "tls,tcp", "ftp": "ftp,tcp", "rtp": "rtp,udp", "srt": "srt,udp"}
_NOTHING = "none"
"""Of what is in hand, bytes or an open file: no protocol has this name."""


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
    options = {"protocol_whitelist": _NOTHING if is_held(where) else _PROTOCOLS.get(scheme, scheme)}
    if scheme in ("rtsp", "rtsps"):
        options["rtsp_flags"] = "prefer_tcp"  # UDP loses packets as soon as a frame is more than one
    if form is not None:  # a device
        options = {}
    if live:
        options["fpsprobesize"] = "0"
    limits: dict[str, Any] = {"timeout": timeout} if scheme else {}
    try:
        return av.open(file, format=form, options=options, **_TAGS, **limits)
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
