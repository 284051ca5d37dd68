"""An ONNX file as it lies on disk: every stored tensor is as large as its shape says before anything is built
of it, external data lies in the model's directory, and no constant shape asks for memory without bound.
"""

from __future__ import annotations

import math
from pathlib import Path

import onnx
from onnx import numpy_helper
from onnx.external_data_helper import uses_external_data

from mosaic_edge.models.directory import is_there, named_file, plain_file
from mosaic_edge.models.vlm import ModelError

_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128,
         16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2}  # fmt: skip
"""Of an element, by its ONNX type."""
_MOST_MADE = 1 << 28
"""Elements that a node may make out of a constant shape."""


def read_graph(path: Path) -> onnx.ModelProto:
    """An ONNX file without its external data, which is checked to be there in full. ModelError otherwise."""
    plain_file(path.parent, path)
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own class, or the file system's
        raise ModelError(f"{path}: not a readable ONNX file, truncated or corrupt ({error})") from None
    if not model.graph.node:
        raise ModelError(f"{path}: an ONNX file without a graph, truncated or empty")
    for tensor in model.graph.initializer:
        _check_size(path, tensor)
    for location, end in external_files(model).items():
        if not is_there(path.parent / location):
            raise ModelError(f"{path}: its external data {location} is missing")
        data = named_file(path.parent, location, path.name)
        if data.stat().st_size < end:
            raise ModelError(
                f"{data}: external data of {data.stat().st_size} bytes, {path.name} needs {end}: truncated"
            )
    _check_made(path, model.graph)
    if path.is_symlink():
        _name_blobs(path, model)
    return model


def data_folder(path: Path) -> Path:
    """Where the external data of a graph lies, as read_graph() names it. In a snapshot of the hub's cache the
    graph and its data are links into the blobs, which ONNX and ONNX Runtime follow only from there."""
    return path.resolve().parent if path.is_symlink() else path.parent


def _name_blobs(path: Path, model: onnx.ModelProto) -> None:
    """Call external data by what the links lead to."""
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = (path.parent / entry.value).resolve().name


def external_files(model: onnx.ModelProto) -> dict[str, int]:
    """The files of external data that a graph refers to, each with the byte where its last tensor ends."""
    ends: dict[str, int] = {}
    for tensor in model.graph.initializer:
        if uses_external_data(tensor):
            location, offset, length = _external(tensor)
            ends[location] = max(ends.get(location, 0), offset + length)
    return ends


def _external(tensor: onnx.TensorProto) -> tuple[str, int, int]:
    """Location, offset and bytes of external data. ValueError for what is no number."""
    said = {entry.key: entry.value for entry in tensor.external_data}
    offset, length = int(said.get("offset") or 0), int(said.get("length") or 0)
    return said.get("location", ""), offset, length or _bytes_of(tensor) or 0


def _bytes_of(tensor: onnx.TensorProto) -> int | None:
    """What the shape and type of a tensor come to; None for a type without a fixed size."""
    bits = _BITS.get(tensor.data_type)
    return None if bits is None else (math.prod(tensor.dims) * bits + 7) // 8


def _check_size(path: Path, tensor: onnx.TensorProto) -> None:
    shape = f"tensor '{tensor.name}' {list(tensor.dims)}"
    if any(size < 0 for size in tensor.dims):
        raise ModelError(f"{path}: {shape}: a size below zero")
    need = _bytes_of(tensor)
    have = len(tensor.raw_data) if tensor.HasField("raw_data") else None
    if uses_external_data(tensor):
        try:
            location, offset, have = _external(tensor)
        except ValueError as error:
            raise ModelError(
                f"{path}: {shape}: where its external data lies cannot be read ({error})"
            ) from None
        if offset < 0 or have < 0 or not location:
            raise ModelError(
                f"{path}: {shape}: external data {location!r} from byte {offset} on, {have} bytes"
            )
    if need is not None and have is not None and have != need:
        raise ModelError(f"{path}: {shape} takes {need} bytes, {have} are stored: damaged")


def _check_made(path: Path, graph: onnx.GraphProto) -> None:
    """No node makes more than _MOST_MADE elements out of a shape that is stored."""
    shapes = {
        tensor.name: tensor
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.INT64 and len(tensor.dims) == 1 and tensor.dims[0] <= 16
    }
    for node in graph.node:
        of = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1}.get(node.op_type)
        tensor = shapes.get(node.input[of]) if of is not None and len(node.input) > of else None
        if tensor is None or uses_external_data(tensor):
            continue
        made = math.prod(int(size) for size in numpy_helper.to_array(tensor) if size > 0)
        if made > _MOST_MADE:
            raise ModelError(
                f"{path}: {node.op_type} '{node.name}' makes {made} elements, expected at most {_MOST_MADE}"
            )
