"""Models behind one protocol (vlm.py): ONNX graphs cut at their attention nodes, and mosaic-tiny."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mosaic_edge.models.vlm import Vlm

TINY = "mosaic-tiny"


def load_model(
    model: str | Path,
    *,
    threads: int | None = None,
    variant: str | None = None,
    device: str = "cpu",
    tokens_per_frame: int | None = None,
) -> Vlm:
    """Load a model by name ("mosaic-tiny") or from a directory. ModelError names what was looked for."""
    from mosaic_edge.models.onnx_vlm import OnnxVlm

    path = Path(__file__).parent / "tiny" if model == TINY else Path(model)
    return OnnxVlm.load(path, threads, variant, device, tokens_per_frame)
