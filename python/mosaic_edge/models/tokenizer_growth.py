"""How much longer a text can get in the steps of a tokenizer. A text that is tried shows it only where it
holds what the steps look for, and a hostile file looks for what nobody tries.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

MOST_GROWTH = 2048.0
"""Published ones stay under 1,300, counted as here: NFKC and a charsmap of its own, each of which has one
character of which it makes 18."""
_PARTS = ("normalizers", "pretokenizers", "decoders")
_LOOKS_AROUND = ("(?", "\\b", "\\B", "\\K", "\\G", "}?")  # a{3}? is a{3} or nothing in that dialect
_OF_TYPE = {
    "NFC": 3.0, "NFD": 4.0, "NFKC": 18.0, "NFKD": 18.0, "Lowercase": 2.0, "BertNormalizer": 3.0,
    "ByteLevel": 4.0, "Metaspace": 2.0, "WordPiece": 2.0,
}  # fmt: skip
"""Of a step whose settings do not matter, what one character becomes at most: bytes, or it and a mark."""


def check_growth(steps: Mapping[str, Any]) -> None:
    """ValueError for a tokenizer, as its JSON has it, that may make too much of a text or of an answer."""
    encoding = ("normalizer", "pre_tokenizer")
    for name in (*encoding, "decoder"):
        if growth(steps.get(name)) > MOST_GROWTH:
            raise ValueError(f"its {name} may make more than {MOST_GROWTH:g} characters of one")
    if growth(steps.get(encoding[0])) * growth(steps.get(encoding[1])) > MOST_GROWTH:
        raise ValueError(f"its {' and '.join(encoding)} may make more than {MOST_GROWTH:g} characters of one")


def growth(step: Any) -> float:
    """The most characters that one becomes in `step`, whose parts work on what those before them made."""
    if not isinstance(step, Mapping):
        return 1.0
    most = _of_step(step)
    for name in _PARTS:
        parts = step.get(name)
        for part in parts if isinstance(parts, list) else []:
            most *= growth(part)
            if most > MOST_GROWTH:
                return most
    return most


def _of_step(step: Mapping[str, Any]) -> float:
    kind = step.get("type")
    if kind == "Replace":
        return _of_replacement(step)
    if kind == "Precompiled":
        return _of_charsmap(step)
    if kind == "Prepend":
        return 1.0 + len(str(step.get("prepend", "")))
    return _OF_TYPE.get(str(kind), 1.0)


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


def _of_charsmap(step: Mapping[str, Any]) -> float:
    """Of SentencePiece's: the bytes of a trie, the trie, and what it leads to, each text ended by a zero."""
    try:
        data = base64.b64decode(str(step.get("precompiled_charsmap", "")))
    except (binascii.Error, ValueError):  # the tokenizers package refuses it too
        return 1.0
    texts = data[4 + int.from_bytes(data[:4], "little") :].decode("utf-8", errors="replace")
    return max(1.0, *map(len, texts.split("\0")))
