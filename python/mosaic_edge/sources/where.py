"""What a source is named by: a path, a URL, a pipe; and what messages say of it."""

from __future__ import annotations

import math
import os
import stat
from numbers import Real
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mosaic_edge.shown import shown
from mosaic_edge.sources.frame_source import SourceError, Where, is_held
from mosaic_edge.sources.lists import check_list

CONNECT_S = READ_S = 10.0
"""The longest that a connection may take, and a stream say nothing."""


def is_url(where: str) -> bool:
    """Whether it is not a path."""
    return "://" in where


def is_file_url(where: str) -> bool:
    """Whether it is a path after all, as a URL."""
    return where[:7].lower() == "file://"


def _path_of(url: str) -> str:
    """Of a file:// URL, as FFmpeg takes it: nothing in it is an escape."""
    return "/" + url[5:].lstrip("/")


def is_pipe(where: Where) -> bool:
    """Whether it can be read once, from its beginning: a FIFO, a pipe, a terminal."""
    if is_held(where):
        return not isinstance(where, bytes) and not _seekable(where)
    path = os.fspath(where)  # type: ignore[arg-type]
    if is_file_url(path):
        path = _path_of(path)
    elif is_url(path):
        return urlsplit(path).scheme.lower() in ("tcp", "unix", "udp")
    try:
        kind = Path(path).stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(kind) or stat.S_ISDIR(kind))


def waits(where: Where) -> bool:
    """Whether FFmpeg waits for what somebody else sends: for a server, or at a pipe."""
    if is_held(where):
        return False
    path = os.fspath(where)  # type: ignore[arg-type]
    return is_pipe(where) or (is_url(path) and not is_file_url(path))


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
    if is_held(where):
        return
    path = os.fspath(where)  # type: ignore[arg-type]
    if is_file_url(path):
        check_list(_path_of(path))
    if is_url(path):
        return
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


def check_window(fps: Any, start: Any = 0.0, end: Any = None) -> None:
    """ValueError, naming it, for what is no rate, or no stretch of time."""
    if fps is not None and not 0 < _number(fps) < math.inf:
        raise ValueError(f"fps: got {shown(fps)}, expected a positive number or None for every frame")
    if not 0 <= _number(start) < math.inf:
        raise ValueError(f"start: got {shown(start)}, expected seconds from 0 on")
    if end is not None and not _number(end) > start:
        raise ValueError(f"end: got {shown(end)}, expected more than start={start}")


def _number(value: Any) -> float:
    """NaN for what is none, or past what a float holds."""
    try:
        return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return math.nan


def _seekable(file: Any) -> bool:
    seekable = getattr(file, "seekable", None)
    return bool(seekable()) if callable(seekable) else hasattr(file, "seek")
