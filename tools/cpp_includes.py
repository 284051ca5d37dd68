"""The includes of a C++ file as the preprocessor sees them, for check_layers.py: not those inside a comment
or a string, and those too that a comment or a continued line takes apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

JOIN = "\0"  # a line's end that does not end the directive: it still counts
PIECE = re.compile(
    r"""(?P<comment>//[^\n]*|/\*.*?(?:\*/|\Z))"""
    r'''|R"(?P<mark>[^()\\\s]*)\(.*?\)(?P=mark)"'''
    r"""|"(?:\\.|[^"\\\n])*"|(?<![0-9a-fA-F])\'(?:\\.|[^\'\\\n])*\'""",
    re.DOTALL,
)
INCLUDE = re.compile(r"^\s*(?:#|%:|\?\?=)\s*(?:include|include_next|import)\b\s*(.*?)\s*$")


def includes(text: str) -> Iterator[tuple[int, str, str]]:
    """(line, kind, file) of every include: the kind is `"` or `<`, or "" where a macro names the file."""
    joined = re.sub(r"\\[ \t]*\n", JOIN, text.replace("\r\n", "\n"))
    number = 1
    for line in PIECE.sub(_without, joined).split("\n"):
        if found := INCLUDE.match(line.replace(JOIN, "")):
            named = re.match(r'([<"])([^>"]+)[>"]', found[1])
            at = number + re.match(r"[\s\0]*", line)[0].count(JOIN)  # type: ignore[index]  # matches anything
            yield (at, named[1], named[2].strip()) if named else (at, "", found[1])
        number += 1 + line.count(JOIN)


def _without(piece: re.Match[str]) -> str:
    """A comment is a space; a string of several lines holds no directive."""
    text = piece[0]
    if piece["comment"]:
        return " " + JOIN * (text.count("\n") + text.count(JOIN))
    return text.replace("\n", JOIN)
