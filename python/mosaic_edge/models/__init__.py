"""Models behind one protocol (vlm.py): ONNX graphs cut at their attention nodes, transformers models,
mosaic-tiny."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mosaic_edge.threads import harmless_end

if TYPE_CHECKING:
    from mosaic_edge.models.layout import Layout
    from mosaic_edge.models.vlm import Vlm
    from mosaic_edge.models.weights import Weights

TINY = "mosaic-tiny"
_MOST_THREADS = 1024
_KINDS = {str: "text", int: "a whole number", bool: "True or False"}


def load_model(
    model: str | Path,
    *,
    layout: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    variant: str | None = None,
    dtype: str | None = None,
    quantization: str | None = None,
    tokens_per_frame: int | Literal["native"] | None = None,
    system: str | None = None,
    allow_pickle: bool = False,
) -> Vlm:
    """Load a model by name ("mosaic-tiny"), from a directory, or by hub id; what the keywords mean stands at
    Engine.load.

    ModelError names what was looked for; ValueError a keyword of the other layout.
    """
    if not isinstance(model, str | Path):
        raise ValueError(f"model={str(model)[:80]!r}: expected a name, a directory or a hub id")
    for name, value, kind in (
        ("layout", layout, str),
        ("device", device, str),
        ("threads", threads, int),
        ("variant", variant, str),
        ("dtype", dtype, str),
        ("quantization", quantization, str),
        ("tokens_per_frame", None if tokens_per_frame == "native" else tokens_per_frame, int),
        ("system", system, str),
        ("allow_pickle", allow_pickle, bool),
    ):
        if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            raise ValueError(f"{name}={str(value)[:80]!r}: expected {_KINDS[kind]}")
    if threads is not None and not 0 <= threads <= _MOST_THREADS:
        raise ValueError(f"threads={threads}: expected 0 (all cores) to {_MOST_THREADS}")
    harmless_end()
    path, kind_of_files = _found(model, layout, variant, device or "cpu", allow_pickle)
    if kind_of_files == "onnx":
        theirs = {"dtype": dtype, "quantization": quantization, "allow_pickle": allow_pickle or None}
        if given := [name for name, value in theirs.items() if value is not None]:
            raise ValueError(f"{', '.join(given)}: {model} is in the ONNX layout, which has no such option")
        from mosaic_edge.models.onnx.vlm import OnnxVlm

        return OnnxVlm.load(path, threads, variant, device or "cpu", tokens_per_frame, system)
    if variant is not None:
        raise ValueError(f"variant={variant!r}: {model} is in the transformers layout, which has no variants")
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        from mosaic_edge.models.vlm import ModelError

        graphs = any((path / "onnx").glob("*.onnx"))
        other = "; layout='onnx' takes the graphs beside its weights" if graphs else ""
        raise ModelError(
            f"{model}: its layout needs {error.name}, which is not installed: "
            f"pip install 'mosaic_edge[hf]'{other}"
        ) from None
    from mosaic_edge.models.hf.vlm import HfVlm

    if threads is not None:
        torch.set_num_threads(threads or os.cpu_count() or 1)  # torch has one number for the whole process
    return HfVlm.load(
        path,
        dtype=dtype,
        device=device,
        quantization=quantization,
        tokens_per_frame=tokens_per_frame,
        allow_pickle=allow_pickle,
        system=system,
    )


def _found(
    model: str | Path, layout: str | None, variant: str | None, device: str, allow_pickle: bool
) -> tuple[Path, Layout]:
    """Where the files of a model lie, and which layout is taken of those that are there."""
    from mosaic_edge.models.directory import is_folder
    from mosaic_edge.models.hub import fetch, is_hub_id
    from mosaic_edge.models.layout import chosen, layout_of, names_in

    path = Path(__file__).parent / "tiny" if model == TINY else Path(model)
    if is_folder(path):
        return path, chosen(layout, layout_of(names_in(path)))
    if not is_hub_id(str(model)):
        return path, chosen(layout, "onnx")  # which says that there is no such directory
    from mosaic_edge.models.onnx.files import names_of_parts

    return fetch(str(model), layout, lambda names: names_of_parts(names, variant, device), allow_pickle)


def weights_on_disk(model: str, layout: str | None = None) -> Weights:
    """What load_model() would read, of a directory, a name or a hub id, as the sizes of its files say: none
    is read. ModelError where there is no such model."""
    from mosaic_edge.models.directory import is_folder, read_json
    from mosaic_edge.models.hub import is_hub_id, sizes_in, sizes_on_hub
    from mosaic_edge.models.onnx.files import names_of_parts
    from mosaic_edge.models.vlm import ModelError
    from mosaic_edge.models.weights import weights_of

    path = Path(__file__).parent / "tiny" if model == TINY else Path(model)
    config = {}
    if is_folder(path):
        sizes, config = sizes_in(path), read_json(path / "config.json")
    elif is_hub_id(model):
        sizes = sizes_on_hub(model)
    else:
        raise ModelError(f"{model[:500]}: no such model directory")
    return weights_of(sizes, config, layout, lambda names: names_of_parts(names, None, "cpu"))
