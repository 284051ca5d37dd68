"""What a family does to a frame's tokens behind its vision encoder, which exports leave out."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from mosaic_edge.models.vlm import FloatArray

POOLED = {"llava_onevision"}
"""Families, by model_type, that halve each side of a video's frame."""


def halved(tokens: FloatArray) -> FloatArray:
    """Tokens [n * n, D] of a square -> [m * m, D] with m = ceil(n / 2), bilinear, as torch interpolates;
    others as they are."""
    n = math.isqrt(len(tokens))
    if n * n != len(tokens):
        return tokens
    weights = _bilinear(n, -(-n // 2))
    square = tokens.reshape(n, n, -1)
    return np.einsum("ia,jb,abd->ijd", weights, weights, square, optimize=True).reshape(-1, tokens.shape[1])


@lru_cache(maxsize=8)
def _bilinear(n: int, m: int) -> FloatArray:
    """[m, n]: what each of m points takes of n, pixel centres aligned, edges kept."""
    weights = np.zeros((m, n), np.float32)
    for i in range(m):
        at = max((i + 0.5) * n / m - 0.5, 0.0)
        first = int(at)
        weights[i, first] += 1 - (at - first)
        weights[i, min(first + 1, n - 1)] += at - first
    return weights
