"""A vision encoder's graph, read by its signature: what one frame must become for it, and what it gives back.

pixel_values [B, 3, H, W]                        one picture (LLaVA, InternVL, mosaic-tiny)
pixel_values [B, N, 3, H, W] (+ bool mask)       pictures in a row (SmolVLM, Idefics3); a frame is one
pixel_values [B, N, 3, H, W], image_sizes [B, 2] tiles (LLaVA-NeXT); a frame is the smallest picture there is
pixel_values [N, C*T*P*P], image_grid_thw [n, 3] flat patches of any aspect (Qwen-VL)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnxruntime as ort

from mosaic_edge.models.frames import FrameRules, PatchRules
from mosaic_edge.models.onnx.pooling import POOLED, halved
from mosaic_edge.models.onnx.tiles import Tiles, size_of, tiles_of
from mosaic_edge.models.onnx.trial import TrialSession
from mosaic_edge.models.sandbox import OF_THE_MACHINE
from mosaic_edge.models.vlm import FloatArray, FrameArray, ModelError

FRAME_TOKENS = 256
"""Tokens a frame of a patch model has at most unless asked otherwise: a stream's frames are not single
images.
"""

TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True)
class PixelSettings:
    """What the JSON files of a model directory say of its pixels."""

    mosaic: Mapping[str, Any]
    images: Mapping[str, Any]
    videos: Mapping[str, Any]
    config: Mapping[str, Any]
    family: str = ""
    """model_type, where the files say one."""


class VisionGraph:
    """Runs the encoder on one picture. `tokens`, `grid` and `size` are those of the largest one."""

    def __init__(
        self,
        session: ort.InferenceSession | TrialSession,
        where: str,
        hidden: int,
        said: PixelSettings,
        most_tokens: int | Literal["native"] | None = None,
    ) -> None:
        """most_tokens: bound of tokens a picture, for graphs that take any aspect. ModelError names what is
        wrong.
        """
        self._session = session
        self._hidden = hidden
        self._pooled = said.family in POOLED
        self._pixels, self._mask, self._grid_input, self._sizes = _signature(session, where)
        self._tiles: Tiles | None = None
        self.rules = FrameRules.read(said.mosaic, said.images)
        self._patches: PatchRules | None = None
        self.temporal_patch_size = 1
        if len(self._pixels.shape) == 2:
            patches = _patch_rules(self.rules, said, most_tokens, self._pixels.shape, where)
            self._patches, self.native_tokens = patches
            self.temporal_patch_size = self._patches.temporal
            short = math.isqrt(self._patches.most_tokens)
            self.grid = (short, self._patches.most_tokens // short)
            self.tokens = self._patches.most_tokens
            side = self._patches.patch * self._patches.merge
            self.size = (self.grid[0] * side, self.grid[1] * side)
            embedding = self._try(side, where)
        else:
            if isinstance(most_tokens, int):
                raise ModelError(f"{where}: its frames have one size; tokens_per_frame= cannot change it")
            self.size = _image_size(said.mosaic, said.images, said.config, self._pixels.shape[-2:])
            if self._sizes is not None:
                self.rules = replace(self.rules, shortest_edge=0)  # the whole picture, not a crop of it
                self._tiles = tiles_of(self._run_tiles, *self.size, said.family, where)
            tokens, embedding = self.encode(np.zeros((*self.size, 3), np.uint8))
            self.tokens = self.native_tokens = len(tokens)
            whole = self._tiles is None or self._tiles.plain or self._pooled
            self.grid = _grid(said.mosaic, self.tokens) if whole else (1, self.tokens)
        if not np.isfinite(embedding).all():
            raise ModelError(f"{where}: NaN or infinity in what its weights make of a black frame")
        self.embedding_dim = len(embedding)

    def _try(self, side: int, where: str) -> FloatArray:
        """Run two by three tokens; the embedding. ModelError if the graph and preprocessor_config.json
        disagree.
        """
        assert self._patches is not None
        trial = np.zeros((2 * side, 3 * side, 3), np.uint8)
        rows, columns = self._patches.grid(*trial.shape[:2])
        try:
            tokens, embedding = self.encode(trial)
            if len(tokens) == rows * columns:
                return embedding
            count = f"gives {len(tokens)} tokens"
        except (ModelError, *OF_THE_MACHINE):
            raise
        except Exception as error:  # ONNX Runtime raises a different class for every cause
            count = f"cannot be run ({' '.join(str(error).split())[:200]})"
        raise ModelError(
            f"{where}: {count} for a grid of {rows} x {columns} tokens; preprocessor_config.json says "
            f"patch_size {self._patches.patch}, merge_size {self._patches.merge}"
        )

    def frame_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of a frame of height x width pixels."""
        return self._patches.grid(height, width) if self._patches else self.grid

    def encode(self, frame: FrameArray) -> tuple[FloatArray, FloatArray]:
        """RGB uint8 [H, W, 3], or [temporal_patch_size, H, W, 3] -> tokens [tokens, hidden], embedding of the
        whole picture [E]."""
        tokens, embedding = self._run(*self.pixels(frame))
        if self._pooled:
            own = tokens[list(self._tiles.rows)] if self._tiles else tokens
            tokens = halved(own)
        return tokens, tokens.mean(axis=0) if embedding is None else embedding

    def _run(self, pixels: FloatArray, feed: dict[str, np.ndarray]) -> tuple[FloatArray, FloatArray | None]:
        feed[self._pixels.name] = pixels.astype(TYPES[self._pixels.type], copy=False)
        values = self._session.run(None, feed)
        return self._features(dict(zip((o.name for o in self._session.get_outputs()), values, strict=True)))

    def _run_tiles(self, pixels: FloatArray, sizes: np.ndarray) -> FloatArray:
        """Of tiles [1, N, 3, H, W] and the size that is said of the picture, the tokens."""
        return self._run(pixels, {self._sizes.name: sizes.astype(TYPES[self._sizes.type])})[0]

    def pixels(self, frame: FrameArray) -> tuple[FloatArray, dict[str, np.ndarray]]:
        """What the encoder is given for a picture: its pixels, and its other inputs by name."""
        feed: dict[str, np.ndarray] = {}
        if self._patches:
            pixels, thw = self._patches.patches(frame)
            if self._grid_input is not None:
                feed[self._grid_input.name] = thw.astype(TYPES[self._grid_input.type], copy=False)
        else:
            pixels = self.rules.image(frame, *self.size)
            if self._tiles is not None:
                pixels = self._tiles.stacked(pixels)
                feed[self._sizes.name] = size_of(pixels).astype(TYPES[self._sizes.type])
            elif len(self._pixels.shape) == 5:
                pixels = pixels[None]
        if self._mask is not None:
            shape = (1, 1, *self.size)
            feed[self._mask.name] = np.ones(shape[-len(self._mask.shape) :], TYPES[self._mask.type])
        return pixels, feed

    def _features(self, named: dict[str, np.ndarray]) -> tuple[FloatArray, FloatArray | None]:
        """The frame's tokens, and its embedding where the encoder has an output [1, E] of it."""
        hidden = self._hidden
        embedding = named.pop("frame_embedding", None)
        wide = [v for v in named.values() if v.ndim >= 2 and v.shape[-1] == hidden]
        features = next((v for v in wide if v.shape[:1] != v.shape[:-1]), next(iter(wide), None))
        if features is None:
            shapes = ", ".join(f"{name} {list(v.shape)}" for name, v in named.items())
            raise ModelError(f"the vision encoder gives no features of width {hidden} (it gives: {shapes})")
        tokens = np.ascontiguousarray(features.reshape(-1, hidden), np.float32)
        if embedding is None:
            return tokens, None
        return tokens, np.ascontiguousarray(embedding.reshape(-1), np.float32)


