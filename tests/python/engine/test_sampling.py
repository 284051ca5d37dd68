"""Tokens are drawn as the parameters define it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mosaic_edge.sampling import Sampler, SamplingParams

LOGITS = np.array([0.3, 2.0, -1.0, 1.5, 2.0, 0.0, -3.0], np.float32)


def frequencies(params: SamplingParams, logits: np.ndarray = LOGITS, draws: int = 6000) -> np.ndarray:
    sampler = Sampler(params)
    return np.bincount([sampler.next(logits) for _ in range(draws)], minlength=len(logits)) / draws


def expected(
    temperature: float, top_k: int = 0, top_p: float = 1.0, logits: np.ndarray = LOGITS
) -> np.ndarray:
    """Softmax of logits / temperature, of it the top_k best, of them the least set that reaches top_p."""
    scaled = logits.astype(np.float64) / temperature
    order = sorted(range(len(scaled)), key=lambda i: (-scaled[i], i))[: top_k or len(scaled)]
    weights = {i: float(np.exp(scaled[i] - scaled.max())) for i in order}
    total, kept, reached = sum(weights.values()), {}, 0.0
    for i in order:
        kept[i] = weights[i] / total
        reached += kept[i]
        if reached >= top_p:
            break
    out = np.zeros(len(scaled))
    for i, weight in kept.items():
        out[i] = weight / sum(kept.values())
    return out


def test_temperature_zero_takes_the_first_of_the_largest() -> None:
    assert Sampler(SamplingParams()).next(LOGITS) == 1


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1, 0, 1), (0.5, 0, 1), (3, 4, 1), (1, 0, 0.6), (2, 5, 0.9), (1, 1, 1), (1, 0, 1e-9)],
)
def test_frequencies_follow_the_definition(temperature: float, top_k: int, top_p: float) -> None:
    seen = frequencies(SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, seed=3))
    wanted = expected(temperature, top_k, top_p)
    assert np.all(seen[wanted == 0] == 0)
    assert np.abs(seen - wanted).max() < 0.025


def test_the_same_seed_draws_the_same_tokens_and_another_does_not() -> None:
    def draw(seed: int) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=2, seed=seed))
        return [sampler.next(LOGITS) for _ in range(60)]

    assert draw(1) == draw(1) != draw(2)


def test_huge_logits_do_not_overflow() -> None:
    seen = frequencies(SamplingParams(temperature=0.01), np.array([1e4, -1e4, 9.9e3], np.float32), draws=50)
    assert seen[0] == 1


@pytest.mark.parametrize(
    "bad", [{"max_tokens": 0}, {"temperature": -0.1}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}], ids=str
)
def test_a_bad_parameter_is_named(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        SamplingParams(**bad)
