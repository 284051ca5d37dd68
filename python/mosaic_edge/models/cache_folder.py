"""The user's cache directory, and the folders that we make in it. Nothing is deleted there that we did not
write: a folder of ours holds a marker, links are not followed, and only plain files are unlinked, by name.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MARKER = "made-by-mosaic_edge"
_ABANDONED_SECONDS = 3600.0


def cache_folder() -> Path:
    """MOSAIC_CACHE_DIR, else `mosaic_edge` in the cache directory of the user (XDG_CACHE_HOME)."""
    if said := os.environ.get("MOSAIC_CACHE_DIR"):
        return Path(said)
    try:
        return _of_user() / "mosaic_edge"
    except RuntimeError as error:  # a service's user without a home
        raise OSError(f"{error}; MOSAIC_CACHE_DIR= names a cache directory") from None


def _of_user() -> Path:
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        return Path(base) if base else Path.home() / "AppData" / "Local"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache"


def make_aside(parent: Path, name: str) -> Path:
    """A new folder of ours in `parent`, to be filled and renamed to `name`. OSError where that cannot be."""
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f"{name}.", suffix=".part", dir=parent))
    (aside / MARKER).touch()
    return aside


def ours(parent: Path) -> Iterator[Path]:
    """The folders in `parent` that we made: no links, and the marker in them."""
    with suppress(OSError):
        for entry in sorted(parent.iterdir()):
            if _is(entry, stat.S_ISDIR) and _is(entry / MARKER, stat.S_ISREG):
                yield entry


def is_abandoned(entry: Path) -> bool:
    """Whether a folder was left half filled an hour ago or more: its process is gone."""
    with suppress(OSError):
        return entry.suffix == ".part" and time.time() - entry.lstat().st_mtime > _ABANDONED_SECONDS
    return False


def remove(entry: Path) -> None:
    """Delete a folder of ours, the marker last; what holds anything but plain files stays, and what is not
    ours."""
    if not (_is(entry, stat.S_ISDIR) and _is(entry / MARKER, stat.S_ISREG)):
        return
    with suppress(OSError):
        files = list(entry.iterdir())
        if all(_is(file, stat.S_ISREG) for file in files):
            for file in sorted(files, key=lambda file: file.name == MARKER):
                file.unlink()
            entry.rmdir()


def _is(path: Path, kind: object) -> bool:
    """Whether the entry itself, not what a link leads to, is of this kind."""
    try:
        return bool(kind(path.lstat().st_mode))  # type: ignore[operator]
    except (OSError, ValueError):
        return False
