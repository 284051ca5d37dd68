"""From the logits of the last token to the next token: greedy, or drawn as a model's generation_config.json
says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mosaic_edge.models.vlm import VlmSpec
from mosaic_edge.shown import shown

THINKING_TOKENS = 2048
"""Most tokens of an answer and the thought before it."""
_COLDEST, _HOTTEST = 1e-6, 1e6
"""Of temperatures and penalties: logits divided by less than this are no longer finite, by more all alike."""


@dataclass(frozen=True)
class SamplingParams:
    """How an answer is drawn."""

    max_tokens: int = 256
    """Most tokens of the answer, as far as the room of branch_tokens goes."""
    temperature: float = 0.0
    """0: the likeliest token each time."""
    top_k: int = 0
    """Draw among so many of the likeliest; 0: among all."""
    top_p: float = 1.0
    """Draw among the likeliest that make up this share; 1: among all."""
    repetition_penalty: float = 1.0
    """Logits of tokens that prompt or answer have already are divided by this (multiplied, below zero); 1:
    left alone."""
    seed: int = 0
    """Of the draws: the same seed, the same answer."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer, of which they are no part; a thought does not end by them."""

    def __post_init__(self) -> None:
        for name, least, expected in (("max_tokens", 1, "1"), ("top_k", 0, "0 (all)"), ("seed", 0, "0")):
            value = getattr(self, name)
            if (
                isinstance(value, bool)
                or not isinstance(value, Integral)
                or not least <= int(value) < 1 << 63
            ):
                raise ValueError(f"{name}={shown(value)}: expected a whole number, {expected} or more")
        for name, fits, expected in (
            (
                "temperature",
                lambda t: t == 0 or _COLDEST <= t <= _HOTTEST,
                f"0 (greedy), or {_COLDEST:g} to {_HOTTEST:g}",
            ),
            ("top_p", lambda p: 0 < p <= 1, "more than 0, at most 1"),
            ("repetition_penalty", lambda p: _COLDEST <= p <= _HOTTEST, f"{_COLDEST:g} to {_HOTTEST:g}"),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real) or not fits(_float(value)):
                raise ValueError(f"{name}={shown(value)}: expected {expected}")
        stop: Any = self.stop
        if not isinstance(stop, tuple | list) or not all(isinstance(s, str) and s for s in stop):
            raise ValueError(f"stop={shown(stop)}: expected texts, none of them empty")
        object.__setattr__(self, "stop", tuple(stop))

    @classmethod
    def from_model(cls, spec: VlmSpec, **changes: Any) -> SamplingParams:
        """As the model's makers have it drawn (generation_config.json), `changes` over that. `ask` takes this
        where it is given nothing; SamplingParams() is greedy. A model that thinks has THINKING_TOKENS."""
        most = {"max_tokens": THINKING_TOKENS} if spec.thinks else {}
        return cls(**{**most, **spec.sampling, **changes})


def _float(value: Real) -> float:
    """NaN for what no float is near."""
    try:
        return float(value)
    except OverflowError:
        return math.nan


class Sampler:
    """Draws tokens of one answer; keeps the generator between them."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int] = ()) -> None:
        """prompt: the token ids before the answer, which repetition_penalty counts as said."""
        self.params = params
        self._random = np.random.default_rng(params.seed)
        self._said = set(prompt)

    def next(self, logits: NDArray[np.float32]) -> int:
        """The next token id for logits [vocab]."""
        p = self.params
        if p.repetition_penalty != 1 and self._said:
            logits = self._penalised(logits)
        token = self._draw(logits)
        self._said.add(token)
        return token

    def _penalised(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        ids = np.fromiter(self._said, np.intp)
        ids = ids[ids < len(logits)]
        out = logits.copy()
        penalty = np.float32(self.params.repetition_penalty)
        out[ids] = np.where(out[ids] < 0, out[ids] * penalty, out[ids] / penalty)
        return out

    def _draw(self, logits: NDArray[np.float32]) -> int:
        p = self.params
        if p.temperature == 0:
            return int(np.argmax(logits))
        scaled = logits.astype(np.float64) / float(p.temperature)
        order = np.argsort(-scaled, kind="stable")
        if p.top_k:
            order = order[: int(p.top_k)]
        weights = np.exp(scaled[order] - scaled[order[0]])
        weights /= weights.sum()
        if not np.isfinite(weights).all():
            raise ValueError("logits: the model gives numbers that are not finite, of which nothing is drawn")
        if p.top_p < 1:  # the smallest set that reaches top_p, the most likely token always in it
            keep = int(np.searchsorted(np.cumsum(weights), float(p.top_p))) + 1
            order, weights = order[:keep], weights[:keep] / weights[:keep].sum()
        return int(self._random.choice(order, p=weights))
