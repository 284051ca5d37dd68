"""From the logits of the last token to the next token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SamplingParams:
    """How an answer is drawn."""

    max_tokens: int = 16
    """Most tokens of the answer, as far as the room of branch_tokens goes."""
    temperature: float = 0.0
    """0: the likeliest token each time."""
    top_k: int = 0
    """Draw among so many of the likeliest; 0: among all."""
    top_p: float = 1.0
    """Draw among the likeliest that make up this share; 1: among all."""
    seed: int = 0
    """Of the draws: the same seed, the same answer."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens}: expected at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}: expected 0 (greedy) or more")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k}: expected 0 (all) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: expected more than 0, at most 1")


class Sampler:
    """Draws tokens of one answer; keeps the generator between them."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._random = np.random.default_rng(params.seed)

    def next(self, logits: NDArray[np.float32]) -> int:
        """The next token id for logits [vocab]."""
        p = self._params
        if p.temperature == 0:
            return int(np.argmax(logits))
        scaled = logits.astype(np.float64) / p.temperature
        order = np.argsort(-scaled, kind="stable")
        if p.top_k:
            order = order[: p.top_k]
        weights = np.exp(scaled[order] - scaled[order[0]])
        weights /= weights.sum()
        if p.top_p < 1:  # the smallest set that reaches top_p, the most likely token always in it
            keep = int(np.searchsorted(np.cumsum(weights), p.top_p)) + 1
            order, weights = order[:keep], weights[:keep] / weights[:keep].sum()
        return int(self._random.choice(order, p=weights))
