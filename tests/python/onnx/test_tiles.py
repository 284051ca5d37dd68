"""Encoders of tiles and image_sizes: a frame goes to them as the smallest picture they take, which is found
by running."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from mosaic_edge.models.frames import FrameRules
from mosaic_edge.models.onnx.pooling import halved
from mosaic_edge.models.onnx.tiles import tiles_of
from mosaic_edge.models.onnx.vision import PixelSettings, VisionGraph
from mosaic_edge.models.vlm import ModelError

HIDDEN, SIDE, PART = 7, 12, 4
"""A tile of 12 x 12 pixels is 3 x 3 tokens, each of a third of its numbers (12 x 4 pixels of a colour)."""
IMAGES = {
    "size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}, "do_center_crop": True,
    "resample": 3, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.25, 0.2, 0.5],
}  # fmt: skip
BREAK = np.random.default_rng(8).standard_normal((1, HIDDEN)).astype(np.float32)
WEIGHT = np.random.default_rng(9).standard_normal((3 * SIDE * SIDE // 9, HIDDEN)).astype(np.float32)

Nodes = Callable[[Callable[..., str]], list[str]]


def alone(node: Callable[..., str]) -> list[str]:
    """The picture, a break behind it: tokens are as many as image_sizes says (LLaVA-NeXT's base tile)."""
    return [node("Reshape", node("Gather", "rows", "base"), node("Concat", "nine", "-1", axis=0)), "break"]


def with_tiles(node: Callable[..., str]) -> list[str]:
    """Tiles, a break, the whole picture; there are as many tiles as image_sizes says (Phi-3-V)."""
    tiles = node("Reshape", node("Slice", "rows", "1", "99", "0"), node("Concat", "nine", "-1", axis=0))
    return [tiles, "break", node("Gather", "rows", "base")]


def encoder(path: Path, order: Nodes, tiles: Any = "tiles") -> VisionGraph:
    """rows [N, 9, HIDDEN] of N tiles; `order` puts them in a row of tokens."""
    nodes: list[onnx.NodeProto] = []

    def node(op: str, *inputs: str, **at: Any) -> str:
        nodes.append(helper.make_node(op, list(inputs), [f"x{len(nodes)}"], **at))
        return nodes[-1].output[0]

    def number(*values: int) -> np.ndarray:
        return np.array(values, np.int64)

    constants = {
        "part": number(0, 0, 9, -1), "weight": WEIGHT, "break": BREAK, "side": number(PART, PART),
        "-1": number(-1), "0": number(0), "1": number(1), "99": number(99), "base": np.array(0, np.int64),
    }  # fmt: skip
    patches = node("Reshape", "pixel_values", "part")  # [1, N, 9, numbers]
    made = node("MatMul", patches, "weight")
    nodes.append(helper.make_node("Squeeze", [made, "0"], ["rows"]))
    counts = node("Div", "image_sizes", "side")
    nodes.append(helper.make_node("ReduceProd", [counts], ["nine"], axes=[1], keepdims=0))
    nodes.append(helper.make_node("Concat", order(node), ["image_features"], axis=0))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "tiles",
        [
            value("pixel_values", TensorProto.FLOAT, ["n", tiles, 3, "h", "w"]),
            value("image_sizes", TensorProto.INT64, ["n", 2]),
        ],
        [value("image_features", TensorProto.FLOAT, ["tokens", HIDDEN])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path / "vision.onnx")
    return opened(path, "llava_next")


def opened(path: Path, family: str) -> VisionGraph:
    session = ort.InferenceSession(str(path / "vision.onnx"), providers=["CPUExecutionProvider"])
    return VisionGraph(session, "vision.onnx", HIDDEN, PixelSettings({}, IMAGES, {}, {}, family))


def frame() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 31, 3), np.uint8)


def picture() -> np.ndarray:
    """The tokens [9, HIDDEN] of the frame, squeezed whole into a tile."""
    rules = FrameRules((0.5, 0.4, 0.3), (0.25, 0.2, 0.5), resample=3)
    pixels = rules.image(frame(), SIDE, SIDE)
    return (pixels.reshape(9, -1).astype(np.float64) @ WEIGHT).astype(np.float32)


