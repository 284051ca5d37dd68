"""Frames become the pixels and patches that the models' own image processors make."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic_edge.models.frames import FrameRules, PatchRules
from mosaic_edge.models.resample import resize_pillow
from mosaic_edge.models.vlm import ModelError

SIZES = [(6, 6), (5, 7), (13, 200), (97, 31), (64, 64), (111, 345), (480, 271), (700, 13)]


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth waves with a little noise, as a camera gives: uint8 [H, W, 3]."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (5 + 3 * c) + y / (7 + c)) for c in range(3)]
    noise = np.random.default_rng(seed).normal(0, 4, (height, width, 3))
    return np.clip(128 + 100 * np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.integers(1, 70)] * 4), st.integers(1, 4), st.integers(0, 99))
def test_resizing_an_axis_is_pillows_to_the_bit(sizes: tuple[int, ...], resample: int, seed: int) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is the oracle")
    height, width, tall, wide = sizes
    frame = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    want = image.fromarray(frame).resize((wide, height), resample).resize((wide, tall), resample)
    np.testing.assert_array_equal(resize_pillow(frame, tall, wide, resample), np.asarray(want))


def processor(family: str, name: str, **said: Any) -> Any:
    """transformers' image processor that resizes with Pillow; before 5.3 it is the one without a suffix."""
    pytest.importorskip("transformers", reason="its image processor is the oracle")
    models = "transformers.models"
    if importlib.util.find_spec(f"{models}.{family}.image_processing_pil_{family}") is not None:
        return getattr(
            importlib.import_module(f"{models}.{family}.image_processing_pil_{family}"), f"{name}Pil"
        )(**said)
    return getattr(importlib.import_module(f"{models}.{family}.image_processing_{family}"), name)(**said)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "said",
    [
        {},
        {"patch_size": 16, "min_pixels": 32 * 32, "max_pixels": 40 * 32 * 32},
        {"merge_size": 1, "temporal_patch_size": 1, "max_pixels": 70 * 14 * 14, "min_pixels": 14 * 14},
        {"min_pixels": 100 * 28 * 28, "max_pixels": 400 * 28 * 28, "image_mean": [0.5, 0.4, 0.3]},
        {"do_normalize": False},
        {"do_rescale": False, "image_mean": [9.0] * 3, "image_std": [60.0] * 3},
    ],
)
def test_flat_patches_are_those_of_the_image_processor(size: tuple[int, int], said: dict[str, Any]) -> None:
    theirs = processor("qwen2_vl", "Qwen2VLImageProcessor", **said)
    images = theirs.to_dict()
    rules = PatchRules.read(FrameRules.read({}, images), images, images)
    frame = picture(*size)
    patches, grid = rules.patches(frame)
    want = theirs(frame, return_tensors="np")
    np.testing.assert_array_equal(grid, want["image_grid_thw"])
    assert patches.shape == want["pixel_values"].shape and patches.dtype == np.float32
    # Pillow 13 starts with the axis that shrinks more: up to two grey levels, rarely.
    level = rules.frame.rescale / min(rules.frame.std)
    off = np.abs(patches - want["pixel_values"]) / level
    assert off.max() < 2.01 and (off > 0.01).mean() < 0.25
    rows, columns = rules.grid(*size)
    assert rows * columns * rules.merge**2 == len(patches)


@settings(max_examples=200, deadline=None)
@given(st.tuples(*[st.integers(1, 3000)] * 2), st.integers(1, 300), st.integers(1, 100))
def test_no_frame_has_more_tokens_than_allowed(size: tuple[int, int], most: int, least: int) -> None:
    images = {"min_pixels": least * 28 * 28, "max_pixels": 300 * 28 * 28}
    rules = PatchRules.read(FrameRules.read({}, images), images, images).within(most)
    if max(size) > 200 * min(size):
        with pytest.raises(ValueError, match=rf"frame: {size[0]} x {size[1]} pixels, expected an aspect"):
            rules.grid(*size)
        return
    rows, columns = rules.grid(*size)
    assert rows >= 1 and columns >= 1 and rows * columns <= most == rules.most_tokens


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("said", [{"do_normalize": False}, {"resample": 2}, {"image_std": [0.2, 0.3, 0.4]}])
def test_pictures_of_one_size_are_those_of_the_image_processor(
    size: tuple[int, int], said: dict[str, Any]
) -> None:
    theirs = processor("siglip", "SiglipImageProcessor", size={"height": 33, "width": 45}, **said)
    rules = FrameRules.read({}, theirs.to_dict())
    frame = picture(*size)
    got = rules.image(frame, 33, 45)
    off = np.abs(got - theirs(frame, return_tensors="np")["pixel_values"]) / (rules.rescale / min(rules.std))
    assert got.shape == (1, 3, 33, 45) and off.max() < 2.01 and (off > 0.01).mean() < 0.25


