"""Files of tensors (safetensors) without a library: what a header says, and one tensor of a few numbers.
Either layout reads them: the graphs of an export lack what is no operator's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from mosaic_edge.models.directory import plain_file
from mosaic_edge.models.vlm import FloatArray, ModelError

_HEADER_BYTES = 100_000_000  # what the safetensors package reads at most
_NUMBERS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def tensor_files(folder: Path) -> list[Path]:
    """Of a directory; what a Mac lays beside each (._model.safetensors) is none."""
    return sorted(file for file in folder.glob("*.safetensors") if not file.name.startswith("._"))


def header_of(file: Path) -> dict[str, Any]:
    """What a file says of its tensors, by their names. ModelError if it is not whole."""
    return _header(file)[0]


def vector_of(folder: Path, name: str, width: int) -> FloatArray | None:
    """The tensor of this name, or of one that ends in it, out of the first file that has it: [width] numbers,
    the only ones that are read. None where no file has it. ModelError for another shape, or damage."""
    for file in tensor_files(folder):
        header, start = _header(plain_file(folder, file))
        for full in sorted(header):
            if full == name or full.endswith(f".{name}"):
                return _vector(file, full, header[full], start, width)
    return None


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """And where the first tensor begins."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= min(size - 8, _HEADER_BYTES):
            raise ModelError(f"{file}: not a safetensors file, or cut off in its header ({size} bytes)")
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            end = max((int(tensor["data_offsets"][1]) for tensor in header.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError):
            raise ModelError(f"{file}: its safetensors header cannot be read") from None
    if size != 8 + length + end:
        raise ModelError(f"{file}: truncated or damaged: {size} bytes, its header says {8 + length + end}")
    return header, 8 + length


def _vector(file: Path, name: str, said: dict[str, Any], start: int, width: int) -> FloatArray:
    kind, shape = said.get("dtype"), said.get("shape")
    if kind not in _NUMBERS or shape != [width]:
        raise ModelError(
            f"{file}: {name} is {str(kind)[:20]} {str(shape)[:80]}, expected {width} numbers as "
            f"{', '.join(_NUMBERS)}"
        )
    first, last = said["data_offsets"][0], said["data_offsets"][1]
    number = np.dtype(_NUMBERS[kind])
    if not isinstance(first, int) or not 0 <= first <= last or last - first != width * number.itemsize:
        raise ModelError(f"{file}: {name} of {width} numbers lies at {str(first)[:20]} to {last}")
    found = np.fromfile(file, number, width, offset=start + first)
    if kind == "BF16":  # the upper half of a float32
        found = (found.astype(np.uint32) << 16).view(np.float32)
    vector = found.astype(np.float32)
    if not math.isfinite(float(np.abs(vector).sum(dtype=np.float64))):
        raise ModelError(f"{file}: NaN or infinity in {name}")
    return vector