def test_a_frame_is_one_tile_where_the_encoder_takes_one(tmp_path: Path) -> None:
    vision = encoder(tmp_path, alone)
    tokens, embedding = vision.encode(frame())
    np.testing.assert_allclose(tokens, np.concatenate([picture(), BREAK]), atol=1e-4)
    np.testing.assert_allclose(embedding, tokens.mean(axis=0), atol=1e-6)
    assert (vision.tokens, vision.grid) == (10, (1, 10))


def test_a_frame_is_a_tile_and_the_whole_picture_where_the_encoder_takes_no_less(tmp_path: Path) -> None:
    vision = encoder(tmp_path, with_tiles)
    pixels, feed = vision.pixels(frame())
    assert pixels.shape == (1, 2, 3, SIDE, SIDE) and feed["image_sizes"].tolist() == [[SIDE, SIDE]]
    want = np.concatenate([picture(), BREAK, picture()])
    np.testing.assert_allclose(vision.encode(frame())[0], want, atol=1e-4)
    assert (vision.tokens, vision.grid) == (19, (1, 19))


def test_one_tile_and_nothing_else_is_a_square(tmp_path: Path) -> None:
    assert encoder(tmp_path, lambda node: alone(node)[:1]).grid == (3, 3)


def test_llava_onevision_pools_the_picture_without_what_stands_behind_it(tmp_path: Path) -> None:
    encoder(tmp_path, alone)
    vision = opened(tmp_path, "llava_onevision")
    np.testing.assert_allclose(vision.encode(frame())[0], halved(picture()), atol=1e-4)
    assert vision.grid == (2, 2)


def three_tiles(node: Callable[..., str]) -> list[str]:
    """Exported with a picture of two tiles behind the whole one."""
    return [node("Gather", "rows", "1"), node("Gather", "rows", node("Add", "1", "1"))]


def nothing_of_it(node: Callable[..., str]) -> list[str]:
    return ["break", node("Mul", node("Gather", "rows", "base"), node("Cast", "0", to=TensorProto.FLOAT))]


def mixed(node: Callable[..., str]) -> list[str]:
    """The sum of all tiles, which is a picture's only where there is one."""
    several = node("Slice", "rows", "1", "99", "0")
    return [node("Add", node("Gather", several, "base"), node("Gather", "rows", "base"))]


@pytest.mark.parametrize(
    ("order", "why"),
    [
        (three_tiles, "by number of tiles: 1: "),
        (nothing_of_it, "1: its tokens do not depend on pixels; 2: its tokens do not depend on pixels"),
        (mixed, "2: tiles do not make tokens of their own"),
    ],
)
def test_an_encoder_for_other_pictures_is_refused_with_what_came_of_each(
    tmp_path: Path, order: Nodes, why: str
) -> None:
    with pytest.raises(ModelError) as caught:
        encoder(tmp_path, order)
    said = str(caught.value)
    assert why in said and "\n" not in said
    assert (
        "a frame of 12 x 12 pixels cannot be given as one tile, nor as one behind the whole picture" in said
    )


@pytest.mark.parametrize("family", ["phi3_v", "phi3v"])
def test_a_family_that_pads_its_pictures_is_refused_by_name(tmp_path: Path, family: str) -> None:
    encoder(tmp_path, with_tiles)
    with pytest.raises(ModelError, match=f"{family} pads a picture to a square before it is cut"):
        opened(tmp_path, family)


def test_a_fixed_number_of_tiles_that_is_another_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"1: .*INVALID_ARGUMENT.* 2: .*INVALID_ARGUMENT"):
        encoder(tmp_path, alone, tiles=5)


@pytest.mark.parametrize(
    ("left", "why"),
    [("grows", "1: the same pixels make other tokens"), ("stays", "1: 9 of its 18 tokens are no")],
)
def test_tokens_that_are_left_of_another_run_are_no_pictures(left: str, why: str) -> None:
    """ONNX Runtime joins a part without numbers to others and leaves its place as the memory was."""
    runs = iter(range(99))

    def run(pixels: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        if pixels.shape[1] > 1:
            raise RuntimeError("one tile too many")
        made = pixels.reshape(9, -1) @ WEIGHT
        return np.concatenate([made, np.full_like(made, next(runs) if left == "grows" else 5.0)])

    with pytest.raises(ModelError, match=f"{why}.*; 2: one tile too many"):
        tiles_of(run, SIDE, SIDE, "llava_next", "vision.onnx")