def _signature(session: ort.InferenceSession | TrialSession, where: str) -> tuple[Any, Any, Any, Any]:
    """The inputs that take pixels, the pixel mask, the grid of patches, the size of a picture that is given
    in tiles (each or None)."""
    inputs = session.get_inputs()
    floats = [i for i in inputs if "float" in i.type and len(i.shape) in (2, 4, 5)]
    grids = [i for i in inputs if "int" in i.type and len(i.shape) == 2 and i.shape[1] in (3, "3")]
    sizes = [i for i in inputs if "int" in i.type and len(i.shape) == 2 and i.shape[1] in (2, "2")]
    masks = [i for i in inputs if i.type == "tensor(bool)" and 2 <= len(i.shape) <= 4]
    pixels = floats[0] if len(floats) == 1 else None
    flat, tiled = (pixels is not None and len(pixels.shape) == axes for axes in (2, 5))
    fits = (
        len(grids) == int(flat)
        and len(masks) <= int(not flat)
        and len(sizes) <= int(tiled and not masks)
        and len(inputs) == 1 + len(grids) + len(masks) + len(sizes)
    )
    if pixels is None or not fits:
        said = ", ".join(f"{i.name} {i.shape} {i.type}" for i in inputs)
        raise ModelError(
            f"{where}: expected pixels [B, 3, H, W], [B, N, 3, H, W] (alone, with a mask or with sizes "
            f"[B, 2]) or patches [N, *] with a grid [n, 3]; got {said}"
        )
    deep = [o.name for o in session.get_outputs() if "deepstack" in o.name]
    if deep:
        raise ModelError(f"{where}: gives {deep[0]}, which a decoder of one input cannot take")
    return pixels, (masks or [None])[0], (grids or [None])[0], (sizes or [None])[0]


