"""What a model directory says of its pixels, whichever files say it: as preprocessor_config.json has it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mosaic_edge.models.directory import read_json
from mosaic_edge.models.vlm import ModelError

_OPERATIONS: Mapping[str, Mapping[str, str]] = {
    "DecodeImage": {},
    "ConvertRGB": {},
    "Resize": {name: name for name in ("min_pixels", "max_pixels", "patch_size", "merge_size")},
    "CenterCrop": {},
    "Rescale": {"rescale_factor": "rescale_factor"},
    "Normalize": {"mean": "image_mean", "std": "image_std"},
    "PatchImage": {name: name for name in ("patch_size", "temporal_patch_size", "merge_size")},
    "Permute3D": {},
}
"""Steps of onnxruntime-genai's processor: which of their attributes mean what."""


def image_settings(folder: Path) -> dict[str, Any]:
    """Of still images; {} where no file says anything."""
    if own := read_json(folder / "preprocessor_config.json"):
        return own
    said = read_json(folder / "processor_config.json")
    if "processor" in said:
        return _of_steps(folder / "processor_config.json", said["processor"].get("transforms") or [])
    return dict(said.get("image_processor", {}))


def video_settings(folder: Path) -> dict[str, Any]:
    """Of videos, as AutoVideoProcessor would be set: by transformers 5's one file, else the video processor's
    own, else the image processor's."""
    found = read_json(folder / "processor_config.json").get("video_processor")
    found = found or read_json(folder / "video_preprocessor_config.json") or image_settings(folder)
    return {key: value for key, value in found.items() if value is not None}


def _of_steps(where: Path, steps: list[Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for step in steps:
        operation = step.get("operation", {}) if isinstance(step, dict) else {}
        kind, attributes = str(operation.get("type")), operation.get("attrs") or {}
        if kind not in _OPERATIONS:
            raise ModelError(f"{where}: its step {kind[:80]!r} is not one of {', '.join(_OPERATIONS)}")
        settings |= {
            ours: attributes[theirs] for theirs, ours in _OPERATIONS[kind].items() if theirs in attributes
        }
        if kind == "Resize" and not attributes.get("smart_resize") and "height" in attributes:
            settings["size"] = {"height": attributes["height"], "width": attributes["width"]}
        if kind == "CenterCrop" and "height" in attributes:
            settings |= {"do_center_crop": True, "crop_size": [attributes["height"], attributes["width"]]}
    return settings
