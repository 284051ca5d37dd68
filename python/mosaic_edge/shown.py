"""A value that was given, as an error shows it. Commands that load no model use it too."""

from __future__ import annotations

from typing import Any

_MOST = 80


def shown(value: Any) -> str:
    """A short line whatever `value` is: an int may have more digits than Python writes out, and repr() of
    an object raises what it likes."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"
    try:
        text = " ".join(repr(value).split())
    except Exception:
        return f"one {type(value).__name__}"
    return text if len(text) <= _MOST else f"{text[: _MOST - 3]}..."