@pytest.mark.parametrize("size", [(57, 83), (200, 90), (31, 31), (64, 31)])
def test_a_centre_crop_is_that_of_the_image_processor(size: tuple[int, int]) -> None:
    crop = {"height": 29, "width": 29}
    theirs = processor("clip", "CLIPImageProcessor", size={"shortest_edge": 31}, crop_size=crop)
    rules = FrameRules.read({}, theirs.to_dict())
    assert rules.shortest_edge == 31
    frame = picture(*size)
    got = rules.image(frame, 29, 29)
    off = np.abs(got - theirs(frame, return_tensors="np")["pixel_values"]) / (rules.rescale / min(rules.std))
    assert off.max() < 2.01 and (off > 0.01).mean() < 0.25


@pytest.mark.parametrize("size", [(158, 211), (316, 333), (570, 400), (666, 1133)])
def test_a_crop_as_large_as_the_shortest_edge_fits_whatever_the_side(size: tuple[int, int]) -> None:
    theirs = processor(
        "clip", "CLIPImageProcessor", size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
    )
    frame = picture(*size)
    got = FrameRules.read({}, theirs.to_dict()).image(frame, 336, 336)
    want = theirs(frame, return_tensors="np")["pixel_values"]
    assert got.shape == want.shape == (1, 3, 336, 336)
    assert np.median(np.abs(got - want)) < 0.02


@pytest.mark.parametrize(
    ("size", "first"),
    [((57, 83), (86, 124)), ((200, 90), (124, 56)), ((31, 31), (124, 124)), ((1, 400), (1, 124))],
)
def test_a_picture_is_brought_to_its_longest_edge_before_it_is_squared(
    size: tuple[int, int], first: tuple[int, int]
) -> None:
    """As the processors of Idefics 3 and SmolVLM do, an axis at a time to the bit."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is the oracle")
    said = {
        "size": {"longest_edge": 124}, "max_image_size": {"longest_edge": 31}, "resample": 1,
        "image_mean": [0.0] * 3, "image_std": [1.0] * 3,
    }  # fmt: skip
    frame = picture(*size)
    want = image.fromarray(frame)
    for to in ((first[1], size[0]), (first[1], first[0]), (31, first[0]), (31, 31)):
        want = want.resize(to, 1)
    got = FrameRules.read({}, said).image(frame, 31, 31)[0].transpose(1, 2, 0)
    np.testing.assert_allclose(got * 255, np.asarray(want), atol=1e-3)


def test_odd_settings_are_refused_by_name() -> None:
    with pytest.raises(ModelError, match="resample=0; there are 1 lanczos"):
        FrameRules.read({}, {"resample": 0})
    with pytest.raises(ModelError, match=r"max_pixels=100 is less than one token \(28 x 28\)"):
        PatchRules.read(FrameRules.read({}, {}), {}, {"max_pixels": 100})
    with pytest.raises(ValueError, match=r"expected 8 x 9 pixels, got 5 x 7; .* do_resize false"):
        FrameRules.read({}, {"do_resize": False}).image(picture(5, 7), 8, 9)


def test_clips_first_form_of_a_size_is_the_shorter_side_and_the_rest_is_cut_away() -> None:
    said = {"do_center_crop": True, "resample": 3, "size": 24, "crop_size": 24, "image_mean": [0.5] * 3}
    frame = np.random.default_rng(2).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    processor = transformers.CLIPImageProcessor(**said, image_std=[0.5] * 3)
    theirs = processor(images=frame, return_tensors="np", input_data_format="channels_last")["pixel_values"]
    ours = FrameRules.read({}, said | {"image_std": [0.5] * 3}).image(frame, 24, 24)
    assert np.abs(ours - theirs).max() < 0.02
