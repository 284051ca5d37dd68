"""Models behind one protocol (vlm.py): ONNX graphs cut at their attention nodes, transformers models,
mosaic-tiny."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mosaic_edge.models.vlm import Vlm

TINY = "mosaic-tiny"
_MOST_THREADS = 1024
_KINDS = {str: "text", int: "a whole number", bool: "True or False"}


def load_model(
    model: str | Path,
    *,
    device: str | None = None,
    threads: int | None = None,
    variant: str | None = None,
    dtype: str | None = None,
    quantization: str | None = None,
    tokens_per_frame: int | None = None,
    allow_pickle: bool = False,
) -> Vlm:
    """Load a model by name ("mosaic-tiny"), from a directory, or by hub id; what the keywords mean stands at
    Engine.load.

    ModelError names what was looked for; ValueError a keyword of the other layout.
    """
    if not isinstance(model, str | Path):
        raise ValueError(f"model={str(model)[:80]!r}: expected a name, a directory or a hub id")
    for name, value, kind in (
        ("device", device, str),
        ("threads", threads, int),
        ("variant", variant, str),
        ("dtype", dtype, str),
        ("quantization", quantization, str),
        ("tokens_per_frame", tokens_per_frame, int),
        ("allow_pickle", allow_pickle, bool),
    ):
        if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            raise ValueError(f"{name}={str(value)[:80]!r}: expected {_KINDS[kind]}")
    if threads is not None and not 0 <= threads <= _MOST_THREADS:
        raise ValueError(f"threads={threads}: expected 0 (all cores) to {_MOST_THREADS}")
    path = Path(__file__).parent / "tiny" if model == TINY else Path(model)
    if not _is_transformers(path, str(model)):
        theirs = {"dtype": dtype, "quantization": quantization, "allow_pickle": allow_pickle or None}
        if given := [name for name, value in theirs.items() if value is not None]:
            raise ValueError(f"{', '.join(given)}: {model} is in the ONNX layout, which has no such option")
        from mosaic_edge.models.onnx.vlm import OnnxVlm

        return OnnxVlm.load(path, threads, variant, device or "cpu", tokens_per_frame)
    if variant is not None:
        raise ValueError(f"variant={variant!r}: {model} is in the transformers layout, which has no variants")
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        from mosaic_edge.models.vlm import ModelError

        raise ModelError(
            f"{model}: its layout needs {error.name}, which is not installed: pip install 'mosaic_edge[hf]'"
        ) from None
    from mosaic_edge.models.hf.vlm import HfVlm

    if threads is not None:
        torch.set_num_threads(threads or os.cpu_count() or 1)  # torch has one number for the whole process
    return HfVlm.load(
        path if path.is_dir() else model,
        dtype=dtype,
        device=device,
        quantization=quantization,
        tokens_per_frame=tokens_per_frame,
        allow_pickle=allow_pickle,
    )


def _is_transformers(path: Path, model: str) -> bool:
    """A directory with config.json and no ONNX graph; or what is no directory and has the form of a hub
    id."""
    from mosaic_edge.models.directory import is_folder

    if not is_folder(path):
        return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", model) is not None
    graphs = (path / "onnx").is_dir() or (path / "genai_config.json").is_file() or any(path.glob("*.onnx"))
    return (path / "config.json").is_file() and not graphs
