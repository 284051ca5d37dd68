"""Pictures that a program holds already, as frames."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable

import numpy as np
from numpy.typing import NDArray

from mosaic_edge.sources.frame_source import Frame


def frames_from_arrays(
    images: Iterable[NDArray[np.uint8]], fps: float, start: float = 0.0
) -> Generator[Frame, None, None]:
    """Frames from pictures a camera or a robot already holds.

    images: uint8 [H, W, 3] RGB each, `fps` of them a second, the first at `start` seconds. Nothing is copied.
    Raises ValueError, naming the frame, for another shape or type.
    """
    if not 0 < fps < math.inf:
        raise ValueError(f"fps: got {fps}, expected a positive number")
    for index, image in enumerate(images):
        array = isinstance(image, np.ndarray)
        if not array or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            got = f"{image.dtype} {list(image.shape)}" if array else type(image).__name__
            raise ValueError(f"frame {index}: got {got}, expected uint8 [H, W, 3]")
        yield Frame(image, start + index / fps, index)
