#!/usr/bin/env python3
"""Check the floors of the house: `python tools/check_floors.py [ROOT]`. A line per fault, then exit code 1.

A file includes only its own room and lower ones (core <- codec <- backend <- memory <- store <- policy <-
runtime <- bindings), and so in Python (python_layers.py); CUDA headers stay under cpp/backend/cuda; no Torch
under cpp/; Python reaches C++ only through mosaic_edge._core; at most 500 lines a file, three levels of C++
and four of Python; no grab-bag names; every codec of codecs.def has its header and every policy of
policies.def its file.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from python_layers import check_imports

FLOORS = ("core", "codec", "backend", "memory", "store", "policy", "runtime", "bindings")
MAX_LINES = 500
# Path parts of a source file below cpp/ or python/mosaic_edge/; files of a model are data.
MAX_DEPTH = {"cpp": 3, "python": 4}
GRAB_BAGS = {"util", "utils", "common", "helper", "helpers", "misc", "manager", "managers"}
SOURCES = {".h", ".hpp", ".cc", ".cpp", ".cu", ".cuh", ".def", ".cmake", ".py", ".sh", ""}
CUDA_HEADER = re.compile(
    r"^(cuda|cublas|cusparse|cusolver|curand|cufft|cudnn|nvml|nvtx|nvToolsExt|thrust/|cub/|cooperative_groups)"
)
TORCH_HEADER = re.compile(r"^(torch|ATen|aten|c10)/")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
LISTED = re.compile(r'^\s*MOSAIC_\w+\(.*?"([^"]+)"(?:,\s*(\w+)<)?')  # name, and the template it is one of
FOREIGN_C = {"ctypes", "cffi", "pybind11"}  # other ways from Python into C++


def check(root: Path) -> list[str]:
    """Every fault under `root`, as "path:line: message", sorted by path."""
    faults: list[str] = []
    for path in sorted(_files(root)):
        place = path.relative_to(root)
        faults += _check_place(place)
        if path.suffix not in SOURCES:
            continue
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        if len(lines) > MAX_LINES:
            faults.append(f"{place}:{MAX_LINES + 1}: {len(lines)} lines; a file stops at {MAX_LINES}")
        if place.parts[0] == "cpp":
            faults += _check_includes(place, lines, root)
        elif place.parts[:2] == ("python", "mosaic_edge") and path.suffix == ".py":
            faults += check_imports(place, "\n".join(lines), root)
    faults += _check_list(root, "cpp/codec/codecs.def", (".h",))
    faults += _check_list(root, "cpp/policy/policies.def", (".h", ".cc"))
    return faults


def _files(root: Path) -> Iterator[Path]:
    for top in ("cpp", "python", "tests", "tools", "jetson", ".ci"):
        for path in (root / top).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and not path.name.endswith((".pyc", ".so")):
                yield path


def _check_place(place: Path) -> Iterator[str]:
    for part in (*place.parts[:-1], place.name.split(".")[0]):
        if GRAB_BAGS & set(part.lower().split("_")):
            yield f"{place}:1: '{part}' is a grab-bag name; name it after what it does"
    for tree in (("cpp",), ("python", "mosaic_edge")):
        below = place.parts[len(tree) :]
        is_data = "models" in below[:-1] and place.suffix != ".py"
        if place.parts[: len(tree)] == tree and len(below) > MAX_DEPTH[tree[0]] and not is_data:
            yield f"{place}:1: {len(below)} levels below {'/'.join(tree)}/; at most {MAX_DEPTH[tree[0]]}"
    if place.parts[0] == "cpp" and len(place.parts) > 2 and place.parts[1] not in FLOORS:
        yield f"{place}:1: '{place.parts[1]}' is not a floor; there are {', '.join(FLOORS)}"


def _check_includes(place: Path, lines: list[str], root: Path) -> Iterator[str]:
    room = place.parts[1] if place.parts[1] in FLOORS and len(place.parts) > 2 else None
    for number, line in enumerate(lines, 1):
        found = INCLUDE.match(line)
        if not found:
            continue
        quote, header = found.groups()
        at = f"{place}:{number}: includes {header}"
        if CUDA_HEADER.match(header) and place.parts[:3] != ("cpp", "backend", "cuda"):
            yield f"{at}; CUDA headers only under cpp/backend/cuda"
        if TORCH_HEADER.match(header):
            yield f"{at}; no Torch under cpp/"
        target = header.split("/")[0] if "/" in header else None  # <memory> is the standard library's
        if target in FLOORS:
            if room and FLOORS.index(target) > FLOORS.index(room):
                yield f"{at}; {room} may include only {', '.join(FLOORS[: FLOORS.index(room) + 1])}"
        elif quote == '"' and not CUDA_HEADER.match(header) and not (root / "cpp" / header).is_file():
            yield f'{at}; write project includes from cpp/, as "room/file.h"'


def _check_list(root: Path, listing: str, endings: tuple[str, ...]) -> Iterator[str]:
    path = root / listing
    if not path.is_file():
        return
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        found = LISTED.match(line)
        stem = (found[2] or found[1]).replace("-", "_").lower() if found else ""
        wanted = [path.with_name(stem + ending) for ending in endings] if found else []
        if wanted and not any(file.is_file() for file in wanted):
            names = " or ".join(str(file.relative_to(root)) for file in wanted)
            yield f"{listing}:{number}: '{wanted[0].stem}' is listed, but there is no {names}"


def main() -> int:
    """Print the faults of ROOT (default: this repository)."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    if not (root / "cpp").is_dir():
        print(f"check_floors: got {root}, expected the repository's root (no cpp/ in it)", file=sys.stderr)
        return 1
    faults = check(root)
    for fault in faults:
        print(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
