"""Tokens are drawn as the parameters define it."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from mosaic_edge import Engine, MemoryCapError
from mosaic_edge.models.generation import sampling_said
from mosaic_edge.reply import reply_document
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


def test_numbers_of_any_kind_that_are_whole_or_real_draw_as_their_floats() -> None:
    def draw(temperature: Any, top_p: Any, top_k: Any) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k))
        return [sampler.next(LOGITS) for _ in range(60)]

    assert draw(Fraction(1, 2), Fraction(3, 4), np.uint8(3)) == draw(0.5, 0.75, 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_model_that_gives_no_numbers_is_named_where_one_is_drawn(bad: float) -> None:
    with pytest.raises(ValueError, match="logits: "), np.errstate(invalid="ignore"):
        Sampler(SamplingParams(temperature=1.0)).next(np.array([0.0, bad, 1.0], np.float32))


@pytest.mark.parametrize(
    "bad",
    [
        {"max_tokens": 0}, {"temperature": -0.1}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1},
        {"repetition_penalty": 0}, {"repetition_penalty": -1.0},
    ],
    ids=str,
)  # fmt: skip
def test_a_bad_parameter_is_named(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        SamplingParams(**bad)


@pytest.mark.parametrize("penalty", [1.05, 1.7, 0.8])
def test_a_repetition_penalty_is_the_librarys_over_prompt_and_answer(penalty: float) -> None:
    random = np.random.default_rng(8)
    theirs = transformers.RepetitionPenaltyLogitsProcessor(penalty)
    prompt = [3, 17, 3, 40]
    said, sampler = list(prompt), Sampler(SamplingParams(repetition_penalty=penalty), prompt)
    for _ in range(30):
        logits = random.standard_normal(50).astype(np.float32)
        scores = theirs(torch.tensor([said]), torch.from_numpy(logits.copy())[None])
        assert sampler.next(logits) == int(scores[0].argmax())
        said.append(int(scores[0].argmax()))


def test_a_generation_config_is_read_with_the_librarys_defaults() -> None:
    published = {"do_sample": True, "repetition_penalty": 1.05, "temperature": 1e-6, "eos_token_id": [1]}
    assert sampling_said(published) == {
        "repetition_penalty": 1.05, "temperature": 1e-6, "top_k": 50, "top_p": 1.0,
    }  # fmt: skip
    drawn = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8}
    assert sampling_said(drawn) == {"temperature": 0.7, "top_k": 20, "top_p": 0.8}
    greedy = {"do_sample": False, "temperature": 0.7, "repetition_penalty": 1.1}
    assert sampling_said(greedy) == {"repetition_penalty": 1.1}
    assert sampling_said({}) == {}
    assert SamplingParams(**sampling_said({"do_sample": True, "temperature": 0.0})).temperature > 0


def test_a_question_is_drawn_as_its_model_says_unless_it_is_told_otherwise() -> None:
    engine = Engine.load("mosaic-tiny")
    model: Any = engine.model
    model._spec = replace(engine.spec, eos_token_ids=(-1,), sampling={"temperature": 1e6, "seed": 3})
    assert SamplingParams.from_model(engine.spec, max_tokens=9) == SamplingParams(9, temperature=1e6, seed=3)
    assert SamplingParams().max_tokens == 256
    with engine.session(memory="8MiB", branch_tokens=300) as session:
        session.append(np.full((32, 32, 3), 90, np.uint8))
        question = "what colour was the ball ?"
        drawn, greedy = session.ask(question), session.ask(question, sampling=SamplingParams())
        assert (drawn.tokens, greedy.tokens) == (256, 256)
        assert drawn.text != greedy.text
        assert reply_document(question, greedy)["finish"] == "length"


def test_a_question_that_leaves_no_room_for_an_answer_is_refused() -> None:
    engine = Engine.load("mosaic-tiny")
    with engine.session(memory="8MiB", branch_tokens=16) as session:
        session.append(np.full((32, 32, 3), 90, np.uint8))
        template = len(engine.model.tokenize(engine.spec.template.replace("{question}", "")))
        fits, full = ("ball " * (n - template) for n in (15, 16))
        assert session.ask(fits).tokens <= 1
        with pytest.raises(MemoryCapError, match=r"16 tokens .* no room for an answer in branch_tokens=16"):
            session.ask(full)
        assert session.memory()["questions"] == 1
