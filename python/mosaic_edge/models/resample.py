"""Resize a uint8 frame by a separable filter, to the bit as Pillow's antialiased 8-bit resize does each axis.

Image processors were written against Pillow, so a model has seen its filters, its borders and its rounding to
8 bits after each pass. The width goes first, as in torchvision and in Pillow up to 12 (13 starts with the
axis that shrinks more, which moves a pixel by a grey level here and there).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mosaic_edge.models.vlm import FrameArray

_BITS = 22  # fixed point: 32 bits less 8 of the pixel and 2 of headroom for filters that overshoot


def _box(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


def _bilinear(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cubic convolution of Keys with a = -0.5."""
    y = np.abs(x)
    near = (1.5 * y - 2.5) * y * y + 1
    far = -0.5 * (((y - 5) * y + 8) * y - 4)
    return np.where(y < 1, near, np.where(y < 2, far, 0.0))


def _lanczos(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


# `resample` of preprocessor_config.json -> filter, the half width of what it covers.
_FILTERS: dict[int, tuple[Callable[[NDArray[np.float64]], NDArray[np.float64]], float]] = {
    1: (_lanczos, 3.0),
    2: (_bilinear, 1.0),
    3: (_bicubic, 2.0),
    4: (_box, 0.5),
}


def resize_pillow(frame: FrameArray, height: int, width: int, resample: int) -> FrameArray:
    """Resize uint8 [H, W, C] to [height, width, C] by filter number `resample` (1 Lanczos, 2 bilinear,
    3 bicubic, 4 box). ValueError for another number.
    """
    if resample not in _FILTERS:
        raise ValueError(f"resample={resample}: there are 1 lanczos, 2 bilinear, 3 bicubic, 4 box")
    out = frame
    if width != frame.shape[1]:
        turned = _along_first(np.ascontiguousarray(out.transpose(1, 0, 2)), width, resample)
        out = np.ascontiguousarray(turned.transpose(1, 0, 2))
    if height != frame.shape[0]:
        out = _along_first(out, height, resample)
    return out


def _along_first(lines: FrameArray, count: int, resample: int) -> FrameArray:
    """[n, m, C] -> [count, m, C]: every output line is a weighted sum of a few input lines."""
    source = lines.shape[0]
    first, weights = _taps(source, count, resample)
    total = np.full((count, *lines.shape[1:]), 1 << (_BITS - 1), np.int32)
    wide = lines.astype(np.int32)
    for tap in range(weights.shape[1]):
        part = wide[np.minimum(first + tap, source - 1)]  # weights past a line's last tap are zero
        part *= weights[:, tap, None, None]
        total += part
    return np.clip(total >> _BITS, 0, 255).astype(np.uint8)


@lru_cache(maxsize=32)
def _taps(source: int, count: int, resample: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """For every output line: its first input line [count] and the fixed-point weights [count, taps]."""
    function, support = _FILTERS[resample]
    scale = source / count
    stretch = max(scale, 1.0)  # shrinking widens the filter: antialiasing
    centre = (np.arange(count) + 0.5) * scale
    first = np.maximum((centre - support * stretch + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support * stretch + 0.5).astype(np.int64), source)
    at = first[:, None] + np.arange(int((last - first).max()))
    weights = function((at - centre[:, None] + 0.5) / stretch) * (at < last[:, None])
    weights /= weights.sum(axis=1, keepdims=True)
    fixed = np.trunc(weights * (1 << _BITS) + np.where(weights < 0, -0.5, 0.5))
    return first, fixed.astype(np.int32)
