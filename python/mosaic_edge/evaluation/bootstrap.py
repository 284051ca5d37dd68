"""A 95 % interval for a share of right answers whose questions come in clusters, one per stream."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def bootstrap_interval(
    streams: Sequence[Sequence[bool]], level: float = 0.95, rounds: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Bounds of the mean over all questions, by resampling streams and then the questions of each.

    Both stages are drawn because a few streams alone make the interval too narrow, and questions alone take
    answers from one stream for independent (Davison and Hinkley, Bootstrap Methods, section 3.8). The same
    input gives the same bounds. Raises ValueError without a question.
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level}: expected a share between 0 and 1")
    asked = [np.asarray(stream, np.float64) for stream in streams if len(stream)]
    if not asked:
        raise ValueError("bootstrap_interval: no question in any stream")
    random = np.random.default_rng(seed)
    right, total = np.zeros(rounds), np.zeros(rounds)
    for pick in random.integers(len(asked), size=(len(asked), rounds)):
        for index, stream in enumerate(asked):
            chosen = np.flatnonzero(pick == index)
            if len(chosen):
                right[chosen] += random.binomial(len(stream), stream.mean(), len(chosen))
                total[chosen] += len(stream)
    tail = 50 * (1 - level)
    low, high = np.percentile(right / total, [tail, 100 - tail])
    return float(low), float(high)
