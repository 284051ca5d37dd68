"""What is shown and asked: a few frames of a file, or drawn ones."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from mosaic_edge.models.frames import resize_area
from mosaic_edge.models.vlm import FrameArray, VlmSpec
from mosaic_edge.sources import open_source

QUESTION = "What was on the table?"
_TOKEN_PIXELS = 28 * 28
"""Of a picture's token, in the smallest grid that there is of those that keep a frame's shape."""


@dataclass(frozen=True)
class Clip:
    """Frames of one size at a steady rate, and what is asked about them."""

    frames: FrameArray  # [T, H, W, 3]
    fps: float
    question: str = QUESTION

    @property
    def times(self) -> list[float]:
        """Seconds of each frame."""
        return [i / self.fps for i in range(len(self.frames))]


def drawn(frames: int = 6, height: int = 140, width: int = 252, fps: float = 2.0) -> Clip:
    """Coarse noise: frames differ after any resizing."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 255, (frames, -(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return Clip(coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width].copy(), fps)


def of_file(path: Path, frames: int, fps: float) -> Clip:
    """The first frames of a video file. SourceError where it cannot be opened, ValueError if it is empty."""
    with closing(open_source(path, fps)) as source:
        images = [frame.image for frame in islice(source, frames)]
    if not images:
        raise ValueError(f"{path}: no frame in it")
    return Clip(np.stack(images), fps)


def fitting(clip: Clip, spec: VlmSpec, answer: int) -> Clip:
    """As much of a clip as the model has positions for, and frames no larger than tokens_per_frame= leaves
    them: both sides are shown these."""
    most = (spec.context - answer) // spec.tokens_per_frame - 1 if spec.context else len(clip.frames)
    frames = clip.frames[: max(1, most)]
    room = 0.75 * spec.grid[0] * spec.grid[1] * _TOKEN_PIXELS
    height, width = frames.shape[1:3]
    if spec.native_tokens_per_frame > spec.tokens_per_frame and height * width > room:
        shrink = (room / (height * width)) ** 0.5
        size = max(1, int(height * shrink)), max(1, int(width * shrink))
        frames = np.stack([np.rint(resize_area(frame, *size)).astype(np.uint8) for frame in frames])
    return replace(clip, frames=frames)
