"""A model of the hub: what is fetched of a repository, by the layout it is in."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosaic_edge.models.layout import Layout, chosen, layout_of, names_in
from mosaic_edge.models.vlm import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger("mosaic_edge")

_SMALL = ["*.json", "*.jinja", "*.txt", "*.model"]
_TENSORS = ["*.safetensors"]
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth")


def is_hub_id(model: str) -> bool:
    """Whether a text has the form of one: "Qwen/Qwen2.5-VL-3B-Instruct"."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", model) is not None


def fetch(
    model: str,
    layout: str | None,
    graphs: Callable[[list[str]], list[str]],
    allow_pickle: bool = False,
) -> tuple[Path, Layout]:
    """Where the hub's cache has a model, fetched if it is not there, and its layout; offline, what the cache
    has.

    graphs: of the repository's files, those that a model in the ONNX layout is made of. A bar on a terminal
    shows how far it is; where the files lie, and what they took, is logged in one line ("mosaic_edge", INFO).
    ModelError in one line.
    """
    names = _listed(model)
    if names is None:
        folder = _cached(model)
        _log.info("%s: the hub cannot be asked; what its cache has is taken: %s", model, folder)
        return folder, chosen(layout, layout_of(names_in(folder)))
    kind = chosen(layout, layout_of(names))
    if kind == "onnx":
        wanted = [*_SMALL, *graphs(names)]
    else:
        wanted = [*_SMALL, *_TENSORS, *(PICKLES if allow_pickle else ())]
    began, clock = time.time(), time.monotonic()
    with _silent_in_a_pipe():
        folder = _snapshot(model, wanted)
    fetched = sum(size for size, written in _files(folder) if written >= began)
    if fetched:
        took = time.monotonic() - clock
        _log.info("%s: %s fetched in %.0f s; it lies in %s", model, _mebibytes(fetched), took, folder)
    return folder, kind


@contextmanager
def _silent_in_a_pipe() -> Iterator[None]:
    """The hub's own bars are for terminals alone."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    off = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if off:
        disable_progress_bars()
    try:
        yield
    finally:
        if off:
            enable_progress_bars()


def _files(folder: Path) -> Iterator[tuple[int, float]]:
    """Bytes of each file of a snapshot, and when they were written."""
    for path in folder.rglob("*"):
        if path.is_file():
            found = path.stat()
            yield found.st_size, found.st_mtime


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):,.1f} MiB"


def sizes_on_hub(model: str) -> dict[str, int]:
    """Bytes of every file of a repository, by its name; of what the cache has, where the hub cannot be asked.
    ModelError where neither is there."""
    import huggingface_hub

    try:
        found = huggingface_hub.model_info(model, files_metadata=True).siblings or []
        return {file.rfilename: int(file.size or 0) for file in found}
    except Exception:  # offline, or no such model: what the cache has decides, and says what is wrong
        return sizes_in(_cached(model))


def sizes_in(folder: Path) -> dict[str, int]:
    """Bytes of every file of a directory, and of its onnx/, by its name inside it."""
    return {name: (folder / name).stat().st_size for name in names_in(folder) if (folder / name).is_file()}


def _listed(model: str) -> list[str] | None:
    """The files of a repository; None where the hub cannot be asked."""
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    try:  # one request: listing its tree is tried again and again where there is no network
        found = huggingface_hub.model_info(model, timeout=10).siblings or []
        return [file.rfilename for file in found]
    except RepositoryNotFoundError as error:
        raise _not_to_be_had(model, error) from None
    except Exception:  # offline, or told to be: what the cache has decides
        return None


def _cached(model: str) -> Path:
    """The snapshot in the hub's cache. It need not be whole: of a repository only what is wanted was fetched,
    and what is missing of that is named when it is read. ModelError where there is none."""
    import huggingface_hub

    for name in ("config.json", "genai_config.json", "tokenizer.json"):
        if isinstance(found := huggingface_hub.try_to_load_from_cache(model, name), str):
            return Path(found).parent
    return _snapshot(model, None, local_files_only=True)


def _snapshot(model: str, patterns: list[str] | None, **settings: Any) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(model, allow_patterns=patterns, **settings))
    except Exception as error:  # gated, no disk, not in the cache: each has a class of its own
        raise _not_to_be_had(model, error) from None


def _not_to_be_had(model: str, error: Exception) -> ModelError:
    return ModelError(
        f"{model}: no such directory, not in the hub cache, and not to be had from the hub "
        f"({type(error).__name__}: {' '.join(str(error).split())[:160]})"
    )
