"""How much longer a text can get in the steps of a tokenizer.json. A text that is tried shows it only where
it holds what the steps look for, and a hostile file looks for what nobody tries.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MOST_GROWTH = 1024.0
"""Published ones stay under 8: a space becomes a mark, a run of spaces one."""
_PARTS = ("normalizers", "pretokenizers", "decoders")
_LOOKS_AROUND = ("(?", "\\b", "\\B", "\\K", "\\G")


def growth(step: Any) -> float:
    """The most characters that one becomes in `step`, whose parts work on what those before them made."""
    if not isinstance(step, Mapping):
        return 1.0
    most = _of_replacement(step) if step.get("type") == "Replace" else 1.0
    for name in _PARTS:
        parts = step.get(name)
        for part in parts if isinstance(parts, list) else []:
            most *= growth(part)
            if most > MOST_GROWTH:
                return most
    return most


def _of_replacement(step: Mapping[str, Any]) -> float:
    length, pattern = len(str(step.get("content", ""))), step.get("pattern")
    found = pattern if isinstance(pattern, Mapping) else {}
    if isinstance(text := found.get("String"), str) and text:
        return max(1.0, length / len(text))
    return max(1.0, length) + (length if _may_be_empty(str(found.get("Regex", ""))) else 0)


def _may_be_empty(pattern: str) -> bool:
    """Whether it can match between two characters, and so beside each."""
    try:
        return any(sign in pattern for sign in _LOOKS_AROUND) or re.search(pattern, "") is not None
    except (re.error, RecursionError, OverflowError):  # of another dialect
        return True
