"""A model of the hub: what is fetched of a repository, by the layout it is in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosaic_edge.models.layout import Layout, chosen, layout_of, names_in
from mosaic_edge.models.vlm import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

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

    graphs: of the repository's files, those that a model in the ONNX layout is made of. ModelError in one
    line.
    """
    import huggingface_hub

    names = _listed(model)
    if names is None:
        folder = _snapshot(model, None, local_files_only=True)
        return folder, chosen(layout, layout_of(names_in(folder)))
    kind = chosen(layout, layout_of(names))
    if kind == "onnx":
        wanted = [*_SMALL, *graphs(names)]
    else:
        wanted = [*_SMALL, *_TENSORS, *(PICKLES if allow_pickle else ())]
    try:
        return Path(huggingface_hub.snapshot_download(model, allow_patterns=wanted)), kind
    except Exception as error:  # gated, no disk: each has a class of its own
        raise _not_to_be_had(model, error) from None


def _listed(model: str) -> list[str] | None:
    """The files of a repository; None where the hub cannot be asked."""
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return list(huggingface_hub.list_repo_files(model))
    except RepositoryNotFoundError as error:
        raise _not_to_be_had(model, error) from None
    except Exception:  # offline, or told to be: what the cache has decides
        return None


def _snapshot(model: str, patterns: list[str] | None, **settings: Any) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(model, allow_patterns=patterns, **settings))
    except Exception as error:  # not in the cache either
        raise _not_to_be_had(model, error) from None


def _not_to_be_had(model: str, error: Exception) -> ModelError:
    return ModelError(
        f"{model}: no such directory, not in the hub cache, and not to be had from the hub "
        f"({type(error).__name__}: {' '.join(str(error).split())[:160]})"
    )
