"""What a directory says of its pixels is read from whichever of its files says it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mosaic_edge import ModelError
from mosaic_edge.models.image_settings import image_settings, video_settings
from mosaic_edge.models.patch_bounds import PATCH_BOUNDS


def write(folder: Path, **files: Any) -> Path:
    for name, said in files.items():
        (folder / f"{name}.json").write_text(json.dumps(said))
    return folder


def step(kind: str, **attributes: Any) -> dict[str, Any]:
    return {"operation": {"name": kind.lower(), "type": kind, "attrs": attributes}}


STEPS = [
    step("DecodeImage", color_space="RGB"),
    step("ConvertRGB"),
    step(
        "Resize", width=540, height=360, smart_resize=1, min_pixels=3136, max_pixels=12845056, patch_size=16,
        merge_size=2,
    ),
    step("Rescale", rescale_factor=0.5),
    step("Normalize", mean=[0.5, 0.5, 0.5], std=[0.25, 0.5, 0.5], qwen3_vl=1),
    step("PatchImage", patch_size=16, temporal_patch_size=2, merge_size=2),
]  # fmt: skip


def test_the_steps_of_onnxruntime_genais_processor_are_read(tmp_path: Path) -> None:
    write(tmp_path, processor_config={"processor": {"name": "any", "transforms": STEPS}})
    assert image_settings(tmp_path) == video_settings(tmp_path) == {
        "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 16, "merge_size": 2, "rescale_factor": 0.5,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.5, 0.5], "temporal_patch_size": 2,
    }  # fmt: skip


def test_a_plain_resize_and_a_crop_are_sizes(tmp_path: Path) -> None:
    steps = [step("Resize", width=30, height=20), step("CenterCrop", width=14, height=10), step("Permute3D")]
    write(tmp_path, processor_config={"processor": {"transforms": steps}})
    assert image_settings(tmp_path) == {
        "size": {"height": 20, "width": 30}, "do_center_crop": True, "crop_size": [10, 14],
    }  # fmt: skip


@pytest.mark.parametrize("steps", [[step("Phi3ImageTransform", num_crops=4)], ["x"], [{}]])
def test_a_step_that_is_not_known_is_named(tmp_path: Path, steps: list[Any]) -> None:
    write(tmp_path, processor_config={"processor": {"transforms": steps}})
    with pytest.raises(ModelError, match=r"processor_config.json: its step '.*' is not one of DecodeImage"):
        image_settings(tmp_path)


def test_a_videos_settings_are_its_own_before_an_images(tmp_path: Path) -> None:
    write(tmp_path, preprocessor_config={"size": {"shortest_edge": 1, "longest_edge": 2}})
    assert video_settings(tmp_path)["size"] == {"shortest_edge": 1, "longest_edge": 2}
    write(tmp_path, video_preprocessor_config={"size": {"shortest_edge": 3, "longest_edge": 4}})
    assert video_settings(tmp_path)["size"] == {"shortest_edge": 3, "longest_edge": 4}
    write(tmp_path, processor_config={"video_processor": {"min_pixels": 5, "max_pixels": None}})
    assert video_settings(tmp_path) == {"min_pixels": 5}
    assert image_settings(tmp_path)["size"] == {"shortest_edge": 1, "longest_edge": 2}


def test_a_processor_that_was_saved_over_an_older_one_is_the_newer(tmp_path: Path) -> None:
    """As transformers 5 reads the folder that it saved to: what it does not write stays as it was."""
    write(tmp_path, preprocessor_config={"image_mean": [0.5, 0.5, 0.5], "size": {"shortest_edge": 1}})
    write(tmp_path, processor_config={"image_processor": {"image_mean": [0.1, 0.2, 0.3]}})
    assert image_settings(tmp_path) == {"image_mean": [0.1, 0.2, 0.3]}
    assert video_settings(tmp_path)["size"] == {"shortest_edge": 1}
    (tmp_path / "preprocessor_config.json").unlink()
    assert video_settings(tmp_path) == {"image_mean": [0.1, 0.2, 0.3]}


def test_bounds_of_a_whole_video_are_those_of_its_first_picture() -> None:
    said = {"size": {"shortest_edge": 4096, "longest_edge": 25165824}}
    assert PATCH_BOUNDS["qwen3_vl"].of(said, 2) == (2048, 12582912)
    assert PATCH_BOUNDS["qwen2_5_vl"].of(said, 2) == (4096, 25165824)
    assert PATCH_BOUNDS["qwen2_vl"].of(said | {"max_pixels": 7}, 2) == (4096, 7)
    assert PATCH_BOUNDS["qwen2_vl"].of({}, 2) == (128 * 28 * 28, 768 * 28 * 28)
