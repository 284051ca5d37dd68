"""A value that was given, as an error shows it."""

from __future__ import annotations

from typing import Any

from mosaic_edge.models.schema import short


def shown(value: Any) -> str:
    """A short line whatever `value` is: repr() of an object raises what it likes."""
    try:
        return " ".join(short(value).split())
    except Exception:
        return f"one {type(value).__name__}"
