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
    """Of still images; {} where no file says anything. transformers 5 writes one file of all processors and
    leaves an older one beside it as it was, so that one goes first."""
    said = read_json(folder / "processor_config.json")
    own = said.get("image_processor") or read_json(folder / "preprocessor_config.json")
    if not own and "processor" in said:
        return _of_steps(folder / "processor_config.json", said["processor"].get("transforms") or [])
    return dict(own)


def video_settings(folder: Path) -> dict[str, Any]:
    """Of videos, as AutoVideoProcessor would be set: by transformers 5's one file, else the video processor's
    own, else the image processor's."""
    found = read_json(folder / "processor_config.json").get("video_processor")
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        found = found or read_json(folder / name)
    return {key: value for key, value in (found or image_settings(folder)).items() if value is not None}


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
