"""What the JSON files of a model directory may say: one table a file, the keys that are read here or that
decide what transformers builds.

A table of our own: pydantic would take longer to import than mosaic-tiny to load, and neither it nor msgspec
words an error as file, key, value, need. A key that is null counts as absent; one in no table is not looked
at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from mosaic_edge import _core
from mosaic_edge.models.vlm import ModelError
from mosaic_edge.shown import shown


@dataclass(frozen=True)
class Kind:
    """What a value must be, in words and as a test."""

    need: str
    fits: Callable[[Any], bool]

    def __or__(self, other: Kind) -> Kind:
        return Kind(f"{self.need}, or {other.need}", lambda value: self.fits(value) or other.fits(value))


Table: TypeAlias = Mapping[str, "Kind | Table"]


def checked(where: str, value: dict[str, Any], table: Table) -> dict[str, Any]:
    """`value` without its nulls, if it is as `table` says; ModelError names `where`, key, value and need."""
    found = dict(value)
    for key, kind in table.items():
        if (given := found.get(key)) is None:
            found.pop(key, None)
        elif isinstance(kind, Kind):
            if not kind.fits(given):
                raise ModelError(f"{where}{key}={shown(given)}: expected {kind.need}")
        elif not isinstance(given, dict):
            raise ModelError(f"{where}{key}={shown(given)}: expected an object")
        else:
            found[key] = checked(f"{where}{key}.", given, kind)
    return found


def whole(least: int, most: int) -> Kind:
    """An int (no bool) from `least` to `most`."""
    return Kind(f"a whole number from {least} to {most}", lambda value: _whole(value, least, most))


def number(above: float, most: float) -> Kind:
    """A finite number over `above`, at most `most`."""
    return Kind(f"a number over {above:g}, at most {most:g}", lambda value: _number(value, above, most))


def text(most: int) -> Kind:
    """A string of at most `most` characters."""
    return Kind(
        f"text of at most {most} characters", lambda value: isinstance(value, str) and len(value) <= most
    )


def list_of(kind: Kind, least: int, most: int) -> Kind:
    """A list of `least` to `most` values of a kind."""
    size = f"{least}" if least == most else f"{least} to {most}"
    return Kind(
        f"a list of {size}, each {kind.need}",
        lambda value: (
            isinstance(value, list) and least <= len(value) <= most and all(kind.fits(item) for item in value)
        ),
    )


def map_of(kind: Kind) -> Kind:
    """An object whose every value is of a kind."""
    return Kind(
        f"an object whose every value is {kind.need}",
        lambda value: isinstance(value, dict) and all(kind.fits(item) for item in value.values()),
    )


def _whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _number(value: Any, above: float, most: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -(1 << 1000) < value < 1 << 1000 and math.isfinite(value) and above < value <= most


TEMPLATE = text(1 << 20) | Kind("templates by name", lambda value: isinstance(value, list | dict))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
OBJECT: Table = {}
WORD, PROMPT = text(512), text(1 << 16)
COUNT = whole(1, 1 << 16)
WIDTH = whole(1, 1 << 22)
SIDE = whole(1, 1 << 14)
PAIR = SIDE | list_of(SIDE, 2, 2)
IDS = whole(0, (1 << 31) - 1) | list_of(whole(0, (1 << 31) - 1), 1, 4096)
MEAN = number(-1e4, 1e4) | list_of(number(-1e4, 1e4), 3, 3)
DEVIATION = number(0, 1e4) | list_of(number(0, 1e4), 3, 3)
RATE = number(0, 1000)
SETTING = number(-1e300, 1e300) | WORD
THETA = number(0, 1e15)
PIXELS = whole(1, 1 << 40)
SIZE = SIDE | list_of(SIDE, 2, 2) | map_of(PIXELS)

_ROPE: Table = {
    "rope_theta": THETA,
    "rope_type": WORD,
    "type": WORD,
    "mrope_section": list_of(whole(0, 1 << 16), 3, 3),
}
_TEXT: Table = {
    "model_type": WORD,
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH | list_of(WIDTH, 1, 1 << 12),
    "num_hidden_layers": whole(1, 1 << 12),
    "depth": whole(1, 1 << 12),
    "image_size": PAIR,
    "patch_size": PAIR,
    "num_attention_heads": COUNT,
    "num_key_value_heads": COUNT,
    "head_dim": COUNT,
    "vocab_size": whole(1, 1 << 26),
    "max_position_embeddings": whole(1, 1 << 40),
    "rms_norm_eps": number(0, 1),
    "rope_theta": THETA,
    "rope_parameters": _ROPE,
    "rope_scaling": _ROPE,
    "layer_types": list_of(WORD, 1, 1 << 12),
    "sliding_window": whole(0, 1 << 40),
    "full_attn_idxs": list_of(whole(0, 1 << 12), 0, 1 << 12),
    "attn_layer_indices": list_of(whole(0, 1 << 12), 0, 1 << 12),
    "full_attention_interval": whole(1, 1 << 12),
    "layers_block_type": list_of(WORD, 0, 1 << 12),
    "no_rope_layers": list_of(whole(0, 1), 0, 1 << 12),
    "eos_token_id": IDS,
    "dtype": WORD,
    "torch_dtype": WORD,
    "quantization_config": OBJECT,
}
_VISION: Table = {
    "model_type": WORD,
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_hidden_layers": whole(1, 1 << 12),
    "num_attention_heads": COUNT,
    "depth": whole(1, 1 << 12),
    "num_heads": COUNT,
    "image_size": PAIR,
    "patch_size": PAIR,
    "vocab_size": whole(1, 1 << 26),
    "tokens_per_second": RATE,
    "deepstack_visual_indexes": list_of(whole(0, 1 << 12), 0, 64),
}
_CONFIG: Table = {
    **_TEXT,
    "text_config": _TEXT,
    "vision_config": _VISION,
    "architectures": list_of(WORD, 1, 16),
}
_IMAGES: Table = {
    "image_processor_type": WORD,
    "size": SIZE,
    "crop_size": SIZE,
    "max_image_size": SIZE,
    "image_mean": MEAN,
    "image_std": DEVIATION,
    "rescale_factor": number(0, 1000),
    "resample": whole(0, 5),
    "patch_size": SIDE,
    "merge_size": SIDE,
    "temporal_patch_size": whole(1, 64),
    "min_pixels": PIXELS,
    "max_pixels": PIXELS,
    **{f"do_{step}": FLAG for step in ("resize", "rescale", "normalize", "center_crop", "convert_rgb")},
}
_GRAPH: Table = {
    "filename": WORD,
    "head_size": COUNT,
    "hidden_size": WIDTH,
    "num_attention_heads": COUNT,
    "num_key_value_heads": COUNT,
    "num_hidden_layers": whole(1, 1 << 12),
    "tokens_per_second": RATE,
    "spatial_merge_size": SIDE,
}
_SAMPLING: Table = {
    "do_sample": FLAG,
    "temperature": number(-1e-9, 1e6),
    "top_k": whole(0, 1 << 31),
    "top_p": number(0, 1),
    "repetition_penalty": number(1e-6, 1e6),
}
TABLES: Mapping[str, Table] = {
    "config.json": _CONFIG,
    "generation_config.json": {"eos_token_id": IDS, **_SAMPLING},
    "preprocessor_config.json": _IMAGES,
    "video_preprocessor_config.json": _IMAGES,
    "processor_config.json": {
        "image_processor": _IMAGES,
        "video_processor": _IMAGES,
        "processor": {"transforms": Kind("a list", lambda value: isinstance(value, list))},
    },
    "genai_config.json": {
        "model": {
            "decoder": _GRAPH,
            "vision": _GRAPH,
            "embedding": _GRAPH,
            "type": WORD,
            "eos_token_id": IDS,
            "context_length": whole(1, 1 << 40),
        },
        "search": _SAMPLING,
    },
    "mosaic.json": {
        "name": WORD,
        "template": PROMPT,
        "prefix": PROMPT,
        "fps": RATE,
        "video_window": whole(0, 1 << 16),
        "context": whole(0, 1 << 24),
        "policy_settings": map_of(map_of(SETTING)),  # by policy; which there are the core says
        "tokens_per_frame": whole(1, 1 << 20),
        "grid": list_of(whole(1, 1 << 20), 2, 2),
        "image_size": PAIR,
        "image_mean": MEAN,
        "image_std": DEVIATION,
        "eos_token_id": IDS,
        "tokens_per_second": RATE,
    },
    "tokenizer_config.json": {"tokenizer_class": WORD, "chat_template": TEMPLATE},
    "chat_template.json": {"chat_template": TEMPLATE},
    "model.safetensors.index.json": {"weight_map": map_of(WORD)},
}
"""By the file's name."""


def card_settings(folder: Path, mosaic: Mapping[str, Any]) -> dict[str, dict[str, float | str]]:
    """Of the mosaic.json of a folder, the policy settings that suit its model, by the policy's name.

    ModelError where the core has no such policy, setting or value.
    """
    chosen = {
        policy: {name: value if isinstance(value, str) else float(value) for name, value in settings.items()}
        for policy, settings in mosaic.get("policy_settings", {}).items()
    }
    try:
        for policy, settings in chosen.items():
            _core.check_policy(policy, settings)
    except _core.InvalidInput as error:
        raise ModelError(f"{folder / 'mosaic.json'}: policy_settings: {error}") from None
    return chosen
