"""The door of a model directory, which may be anyone's: only plain files inside it are opened, and what its
JSON files say is checked once, here, by the tables of schema.py.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from mosaic_edge.models.schema import TABLES, checked
from mosaic_edge.models.vlm import ModelError

_JSON_BYTES = 32 << 20


def named_file(folder: Path, name: str, said_by: str) -> Path:
    """The file `name` of `folder`, as the file `said_by` in it says. ModelError if it leads out of there,
    is missing or is no plain file."""
    leads_out = PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or ".." in Path(name).parts
    if leads_out or "\0" in name or not name:
        raise ModelError(f"{folder / said_by}: names {name!r}: expected a file inside the model's directory")
    path = folder / name
    if not is_there(path):
        raise ModelError(f"{folder}: {said_by} names {name}, which is missing")
    return plain_file(folder, path)


def plain_file(folder: Path, path: Path) -> Path:
    """`path` if it is a regular file that lies in `folder`, links followed. A snapshot of the hub's cache may
    link into the blobs beside it. ModelError otherwise."""
    if is_trusted(folder):
        return path
    try:
        target, root = path.resolve(strict=True), folder.resolve()
        mode = target.stat().st_mode
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise ModelError(f"{path}: cannot be opened ({error})") from None
    if not any(target.is_relative_to(allowed) for allowed in (root, *_blobs_of(root))):
        raise ModelError(f"{path}: leads to {target}, out of the model's directory")
    if not stat.S_ISREG(mode):
        raise ModelError(f"{path}: not a plain file")
    return path


def check_directory(folder: Path, patterns: tuple[str, ...]) -> None:
    """plain_file() for every file of `folder` of these patterns, for a library that opens them itself."""
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        plain_file(folder, path)


def is_trusted(folder: Path) -> bool:
    """Whether a model came with this package: an installer may have linked its files to anywhere."""
    return folder.is_relative_to(Path(__file__).parent)


def is_folder(path: Path) -> bool:
    """Whether a directory is there; what can be no path is none."""
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that is too long, or holds a zero
        return False


def is_there(path: Path) -> bool:
    """Whether the entry exists, be it a link that leads nowhere."""
    try:
        path.lstat()
    except (OSError, ValueError):
        return False
    return True


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model directory, checked by its table, nulls left out; {} if there is no
    such file. ModelError names file, key, value and need."""
    if not is_there(path):
        return {}
    size = plain_file(path.parent, path).stat().st_size
    if size > _JSON_BYTES:
        raise ModelError(f"{path}: {size} bytes of JSON, expected at most {_JSON_BYTES}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{path}: not readable as JSON ({error})") from None
    except RecursionError:
        raise ModelError(f"{path}: not readable as JSON (nested too deep)") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return checked(f"{path}: ", value, TABLES.get(path.name, {}))


def _blobs_of(root: Path) -> tuple[Path, ...]:
    """Where a snapshot of the hub's cache (models--ORG--NAME/snapshots/REVISION), or a folder in it, has its
    contents."""
    above = (folder.parent.parent for folder in (root, *root.parents) if folder.parent.name == "snapshots")
    return tuple(model / "blobs" for model in above if model.name.startswith("models--"))
