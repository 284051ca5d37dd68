"""What a configuration makes transformers build, against the weight files there are: a few bytes of JSON must
not take the memory of a machine.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from mosaic_edge.models.vlm import ModelError

_MOST_NUMBERS = 16
"""Of a byte of the weight files, whatever they are packed as."""


@dataclass(frozen=True)
class Stored:
    """What the weight files hold, as their headers say; of pickles no number of tensors is known."""

    tensors: int
    bytes: int
    types: frozenset[str] = frozenset()
    """Of the tensors, as safetensors names them."""


def check_sizes(folder: Path, config: dict[str, Any], stored: Stored) -> None:
    """What config.json makes transformers build, against the weights there are. ModelError names the key."""
    at = folder / "config.json"
    sections = {"": config, **{f"{name}.": config.get(name) for name in ("text_config", "vision_config")}}
    for section, said in sections.items():
        if not isinstance(said, dict):
            continue
        for key in ("num_hidden_layers", "depth"):
            if said.get(key, 0) > stored.tensors:
                raise ModelError(
                    f"{at}: {section}{key}={said[key]}: the weight files hold {stored.tensors} tensors"
                )
        width, patch = said.get("hidden_size", 1), _least(said.get("patch_size", 1))
        numbers = {
            "vocab_size": said.get("vocab_size", 1) * width,
            "intermediate_size": _least(said.get("intermediate_size", 1)) * width,
            "image_size": (_least(said.get("image_size", 1)) // patch) ** 2 * width,
        }
        for key, count in numbers.items():
            if count > _MOST_NUMBERS * stored.bytes:
                raise ModelError(
                    f"{at}: {section}{key}={said.get(key)} (of width {width}) makes a tensor of {count} "
                    f"numbers: the weight files hold {stored.bytes} bytes"
                )


def check_built(folder: Path, built: Any, stored: Stored) -> None:
    """All that transformers makes of a configuration, counted on a device that holds nothing. A weight that
    the files lack would be made up, at the size that is said, before it is known to be missing."""
    try:
        model = on_meta(built)
    except Exception:  # from_pretrained() fails by it too, and says what is wrong
        return
    sizes = {name: x.numel() for name, x in (*model.named_parameters(), *model.named_buffers())}
    count, largest = sum(sizes.values()), max(sizes, key=lambda name: sizes[name])
    if count > _MOST_NUMBERS * stored.bytes:
        raise ModelError(
            f"{folder / 'config.json'}: makes a model of {count} numbers, {sizes[largest]} of them "
            f"{largest}: the weight files hold {stored.bytes} bytes"
        )


def on_meta(built: Any, **how: Any) -> Any:
    """The model of a configuration, on a device that holds nothing. Raises whatever transformers does."""
    creation = getattr(
        getattr(transformers, "initialization", None), "meta_device_safe_creation_ops", nullcontext
    )
    with torch.device("meta"), creation():
        return transformers.AutoModelForImageTextToText.from_config(
            copy.deepcopy(built), trust_remote_code=False, **how
        )


def _least(size: Any) -> int:
    return int(min(size)) if isinstance(size, list) else int(size)
