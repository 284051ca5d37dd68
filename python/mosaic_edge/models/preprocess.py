"""From a decoded frame to what a vision encoder takes: resize by area, scale, normalise."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mosaic_edge.models.vlm import FloatArray, FrameArray


def check_frame(frame: FrameArray) -> FrameArray:
    """Return `frame` if it is a non-empty uint8 [H, W, 3]; ValueError otherwise."""
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise ValueError(f"a frame must be uint8 [H, W, 3], got {frame.dtype} {list(frame.shape)}")
    return frame


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


def normalise(
    pixels: FloatArray, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> FloatArray:
    """[H, W, 3] in 0..255 to [1, 3, H, W]: (x/255 - mean)/std, C-contiguous."""
    factor = 1.0 / (255.0 * np.asarray(std, np.float32))
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
