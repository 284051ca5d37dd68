#!/usr/bin/env python3
"""Check the layers: `python tools/check_layers.py [ROOT]`. A line per fault, then exit code 1.

A file includes only its own layer and lower ones (core <- codec <- backend <- memory <- store <- policy <-
runtime <- bindings), and so in Python (python_layers.py); CUDA headers stay under cpp/backend/cuda, Python's
under cpp/bindings; no Torch under cpp/; Python reaches C++ only through mosaic_edge._core; at most 500 lines
a file, three levels of C++ and four of Python; no grab-bag names; codecs.def and its headers agree.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from cpp_includes import includes
from python_layers import PACKAGE, check_imports
from tree_check import run

LAYERS = ("core", "codec", "backend", "memory", "store", "policy", "runtime", "bindings")
MAX_LINES = 500
# Path parts of a source file below cpp/ or python/mosaic_edge/; files of a model are data.
MAX_DEPTH = {"cpp": 3, "python": 4}
GRAB_BAGS = {
    "util", "utils", "utility", "utilities", "common", "helper", "helpers", "misc", "manager", "managers",
    "stuff",
}  # fmt: skip
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # of snake_case, kebab-case and CamelCase
SOURCES = {".def", ".cmake", ".py", ".sh", ".h", ".cc", ""}  # and under cpp/ all but its pages
PAGES = {".md"}
CUDA_HEADER = re.compile(
    r"^(cuda|cublas|cusparse|cusolver|curand|cufft|cudnn|cutlass/|cute/|cub/|thrust/|cooperative_groups|crt/|nvml|"
    r"nvtx|nvToolsExt|nvrtc|nvJitLink|nccl|cuComplex|mma\.h|driver_types\.h|driver_functions\.h|vector_types\.h|"
    r"vector_functions\.h|device_types\.h|builtin_types\.h|library_types\.h|host_defines\.h|device_launch_parameters|"
    r"math_constants\.h|sm_\d\d_)"
)
PYTHON_HEADER = re.compile(r"^(pybind11/|nanobind/|boost/python|numpy/|Python\.h$|structmember\.h$)")
TORCH_HEADER = re.compile(r"^(torch|ATen|aten|c10|caffe2)/")
LISTED = re.compile(r'^\s*MOSAIC_\w+\(.*?"([^"]+)"(?:,\s*(\w+)<)?')  # name, and the template it is one of
CODEC = re.compile(r"\bstatic constexpr bool kRecord\b")  # every codec says whether it is one of records


def check(root: Path) -> list[str]:
    """Every fault under `root`, as "path:line: message", sorted by path."""
    faults: list[str] = []
    for file in sorted(_files(root)):
        path = file.relative_to(root)
        faults += _check_path(path)
        is_cpp = path.parts[0] == "cpp"
        if path.suffix in PAGES or (path.suffix not in SOURCES and not is_cpp):
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        lines = text.splitlines()
        if len(lines) > MAX_LINES:
            faults.append(f"{path}:{MAX_LINES + 1}: {len(lines)} lines; a file stops at {MAX_LINES}")
        if is_cpp:
            faults += _check_includes(path, text, root)
        elif path.parts[:2] == ("python", PACKAGE) and path.suffix == ".py":
            faults += check_imports(path, text, root)
    faults += _check_codecs(root)
    return faults


def _files(root: Path) -> Iterator[Path]:
    for top in ("cpp", "python", "tests", "tools", "jetson", ".ci"):
        for path in (root / top).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and not path.name.endswith((".pyc", ".so")):
                yield path


def _check_path(path: Path) -> Iterator[str]:
    for part in (*path.parts[:-1], path.name.split(".")[0]):
        if GRAB_BAGS & {word.lower() for word in WORD.findall(part)}:
            yield f"{path}:1: '{part}' is a grab-bag name; name it after what it does"
    for tree in (("cpp",), ("python", "mosaic_edge")):
        below = path.parts[len(tree) :]
        is_data = "models" in below[:-1] and path.suffix != ".py"
        if path.parts[: len(tree)] == tree and len(below) > MAX_DEPTH[tree[0]] and not is_data:
            yield f"{path}:1: {len(below)} levels below {'/'.join(tree)}/; at most {MAX_DEPTH[tree[0]]}"
    if path.parts[0] == "cpp" and path.parts[1] not in LAYERS and path.suffix not in PAGES:
        yield f"{path}:1: '{path.parts[1]}' is not a layer; there are {', '.join(LAYERS)}"
    if path.parts[0] == "python" and path.parts[1] != PACKAGE and not path.parts[1].endswith(".egg-info"):
        yield f"{path}:1: '{path.parts[1]}' stands beside {PACKAGE}, the one package there is"


def _check_includes(path: Path, text: str, root: Path) -> Iterator[str]:
    layer = path.parts[1] if path.parts[1] in LAYERS else None
    for number, quote, header in includes(text):
        at = f"{path}:{number}: includes {header}"
        if quote not in ('"', "<"):
            yield f"{at}; an include names its file itself"
            continue
        if CUDA_HEADER.match(header) and path.parts[:3] != ("cpp", "backend", "cuda"):
            yield f"{at}; CUDA headers only under cpp/backend/cuda"
        if PYTHON_HEADER.match(header) and layer != "bindings":
            yield f"{at}; headers of Python only under cpp/bindings"
        if TORCH_HEADER.match(header):
            yield f"{at}; no Torch under cpp/"
        parts = header.split("/")
        is_direct = all(part not in ("", ".", "..") for part in parts)
        if is_direct and parts[0] in LAYERS and len(parts) > 1:  # <memory> is the standard library's
            if layer and LAYERS.index(parts[0]) > LAYERS.index(layer):
                yield f"{at}; {layer} may include only {', '.join(LAYERS[: LAYERS.index(layer) + 1])}"
        elif (
            not is_direct
            or parts[0] == "cpp"
            or (quote == '"' and not CUDA_HEADER.match(header) and not (root / "cpp" / header).is_file())
        ):
            yield f'{at}; write project includes from cpp/, as "layer/file.h"'


def _check_codecs(root: Path) -> Iterator[str]:
    path = root / "cpp/codec/codecs.def"
    if not path.is_file():
        return
    listed = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        found = LISTED.match(line)
        if not found:
            continue
        header = path.with_name((found[2] or found[1]).replace("-", "_").lower() + ".h")
        listed.add(header)
        if not header.is_file():
            at = f"{path.relative_to(root)}:{number}"
            yield f"{at}: '{header.stem}' is listed, but there is no {header.relative_to(root)}"
    for header in sorted(set(path.parent.glob("*.h")) - listed):
        if CODEC.search(header.read_text(encoding="utf-8", errors="replace")):
            yield f"{header.relative_to(root)}:1: holds a codec that codecs.def does not list"


if __name__ == "__main__":
    sys.exit(run("check_layers", check))
