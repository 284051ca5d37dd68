"""Profiles: model and session settings for one kind of board, as a .toml that `--profile NAME` reads.

    profile = read_profile("orin-nano-8gb")            # or a path: read_profile("mine.toml")
    engine = Engine.load("mosaic-tiny", **profile.model)
    with engine.session(**profile.session) as session: ...

The sources are jetson/profiles; a wheel carries them beside this file. A profile gives defaults: what is said
explicitly wins. A key that is unknown or of another type is refused by file and key, so that a slip
of the pen never becomes a silent default.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from inspect import signature
from pathlib import Path
from typing import Any

from mosaic_edge.config import BACKENDS, SessionConfig, format_bytes, parse_bytes
from mosaic_edge.models import load_model
from mosaic_edge.output_file import regular

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def _plain(annotation: object) -> set[str]:
    return {name.strip() for name in str(annotation).split("|")} & {"int", "float", "bool", "str"}


_TYPES = {
    "session": {
        field.name: _plain(field.type)
        for field in fields(SessionConfig)
        if field.name != "faults"  # for tests
    },
    "model": {
        name: _plain(parameter.annotation)
        for name, parameter in signature(load_model).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
        and name != "allow_pickle"  # trust is not a board's setting
    },
}
"""What the tables may hold, and the plain types each takes: [session] fields of SessionConfig, [model]
keywords of Engine.load."""

_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Profile:
    """One profile as it was read."""

    name: str
    path: Path
    title: str
    """The board in words."""
    board_memory: int
    """DRAM of the board, in bytes; CPU and GPU share it."""
    fps: float | None
    """Frames a second to sample; None: the model's."""
    session: dict[str, Any]
    """Fields of SessionConfig, for Engine.session(**session)."""
    model: dict[str, Any]
    """Keywords of Engine.load(model, **model)."""


def known_profiles() -> dict[str, Path]:
    """The profiles shipped with the package, by name."""
    here = Path(__file__).resolve().parent
    folders = (here, here.parents[2] / "jetson" / "profiles")  # installed, else the source tree
    files = next((found for folder in folders if (found := sorted(folder.glob("*.toml")))), [])
    return {file.stem: file for file in files}


def read_profile(name: str) -> Profile:
    """The shipped profile `name`, or the one in the file `name` (a path that ends in .toml).

    Raises ValueError naming the file and the key for whatever is unknown, missing or of a wrong type.
    """
    known = known_profiles()
    path = Path(name) if name.endswith(".toml") else known.get(name)
    if path is None:
        raise ValueError(
            f"profile={name!r}: expected a path to a .toml, or one of {', '.join(known) or 'none'}"
        )
    try:
        file = regular(path, "profile")
        if (size := file.stat().st_size) > _MOST_BYTES:
            raise ValueError(f"{size} bytes, expected at most {_MOST_BYTES}")
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path}: not a TOML file: nested too deep") from None
    except OSError as error:
        raise ValueError(f"profile={name!r}: {error.strerror or error}") from error
    except ValueError as error:  # no TOML, or no UTF-8
        raise ValueError(f"{path}: not a TOML file: {error}") from error
    try:
        return _check(path, document)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check(path: Path, document: dict[str, Any]) -> Profile:
    _only(document, {"title", "board_memory", "fps", *_TYPES}, "")
    title = document.get("title")
    if not isinstance(title, str):
        raise ValueError(f"title={title!r}: expected the name of the board")
    board = parse_bytes(document.get("board_memory", "missing"), "board_memory")
    fps = document.get("fps")
    if fps is not None and (not _is(fps, {"float"}) or not 0 < fps <= 1000):
        raise ValueError(f"fps={fps!r}: expected frames a second, a positive number up to 1000")
    session, model = (_table(document, name) for name in _TYPES)
    if "memory" not in session:
        raise ValueError("session.memory is missing: expected the cap, such as '1GiB'")
    cap = parse_bytes(session["memory"], "session.memory")
    if cap >= board:
        raise ValueError(
            f"session.memory={session['memory']!r}: a cap of {format_bytes(cap)} leaves nothing of "
            f"board_memory={document['board_memory']!r} to the model and the system"
        )
    return Profile(path.stem, path, title, board, None if fps is None else float(fps), session, model)


def _table(document: dict[str, Any], name: str) -> dict[str, Any]:
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise ValueError(f"{name}={table!r}: expected a table, [{name}]")
    _only(table, set(_TYPES[name]), f"{name}.")
    for key, value in table.items():
        _check_value(f"{name}.{key}", value, _TYPES[name][key])
    return dict(table)


def _check_value(key: str, value: Any, types: set[str]) -> None:
    if key == "session.policy_settings":
        if not isinstance(value, dict) or not all(_is(v, {"float", "bool", "str"}) for v in value.values()):
            raise ValueError(f"{key}={value!r}: expected a table of numbers and words")
    elif key in ("session.memory", "session.disk", "session.device_memory"):
        parse_bytes(value, key)
    elif key == "session.backend" and value not in BACKENDS:
        raise ValueError(f"{key}={value!r}: expected one of {', '.join(BACKENDS)}")
    elif not _is(value, types):
        raise ValueError(f"{key}={value!r}: expected {' or '.join(sorted(types))}")
    elif isinstance(value, int | float) and not 0 <= value < 1e300:
        raise ValueError(f"{key}={value!r}: expected a number from 0 on")


def _is(value: Any, types: set[str]) -> bool:
    """Whether a TOML value is of one of `types`: true is no number, a whole number is a float too."""
    name = type(value).__name__
    return name in types or (name == "int" and "float" in types)


def _only(table: dict[str, Any], keys: set[str], prefix: str) -> None:
    for key in table:
        if key not in keys:
            raise ValueError(f"{prefix}{key}: no such key; expected one of {', '.join(sorted(keys))}")
