"""Which layout a model directory or a repository of the hub is in: transformers' (safetensors) or ONNX
graphs. Many repositories hold both; then it is transformers', unless asked otherwise."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from mosaic_edge.models.vlm import ModelError

Layout = Literal["onnx", "transformers"]
LAYOUTS: tuple[Layout, ...] = ("onnx", "transformers")
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth")


def layout_of(names: Iterable[str]) -> Layout:
    """By the files there are, as paths inside the directory. What has weights of both kinds is transformers';
    what has neither is taken for that which its other files belong to, so that what is missing can be
    named."""
    files = list(names)
    top = [name for name in files if "/" not in name]
    graphs = any(name.endswith(".onnx") and name.count("/") <= 1 for name in files)
    if "genai_config.json" in top:
        return "onnx"
    if "config.json" in top and (any(name.endswith(_WEIGHTS) for name in top) or not graphs):
        return "transformers"
    return "onnx"


def chosen(layout: str | None, found: Layout) -> Layout:
    """The one that was asked for, else the one that was found. ValueError for what is no layout."""
    if layout is None:
        return found
    if layout not in LAYOUTS:
        raise ValueError(f"layout={str(layout)[:80]!r}: expected {' or '.join(map(repr, LAYOUTS))}")
    return layout


def names_in(folder: Path) -> list[str]:
    """The files of a directory and of its onnx/, as layout_of() takes them. ModelError where they cannot be
    listed."""
    try:
        inside = [*folder.iterdir(), *((folder / "onnx").iterdir() if (folder / "onnx").is_dir() else ())]
    except OSError as error:
        raise ModelError(f"{folder}: its files cannot be listed ({error.strerror or error})") from None
    return [path.relative_to(folder).as_posix() for path in inside]
