#!/usr/bin/env python3
"""Check the words: `python tools/check_words.py [ROOT]`. A line per fault, then exit code 1.

A word of DESIGN's glossary has one sense. Words that gave way to another are gone from all text under cpp/
and python/mosaic_edge; a word of one sense stands in names (of variables, functions, types, fields) only in
the files that speak of that. Comments may use every word as English does.
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from tree_check import run

# A word that is gone, as it is written anywhere, and what is said instead.
GONE = {
    r"reliev(e|es|ed|ing)": "evict, or reclaim",
    r"summari[sz]ed?": "collapse, collapsed",
    r"block table": "table of pages",
    r"floors": "layers",
}


class Sense(NamedTuple):
    """What a word means where names hold it, and the files (fnmatch) with such names."""

    means: str
    files: tuple[str, ...]


SENSES = {
    "place": Sense(
        "row and column of a token in its picture's grid",
        (
            "cpp/core/rope.h", "cpp/backend/ops*.h", "cpp/backend/*/attend*", "cpp/backend/*/signals*",
            "cpp/backend/cuda/cuda_ops.cu", "cpp/backend/cuda/packed_keys.h", "cpp/bindings/attend*",
            "cpp/bindings/signal*", "cpp/store/archive*", "cpp/store/token_log.*",
            "cpp/store/restored_page.h", "cpp/policy/infinipot_v.cc",
            "cpp/runtime/positions.*", "cpp/runtime/kv_memory_snapshot.cc",
            "cpp/runtime/attention.cc", "cpp/runtime/rec*", "cpp/runtime/block_selection.*",
            "cpp/runtime/layout.cc",
        ),
    ),
    "block": Sense(
        "the tokens of one forward pass; in backend/cuda, a block of threads",
        (
            "cpp/backend/ops.h", "cpp/backend/cpu/attend*", "cpp/backend/cpu/mass_simd.h",
            "cpp/runtime/*", "cpp/backend/cpu/simd_ops.cc", "cpp/backend/cuda/*",
            "cpp/bindings/attend*", "cpp/bindings/memory*", "python/*",
        ),
    ),
    "batch": Sense(
        "the frames that leave the window together",
        (
            "cpp/policy/*", "cpp/bindings/policy*", "cpp/runtime/admission.*", "cpp/runtime/layout.cc",
            "cpp/runtime/plan.h", "python/*",
        ),
    ),
    "panel": Sense(
        "one head's keys, or values, of a page",
        (
            "cpp/codec/*", "cpp/backend/*", "cpp/store/coarse_keys.cc", "cpp/store/token_clusters.cc",
            "python/*",
        ),
    ),
    "radius": Sense(
        "distance within which a token may join a cluster",
        ("cpp/policy/*", "cpp/bindings/policy*", "cpp/runtime/admission.cc", "python/*"),
    ),
    "moment": Sense(
        "a time of the stream that an answer read",
        (
            "cpp/runtime/evidence.h", "cpp/bindings/memory*", "python/mosaic_edge/evidence.py",
            "python/mosaic_edge/reply.py", "python/mosaic_edge/answering.py",
            "python/mosaic_edge/evaluation/*",
        ),
    ),
    "reach": Sense("no thing: a distance is a radius, memory can be accessed", ()),
}  # fmt: skip
LEFT = {"in_place"}  # names that are the standard library's

CPP = {".h", ".cc", ".cu", ".def"}
NOT_CODE = re.compile(r"""//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])'""", re.DOTALL)
NAME = re.compile(r"[A-Za-z_]\w*")
PART = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def check(root: Path) -> list[str]:
    """Every fault under `root`, as "path:line: message", sorted by path."""
    faults: list[str] = []
    files = [f for f in (root / "cpp").rglob("*") if f.suffix in {*CPP, ".md"}]
    for file in sorted([*files, *(root / "python" / "mosaic_edge").rglob("*.py")]):
        text, path = file.read_text(encoding="utf-8"), str(file.relative_to(root))
        faults += _gone(path, text)
        faults += _senses(path, _python_names(text) if file.suffix == ".py" else _cpp_names(file, text))
    return faults


def _gone(path: str, text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        for word, instead in GONE.items():
            if found := re.search(rf"(?<![A-Za-z])({word})(?![A-Za-z])", line, re.IGNORECASE):
                yield f"{path}:{number}: '{found[1]}' is gone; {instead}"


def _senses(path: str, names: Iterator[tuple[int, str]]) -> Iterator[str]:
    for number, name in names:
        parts = {part.lower().removesuffix("s") if len(part) > 1 else part for part in PART.findall(name)}
        for word in sorted(parts & SENSES.keys()):
            sense = SENSES[word]
            if name not in LEFT and not any(fnmatch(path, files) for files in sense.files):
                yield f"{path}:{number}: '{name}': {word} is {sense.means}; another thing has another word"


def _cpp_names(file: Path, text: str) -> Iterator[tuple[int, str]]:
    if file.suffix not in CPP:
        return
    code = NOT_CODE.sub(lambda found: "\n" * found[0].count("\n"), text)
    for number, line in enumerate(code.splitlines(), 1):
        if not line.lstrip().startswith("#"):
            yield from ((number, name) for name in NAME.findall(line))


def _python_names(text: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            yield token.start[0], token.string


if __name__ == "__main__":
    sys.exit(run("check_words", check))
