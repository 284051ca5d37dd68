"""Where a spill file goes: on a disk. A folder in RAM (tmpfs, as /tmp is on many systems) would spend outside
the cap what the cap is to save.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path

from mosaic_edge.models.cache_folder import cache_folder

_IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs", "rootfs")
_MOUNTS = Path("/proc/self/mounts")


def spill_folder(asked: str | None) -> str:
    """`asked`; else the system's temporary directory if that is on a disk, or the user's cache directory.

    A UserWarning says where a folder in RAM was asked for, or passed over. ValueError where there is no disk:
    the device has none, or spill_dir= must name it.
    """
    if asked is not None:
        if (kind := memory_kind(asked)) is not None:
            warnings.warn(
                f"spill_dir={asked!r} is in RAM ({kind}): what is spilled there saves none", stacklevel=1
            )
        return asked
    try:
        usual = tempfile.gettempdir()
    except OSError as error:  # a root that is read-only
        raise ValueError(
            f"disk=: there is no temporary directory ({error.strerror or error}). Set spill_dir= to a "
            "folder on a disk, or leave disk= out"
        ) from None
    if (kind := memory_kind(usual)) is None:
        return usual
    try:
        cache = cache_folder()
        if (other := memory_kind(cache)) is not None:
            raise ValueError(
                f"disk=: {usual} ({kind}) and {cache} ({other}) are in RAM, where spilling saves none. "
                "Set spill_dir= to a folder on a disk, or leave disk= out"
            )
        folder = cache / "spill"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"disk=: {usual} is in RAM ({kind}). Set spill_dir= to a folder on a disk ({error})"
        ) from None
    warnings.warn(
        f"{usual} is in RAM ({kind}): the spill file goes to {folder}; spill_dir= names another", stacklevel=1
    )
    return str(folder)


def memory_kind(path: str | Path) -> str | None:
    """The kind of file system that keeps `path` in RAM; None for a disk, or where that cannot be told."""
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        real = os.path.realpath(path)
    except (OSError, ValueError):
        return None
    best, kind = "", None
    for line in lines:
        _, point, name, *_ = [*line.split(), "", "", ""]
        point = point.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # of two at one point the later lies on top
            best, kind = point, name
    return kind if kind in _IN_MEMORY else None
