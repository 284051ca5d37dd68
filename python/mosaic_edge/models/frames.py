"""From a decoded frame to what a vision encoder takes: resize, scale, normalise, and for Qwen-VL flat
patches.

What a model wants stands in preprocessor_config.json. A model trained here says its image_size in mosaic.json
and saw frames resized by area.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mosaic_edge.models.patch_bounds import PATCH_BOUNDS, PatchBounds
from mosaic_edge.models.resample import resize_pillow
from mosaic_edge.models.vlm import FloatArray, FrameArray, ModelError

Triple = tuple[float, float, float]
_MOST_ASPECT = 200
_MOST_SIDE = 4096
"""Of a picture that is brought to a longest edge."""
_STILL = PatchBounds(56 * 56, 28 * 28 * 1280)
"""Of a family that is not known: what Qwen2-VL allows a still image."""
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True)
class FrameRules:
    """How pixels are resized and normalised: (x * rescale - mean) / std, RGB."""

    mean: Triple
    std: Triple
    rescale: float = 1.0 / 255.0
    resample: int | None = None
    """Pillow's filter number; None: the mean over each pixel's area."""
    resize: bool = True
    shortest_edge: int = 0
    """If set, the shorter side becomes this and the encoder's size is cut from the middle (CLIP)."""
    longest_edge: int = 0
    """If set, the longer side becomes this, and the picture the encoder's square then (Idefics 3,
    SmolVLM)."""

    @classmethod
    def read(cls, mosaic: Mapping[str, Any], images: Mapping[str, Any]) -> FrameRules:
        """From mosaic.json and preprocessor_config.json, each possibly empty. ModelError for odd values."""
        said = {**images, **mosaic}
        resample = None if "image_size" in mosaic else images.get("resample", 3)
        if resample not in (None, 1, 2, 3, 4):
            raise ModelError(
                f"preprocessor_config.json: resample={resample}; "
                "there are 1 lanczos, 2 bilinear, 3 bicubic, 4 box"
            )
        plain = images.get("do_normalize", True) is False and "image_mean" not in mosaic
        rescale = 1.0 if images.get("do_rescale") is False else float(images.get("rescale_factor") or 1 / 255)
        size = images.get("size")
        short = (
            size if isinstance(size, int) else size.get("shortest_edge", 0) if isinstance(size, dict) else 0
        )
        cropped = images.get("do_center_crop", False) and resample is not None
        longest = size.get("longest_edge") if isinstance(size, dict) and resample is not None else None
        return cls(
            mean=(0.0, 0.0, 0.0) if plain else triple(said.get("image_mean", 0.5)),
            std=(1.0, 1.0, 1.0) if plain else triple(said.get("image_std", 0.5)),
            rescale=rescale,
            resample=resample,
            resize=images.get("do_resize", True) is not False,
            shortest_edge=int(short) if cropped else 0,
            longest_edge=min(int(longest or 0), _MOST_SIDE) if "max_image_size" in images else 0,
        )

    def image(self, frame: FrameArray, height: int, width: int) -> FloatArray:
        """RGB uint8 [H, W, 3] -> float32 [1, 3, height, width], normalised."""
        return normalise(self._sized(check_frame(frame), height, width), self.mean, self.std, self.rescale)

    def _sized(self, frame: FrameArray, height: int, width: int) -> NDArray[Any]:
        if frame.shape[:2] == (height, width) and not self.longest_edge:
            return frame
        if not self.resize:
            raise ValueError(
                f"frame: expected {height} x {width} pixels, got {frame.shape[0]} x {frame.shape[1]}; "
                "preprocessor_config.json says do_resize false"
            )
        if self.resample is None:
            return resize_area(frame, height, width)
        if self.longest_edge:
            tall, wide = _lengthened(frame.shape[0], frame.shape[1], self.longest_edge)
            frame = resize_pillow(frame, tall, wide, self.resample)
        if not self.shortest_edge:
            return resize_pillow(frame, height, width, self.resample)
        short = min(frame.shape[:2])
        tall, wide = (max(1, self.shortest_edge * side // short) for side in frame.shape[:2])
        if tall < height or wide < width:
            raise ValueError(
                f"frame: {tall} x {wide} after resizing, too small to cut {height} x {width} from"
            )
        top, left = (tall - height) // 2, (wide - width) // 2
        return resize_pillow(frame, tall, wide, self.resample)[top : top + height, left : left + width]


@dataclass(frozen=True)
class PatchRules:
    """Frames as Qwen-VL's flat patches: any aspect, sides in multiples of patch * merge, pixels within
    bounds.
    """

    frame: FrameRules
    patch: int
    merge: int
    temporal: int
    min_pixels: int
    max_pixels: int

    @classmethod
    def read(
        cls, frame: FrameRules, images: Mapping[str, Any], videos: Mapping[str, Any], family: str = ""
    ) -> PatchRules:
        """As the processor itself bounds a picture: sizes of a patch as images have them, bounds of a picture
        as videos of this family do."""
        patch, merge = int(images.get("patch_size", 14)), int(images.get("merge_size", 2))
        side = patch * merge
        temporal = int(images.get("temporal_patch_size", 2))
        least, most = PATCH_BOUNDS.get(family, _STILL).of(videos, temporal)
        if most < side * side:
            raise ModelError(
                f"preprocessor_config.json: max_pixels={most} is less than one token ({side} x {side})"
            )
        if "image_mean" not in images:
            frame = FrameRules(*_CLIP, resample=3)
        return cls(frame, patch, merge, temporal, min(least, most), most)

    def within(self, most_tokens: int) -> PatchRules:
        """The same, with at most so many tokens a picture."""
        most = min(self.max_pixels, most_tokens * (self.patch * self.merge) ** 2)
        return replace(self, min_pixels=min(self.min_pixels, most), max_pixels=most)

    @property
    def width(self) -> int:
        """Numbers in a flat patch: 3 * T * P * P."""
        return 3 * self.temporal * self.patch * self.patch

    @property
    def most_tokens(self) -> int:
        """Tokens of the largest frame."""
        return self.max_pixels // (self.patch * self.merge) ** 2

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens that a frame of height x width pixels becomes (Qwen2-VL's smart resize).

        ValueError for a frame longer than 200 times its breadth. Where that rule keeps a side of one token
        and so passes max_pixels, the other side is cut to what max_pixels allows.
        """
        if max(height, width) > _MOST_ASPECT * min(height, width):
            raise ValueError(
                f"frame: {height} x {width} pixels, expected an aspect of at most {_MOST_ASPECT} to 1"
            )
        side = self.patch * self.merge
        rows, columns = round(height / side), round(width / side)
        pixels = rows * columns * side * side
        if pixels > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            rows = max(1, math.floor(height / shrink / side))
            columns = max(1, math.floor(width / shrink / side))
        elif pixels < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            rows, columns = math.ceil(height * grow / side), math.ceil(width * grow / side)
        longest = self.most_tokens // min(rows, columns)
        return min(rows, longest), min(columns, longest)

    def patches(self, frame: FrameArray) -> tuple[FloatArray, NDArray[np.int64]]:
        """RGB uint8 [H, W, 3] or [T, H, W, 3] -> flat patches [N, 3 * T * P * P] and their grid [[1, rows,
        columns]] in patches.

        Patches of one token lie together; a frame alone fills all T moments of a patch.
        """
        check_frames(frame, self.temporal)
        rows, columns = self.grid(*frame.shape[-3:-1])
        merge, patch = self.merge, self.patch
        height, width = rows * merge * patch, columns * merge * patch
        frames = frame if frame.ndim == 4 else frame[None]
        pixels = np.concatenate([self.frame.image(one, height, width) for one in frames])
        split = pixels.reshape(len(frames), 3, rows, merge, patch, columns, merge, patch)
        split = split.transpose(2, 5, 3, 6, 1, 0, 4, 7)
        flat = np.broadcast_to(split, (*split.shape[:5], self.temporal, patch, patch)).reshape(-1, self.width)
        return np.ascontiguousarray(flat), np.array([[1, rows * merge, columns * merge]], np.int64)


def _lengthened(height: int, width: int, longest: int) -> tuple[int, int]:
    """The longer side as said, the other in proportion and even."""
    aspect = width / height
    other = int(longest / aspect if width >= height else longest * aspect)
    other = max(1, other + other % 2)
    return (other, longest) if width >= height else (longest, other)


def triple(value: Any) -> Triple:
    """One number or three -> three."""
    values = value if isinstance(value, list | tuple) else [value] * 3
    r, g, b = (float(v) for v in values)
    return r, g, b


def check_frame(frame: FrameArray) -> FrameArray:
    """Return `frame` if it is a non-empty uint8 [H, W, 3]; ValueError otherwise."""
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise ValueError(f"a frame must be uint8 [H, W, 3], got {frame.dtype} {list(frame.shape)}")
    return frame


def check_frames(frames: FrameArray, together: int) -> FrameArray:
    """Return `frames` if they are one frame as check_frame has it, or [together, H, W, 3]; ValueError
    otherwise."""
    if frames.ndim == 4 and len(frames) == together > 1:
        check_frame(frames[0])
        return frames
    return check_frame(frames)


def resize_area(frame: FrameArray, height: int, width: int) -> FloatArray:
    """Resize [H, W, 3] uint8 to [height, width, 3] float32 in 0..255.

    Each output pixel is the mean of the rectangle it covers, with border pixels weighted by the covered part:
    the anti-aliased choice when shrinking, a box when enlarging. The aspect ratio is not kept.
    """
    source_height, source_width, channels = frame.shape
    if (source_height, source_width) == (height, width):
        return frame.astype(np.float32)
    rows = _average(frame.reshape(source_height, source_width * channels), height)
    columns = np.ascontiguousarray(rows.reshape(height, source_width, channels).transpose(1, 0, 2))
    small = _average(columns.reshape(source_width, height * channels), width)
    return np.ascontiguousarray(small.reshape(width, height, channels).transpose(1, 0, 2))


def normalise(pixels: NDArray[Any], mean: Triple, std: Triple, rescale: float = 1.0 / 255.0) -> FloatArray:
    """[H, W, 3] in 0..255 to [1, 3, H, W]: (x * rescale - mean)/std, C-contiguous."""
    factor = np.float32(rescale) / np.asarray(std, np.float32)
    offset = np.asarray(mean, np.float32) / np.asarray(std, np.float32)
    return np.ascontiguousarray((pixels * factor - offset).transpose(2, 0, 1)[None], np.float32)


def _average(lines: NDArray[np.generic], count: int) -> FloatArray:
    """[n, m] -> [count, m]: line j is the mean of input lines j*n/count to (j+1)*n/count."""
    out = np.empty((count, lines.shape[1]), np.float32)
    for j, (first, weights) in enumerate(_bands(lines.shape[0], count)):
        band = lines[first : first + len(weights)].astype(np.float32)
        np.dot(weights, band, out=out[j])
    return out


@lru_cache(maxsize=32)
def _bands(source: int, count: int) -> tuple[tuple[int, FloatArray], ...]:
    """For every output line: the first input line it covers and the covered lines' weights."""
    bands = []
    for j in range(count):
        first, last = j * source // count, -(-(j + 1) * source // count)
        edges = np.arange(first, last + 1, dtype=np.float64)
        covered = np.clip(edges, j * source / count, (j + 1) * source / count)
        weights = np.diff(covered) * count / source
        bands.append((first, weights.astype(np.float32)))
    return tuple(bands)