def _patch_rules(
    rules: FrameRules,
    said: PixelSettings,
    most_tokens: int | Literal["native"] | None,
    shape: list[Any],
    where: str,
) -> tuple[PatchRules, int]:
    """How frames become patches, and how many tokens a picture would have at most if nothing was asked
    for."""
    if isinstance(most_tokens, int) and most_tokens < 1:
        raise ValueError(f"tokens_per_frame must be 1 or more, got {most_tokens}")
    native = PatchRules.read(rules, said.images, said.videos, said.family)
    asked = (
        FRAME_TOKENS
        if most_tokens is None
        else native.most_tokens
        if most_tokens == "native"
        else most_tokens
    )
    short = math.isqrt(asked)
    patches = native.within(asked // short * short)
    if isinstance(shape[1], int) and shape[1] != patches.width:
        raise ModelError(
            f"{where}: takes patches of {shape[1]} numbers; preprocessor_config.json gives 3 x "
            f"{patches.temporal} x {patches.patch} x {patches.patch} = {patches.width}"
        )
    return patches, native.most_tokens


def _image_size(
    mosaic: Mapping[str, Any], images: Mapping[str, Any], config: Mapping[str, Any], declared: list[Any]
) -> tuple[int, int]:
    """Height and width: as the encoder's input declares, else mosaic.json, preprocessor_config.json,
    config.json.
    """
    if all(isinstance(n, int) and n > 0 for n in declared):
        return int(declared[0]), int(declared[1])
    size = (
        mosaic.get("image_size")
        or images.get("crop_size")
        or images.get("max_image_size")
        or images.get("size")
        or config.get("vision_config", {}).get("image_size")
    )
    if isinstance(size, dict):
        square = size.get("shortest_edge") or size.get("longest_edge")
        size = [size["height"], size["width"]] if "height" in size else square
    if isinstance(size, int):
        return size, size
    if isinstance(size, list) and len(size) == 2:
        return int(size[0]), int(size[1])
    raise ModelError(
        "neither the vision encoder nor mosaic.json, preprocessor_config.json, config.json tells image_size"
    )


def _grid(mosaic: Mapping[str, Any], count: int) -> tuple[int, int]:
    """Rows and columns of `count` tokens: as mosaic.json says, else a square, else one row."""
    if int(mosaic.get("tokens_per_frame", count)) != count:
        raise ModelError(
            f"mosaic.json says {mosaic['tokens_per_frame']} tokens a frame, the vision encoder gives {count}"
        )
    side = math.isqrt(count)
    rows, columns = mosaic.get("grid", (side, side) if side * side == count else (1, count))
    if rows * columns != count:
        raise ModelError(f"mosaic.json says a grid of {rows} x {columns}, a frame has {count} tokens")
    return int(rows), int(columns)
