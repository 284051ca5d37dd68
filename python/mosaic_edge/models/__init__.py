"""Models behind one protocol (vlm.py): ONNX graphs cut at their attention nodes, transformers models,
mosaic-tiny."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mosaic_edge.models.vlm import Vlm

TINY = "mosaic-tiny"


def load_model(
    model: str | Path,
    *,
    threads: int | None = None,
    variant: str | None = None,
    device: str | None = None,
    tokens_per_frame: int | None = None,
    **options: Any,
) -> Vlm:
    """Load a model by name ("mosaic-tiny"), from a directory, or by hub id. ModelError names what was looked
    for.

    options are those of HfVlm.load, and of its layout alone; so are config.json and weights without an ONNX
    graph.
    """
    path = Path(__file__).parent / "tiny" if model == TINY else Path(model)
    if not _is_transformers(path, str(model)):
        if options:
            raise ValueError(f"{', '.join(options)}: {model} is in the ONNX layout, which has no such option")
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
    place = path if path.is_dir() else model
    return HfVlm.load(place, device=device, tokens_per_frame=tokens_per_frame, **options)


def _is_transformers(path: Path, model: str) -> bool:
    """A directory with config.json and no ONNX graph; or what is no directory and has the form of a hub
    id."""
    if not path.is_dir():
        return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", model) is not None
    graphs = (path / "onnx").is_dir() or (path / "genai_config.json").is_file() or any(path.glob("*.onnx"))
    return (path / "config.json").is_file() and not graphs
