"""Under published configuration files a checkpoint gives what a plain transformers script gives on the same
frames: `mosaic-edge check` is green, and closer than it asks for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from mosaic_edge.evaluation.check.clip import drawn
from mosaic_edge.evaluation.check.row import NAMES
from mosaic_edge.models.image_settings import image_settings
from published import SOURCES, Checked, checked, needs_published, our_pixels, write_published

pytestmark = needs_published
LEVEL = 1.0 / 255.0


@pytest.fixture(scope="module", params=SOURCES)
def compared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path, Checked]]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    kind = request.param
    folder = write_published(kind, tmp_path_factory.mktemp(kind))
    limit = ["--tokens-per-frame", "64"] if kind.startswith("qwen") else []
    out = tmp_path_factory.mktemp("out")
    yield kind, folder, checked(folder, out, "--dtype", "fp32", "--steps", "8", *limit)
    torch.set_num_threads(before)


def mixture(config: dict[str, Any]) -> None:
    """Qwen3-VL's own mixture of experts, with so few experts that a test can hold them."""
    config["model_type"] = "qwen3_vl_moe"
    config["architectures"] = ["Qwen3VLMoeForConditionalGeneration"]
    config["vision_config"]["model_type"] = "qwen3_vl_moe"
    config["text_config"].update(
        model_type="qwen3_vl_moe_text", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=96,
        decoder_sparse_step=1, norm_topk_prob=True, mlp_only_layers=[],
    )  # fmt: skip


def test_a_mixture_of_experts_is_as_in_the_script(tmp_path: Path) -> None:
    folder = write_published("qwen3_vl", tmp_path / "model", mixture)
    found = checked(folder, tmp_path, "--dtype", "fp32", "--steps", "8", "--tokens-per-frame", "64")
    assert {row["what"]: row["equal"] for row in found.said["rows"]} == dict.fromkeys(NAMES, True)
    assert found.row("logits")["difference"] < 1e-4


RED = {
    "4.57.": {
        "smolvlm": {"pixels", "features", "logits"},
        "llava_onevision": {"pixels", "features"},
    },
    "5.2.": {"smolvlm": {"pixels", "features", "logits"}, "idefics3_granite_docling": {"greedy tokens"}},
}
"""What differs under older versions. SmolVLM 2's video processor resizes by another filter than its image
processor (bicubic for Lanczos); LLaVA-OneVision's image processor resizes by Pillow, its video processor by
torchvision, which round otherwise. Idefics 3's generate() goes on from the second token otherwise than the
same model does without a cache."""
ROUNDED = {"4.57.": {"llava_onevision": {"logits"}}}
"""What follows from such pixels: equal by the command, and further off than this test asks for."""


def here(versions: Mapping[str, Mapping[str, set[str]]], kind: str) -> set[str]:
    """What of a table is said of a family under this version."""
    known = (found for version, found in versions.items() if transformers.__version__.startswith(version))
    return next(known, {}).get(kind, set())


def red(kind: str) -> set[str]:
    """What differs for a family under this version."""
    return here(RED, kind)


def test_the_command_is_green(compared: tuple[str, Path, Checked]) -> None:
    kind, _, found = compared
    green = {name: name not in red(kind) for name in NAMES}
    assert {row["what"]: row["equal"] for row in found.said["rows"]} == green
    assert (found.code, found.said["error"] is None) == (int(bool(red(kind))), not red(kind))
    # LLaVA 1.5 is full after seven frames, and a memory leaves room for the next one and the answer.
    assert found.said["frames"] == [5 if compared[0] == "llava" else 6, 140, 252]


def test_what_is_asked_and_shown_is_of_some_length(compared: tuple[str, Path, Checked]) -> None:
    words, sizes = (
        re.findall(r"\d+", compared[2].row(name)["detail"]) for name in ("prompt", "tokens a frame")
    )
    assert int(words[0]) >= 15
    assert sum(map(int, sizes[1:])) > 90 and len(sizes) == 1 + int(sizes[0])


def test_what_the_decoder_reads_and_gives_is_the_librarys_to_the_rounding_of_float32(
    compared: tuple[str, Path, Checked],
) -> None:
    kind, _, found = compared
    bounds = {"pixels": 1e-5, "features": 2e-5, "positions": 1e-4, "logits": 1e-4}
    over = {name for name, bound in bounds.items() if not found.row(name)["difference"] < bound}
    assert over == (red(kind) | here(ROUNDED, kind)) & set(bounds)
    if "greedy tokens" not in red(kind):
        assert found.row("greedy tokens")["detail"] == "8 tokens"


def test_pixels_without_torchvision_are_nearly_the_processors(compared: tuple[str, Path, Checked]) -> None:
    kind, folder, found = compared
    if kind == "smolvlm" and "pixels" in red(kind):
        pytest.skip("its video processor resizes by another filter")
    frames = drawn(*found.said["frames"]).frames
    ours = our_pixels(folder, frames, 64 if kind.startswith("qwen") else None)
    assert ours.size == found.pixels.size
    # Pillow rounds between its two passes otherwise: a level of 255 here and there, more where edges
    # overshoot.
    std = min(image_settings(folder)["image_std"])
    off = np.abs(found.pixels - ours.reshape(found.pixels.shape)) * std / LEVEL
    assert off.mean() < 0.1
    assert (off > 1.5).mean() < 5e-3
