"""Sources by scheme: a class that is marked with @scheme in a file of this folder is found by open_source."""

from __future__ import annotations

import os
import pkgutil
import re
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from mosaic_edge.sources.frame_source import FrameSource, is_held
from mosaic_edge.sources.readers import HOW_TO_READ, MODULES, is_installed

if TYPE_CHECKING:
    from mosaic_edge.sources.frame_source import Where


class Opener(Protocol):
    """A class of sources: what it is called with."""

    def __call__(self, path: Any, fps: float | None, start: float, end: float | None) -> FrameSource:
        """A source of at most `fps` frames a second, of what lies from `start` to `end` seconds."""
        ...


FILE_SCHEMES = ("file", "http", "https", "ftp", "unix", "tcp", "tls", "udp", "rtp", "srt")
"""Of files, and of what is opened like one."""

_Class = TypeVar("_Class", bound=Opener)
_OPENERS: dict[str, Opener] = {}


def scheme(*names: str, without: str | None = None) -> Callable[[_Class], _Class]:
    """Mark a class as what opens "name://...". without: only where that module is not installed."""

    def mark(opener: _Class) -> _Class:
        if without is None or not is_installed(without):
            _OPENERS.update(dict.fromkeys(names, opener))
        return opener

    return mark


def known_schemes() -> dict[str, Opener]:
    """Every scheme there is, after a look into this folder."""
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules(import_module(package).__path__):
        _import_if_read(f"{package}.{module.name}")
    return dict(sorted(_OPENERS.items()))


def _import_if_read(module: str) -> None:
    try:
        import_module(module)
    except ModuleNotFoundError as error:  # what it reads with is not installed
        if str(error.name).partition(".")[0] not in MODULES:
            raise


def scheme_of(where: str) -> str:
    """Of a URL its own ("rtsp"), of a pipeline "gst", of a device "v4l2", of any other path "file"."""
    if where.startswith("gst:"):
        return "gst"
    if found := re.match(r"([a-zA-Z][a-zA-Z0-9+.-]+)://", where):
        return found[1].lower()
    return "v4l2" if where.startswith("/dev/video") else "file"


def open_source(
    where: Where,
    fps: float | None = None,
    start: float = 0.0,
    end: float | None = None,
) -> FrameSource:
    """The frames of a file, a camera or a stream, at most `fps` a second; None: every frame. A file may also
    be given as its bytes, or open.

    Raises ValueError for a scheme there is none for, SourceError for what cannot be opened.
    """
    schemes = known_schemes()
    if is_held(where):
        return _named("file", schemes)(where, fps, start, end)
    if not isinstance(where, str | os.PathLike):
        raise ValueError(
            f"source: got a {type(where).__name__}, expected a path, a URL, or a file open or in bytes"
        )
    path = os.fspath(where)
    name = scheme_of(path)
    if name not in schemes and name not in FILE_SCHEMES:
        raise ValueError(f"source={path!r}: expected a path or one of {', '.join(schemes)}://")
    return _named(name, schemes)(where, fps, start, end)


def _named(name: str, schemes: dict[str, Opener]) -> Opener:
    if name not in schemes:
        raise ModuleNotFoundError(f"nothing here reads video: {HOW_TO_READ}")
    return schemes[name]
