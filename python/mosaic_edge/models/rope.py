"""Rotary facts read back from a graph: which theta, or which frequencies, made these cos and sin tables, all
of them checked."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_USUAL = (1e4, 1e5, 5e5, 1e6, 2e6, 5e6, 8e6, 1e7)
_CHECKED_ROWS = 4096


def recover_theta(cos: NDArray[np.floating], sin: NDArray[np.floating]) -> float:
    """The theta for which cos[p, i], sin[p, i] = cos, sin of p * theta^(-2i/d), with tables of [positions,
    d/2].

    Every entry of the first positions is verified: to 1e-5 in float32 (1e-3 in float16), plus what the
    rounding of p * frequency in float32 allows far out. Raises ValueError if no single theta explains the
    tables, as with scaled rotary embeddings (linear, yarn, llama3): see recover_frequencies().
    """
    if cos.ndim != 2 or cos.shape != sin.shape or cos.shape[0] < 2 or cos.shape[1] < 1:
        raise ValueError(
            f"rotary tables must be [positions >= 2, rotary_dim/2], got {cos.shape} and {sin.shape}"
        )
    rows, half = min(cos.shape[0], _CHECKED_ROWS), cos.shape[1]
    loose = 1e-3 if cos.dtype == np.float16 else 1e-5
    c, s = cos[:rows].astype(np.float64), sin[:rows].astype(np.float64)
    if half == 1:  # one frequency, always 1: any theta explains it
        candidates = [1e4]
    else:
        measured = _measure(c, s)
        candidates = [t for t in _USUAL if abs(np.log(t / measured)) < 0.01] + [
            float(round(measured)),
            measured,
        ]
    errors = []
    for theta in candidates:
        errors.append(_error(theta, c, s, loose))
        if errors[-1] <= 1.0:
            return theta
    raise ValueError(
        f"the rotary tables [{cos.shape[0]}, {half}] are not those of one theta "
        f"(best {candidates[int(np.argmin(errors))]:g}, off by {min(errors):.1f} times the tolerance): "
        "they are scaled, or damaged"
    )


def recover_frequencies(
    cos: NDArray[np.floating], sin: NDArray[np.floating]
) -> tuple[tuple[float, ...], float]:
    """The frequencies of tables that no single theta made (linear, yarn, llama3, longrope), and the factor
    that both tables carry (yarn's attention factor, else 1). Checked as recover_theta() does; ValueError if
    there are none.
    """
    rows, half = min(cos.shape[0], _CHECKED_ROWS), cos.shape[1]
    c, s = cos[:rows].astype(np.float64), sin[:rows].astype(np.float64)
    factor = float(np.hypot(c, s).mean())
    loose = 2e-3 if cos.dtype == np.float16 else 2e-5
    if abs(factor - 1) < loose:
        factor = 1.0
    c, s = c / factor, s / factor
    found = np.array([_follow(c[:, i], s[:, i]) for i in range(half)])
    angle = np.arange(rows)[:, None] * found
    off = np.maximum(np.abs(np.cos(angle) - c), np.abs(np.sin(angle) - s))
    if not (off <= loose + np.arange(rows)[:, None] * 2.5e-7).all():
        raise ValueError(
            f"the rotary tables [{cos.shape[0]}, {half}] do not turn evenly (off by {off.max():.2g}): "
            "they are no rotary embedding, or a damaged one"
        )
    return tuple(float(f) for f in found), factor


def _follow(c: NDArray[np.float64], s: NDArray[np.float64]) -> float:
    """A frequency, its phase followed to a far row by doubling from row 1."""
    frequency = float(np.arctan2(s[1], c[1]))
    p = 2
    while p < len(c):  # the estimate from row p/2 is precise enough to count the turns up to row p
        phase = float(np.arctan2(s[p], c[p]))
        turns = round((frequency * p - phase) / (2 * np.pi))
        frequency = (phase + turns * 2 * np.pi) / p
        p *= 2
    return frequency


def _measure(c: NDArray[np.float64], s: NDArray[np.float64]) -> float:
    """Theta from the frequency that tells it best, its phase followed to a far row by doubling from row 1."""
    half = c.shape[1]
    first = np.arctan2(s[1], c[1])
    i = int(np.argmax(np.arange(half) * first))  # d(angle)/d(log theta) is proportional to i * frequency
    frequency = _follow(c[:, i], s[:, i])
    return float(frequency ** (-half / i)) if frequency > 0 and i else 1.0


def _error(theta: float, c: NDArray[np.float64], s: NDArray[np.float64], loose: float) -> float:
    """Largest deviation over the tables, in units of what is tolerated at that position."""
    rows, half = c.shape
    positions = np.arange(rows, dtype=np.float64)[:, None]
    angle = positions * theta ** (-np.arange(half, dtype=np.float64) / half)
    off = np.maximum(np.abs(np.cos(angle) - c), np.abs(np.sin(angle) - s))
    return float((off / (loose + positions * 2.5e-7)).max())


def absolute_position(seconds: float, tokens_per_second: float) -> int:
    """Temporal position of a frame `seconds` after the video's first, as Qwen2.5-VL has it: rounded down.

    Times are differences of floats: what lies within a millionth below a whole position belongs to it. The
    frame stands at the end of the prefix + this; text behind the video at the largest of t, h, w + 1.
    """
    return int(np.floor(seconds * tokens_per_second + 1e-6))
