#!/usr/bin/env python3
"""Check the layers: `python tools/check_layers.py [ROOT]`. A line per fault, then exit code 1.

A file includes only its own layer and lower ones (core <- codec <- backend <- memory <- store <- policy <-
runtime <- bindings), and so in Python (python_layers.py); CUDA headers stay under cpp/backend/cuda; no Torch
under cpp/; Python reaches C++ only through mosaic_edge._core; at most 500 lines a file, three levels of C++
and four of Python; no grab-bag names; every codec of codecs.def has its header.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from python_layers import check_imports
from tree_check import run

LAYERS = ("core", "codec", "backend", "memory", "store", "policy", "runtime", "bindings")
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
    for file in sorted(_files(root)):
        path = file.relative_to(root)
        faults += _check_path(path)
        if path.suffix not in SOURCES:
            continue
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        if len(lines) > MAX_LINES:
            faults.append(f"{path}:{MAX_LINES + 1}: {len(lines)} lines; a file stops at {MAX_LINES}")
        if path.parts[0] == "cpp":
            faults += _check_includes(path, lines, root)
        elif path.parts[:2] == ("python", "mosaic_edge") and path.suffix == ".py":
            faults += check_imports(path, "\n".join(lines), root)
    faults += _check_codecs(root)
    return faults


def _files(root: Path) -> Iterator[Path]:
    for top in ("cpp", "python", "tests", "tools", "jetson", ".ci"):
        for path in (root / top).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and not path.name.endswith((".pyc", ".so")):
                yield path


def _check_path(path: Path) -> Iterator[str]:
    for part in (*path.parts[:-1], path.name.split(".")[0]):
        if GRAB_BAGS & set(part.lower().split("_")):
            yield f"{path}:1: '{part}' is a grab-bag name; name it after what it does"
    for tree in (("cpp",), ("python", "mosaic_edge")):
        below = path.parts[len(tree) :]
        is_data = "models" in below[:-1] and path.suffix != ".py"
        if path.parts[: len(tree)] == tree and len(below) > MAX_DEPTH[tree[0]] and not is_data:
            yield f"{path}:1: {len(below)} levels below {'/'.join(tree)}/; at most {MAX_DEPTH[tree[0]]}"
    if path.parts[0] == "cpp" and len(path.parts) > 2 and path.parts[1] not in LAYERS:
        yield f"{path}:1: '{path.parts[1]}' is not a layer; there are {', '.join(LAYERS)}"


def _check_includes(path: Path, lines: list[str], root: Path) -> Iterator[str]:
    layer = path.parts[1] if path.parts[1] in LAYERS and len(path.parts) > 2 else None
    for number, line in enumerate(lines, 1):
        found = INCLUDE.match(line)
        if not found:
            continue
        quote, header = found.groups()
        at = f"{path}:{number}: includes {header}"
        if CUDA_HEADER.match(header) and path.parts[:3] != ("cpp", "backend", "cuda"):
            yield f"{at}; CUDA headers only under cpp/backend/cuda"
        if TORCH_HEADER.match(header):
            yield f"{at}; no Torch under cpp/"
        target = header.split("/")[0] if "/" in header else None  # <memory> is the standard library's
        if target in LAYERS:
            if layer and LAYERS.index(target) > LAYERS.index(layer):
                yield f"{at}; {layer} may include only {', '.join(LAYERS[: LAYERS.index(layer) + 1])}"
        elif quote == '"' and not CUDA_HEADER.match(header) and not (root / "cpp" / header).is_file():
            yield f'{at}; write project includes from cpp/, as "layer/file.h"'


def _check_codecs(root: Path) -> Iterator[str]:
    path = root / "cpp/codec/codecs.def"
    if not path.is_file():
        return
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        found = LISTED.match(line)
        if not found:
            continue
        header = path.with_name((found[2] or found[1]).replace("-", "_").lower() + ".h")
        if not header.is_file():
            at = f"{path.relative_to(root)}:{number}"
            yield f"{at}: '{header.stem}' is listed, but there is no {header.relative_to(root)}"


if __name__ == "__main__":
    sys.exit(run("check_layers", check))
