"""A session says when a question reads more than its model has positions for, and a plan what those are."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mosaic_edge import Engine
from mosaic_edge.sampling import SamplingParams
from numpy_vlm import NumpyVlm, picture

QUESTION = "what colour was the ball ?"
ONE = SamplingParams(max_tokens=1)


@pytest.fixture
def engine() -> Engine:
    """mosaic-tiny (16 tokens a frame), as if it had been trained on 128 positions."""
    made = Engine.load("mosaic-tiny")
    model: Any = made.model
    model._spec = replace(made.spec, context=128, video_window=0)
    return made


def watch(session: Any, frames: int) -> None:
    random = np.random.default_rng(3)
    for i in range(frames):
        session.append(random.integers(0, 255, (40, 40, 3), dtype=np.uint8), float(i))


def test_reading_past_the_context_is_said_once(engine: Engine) -> None:
    with engine.session(memory="8MiB", policy="full") as session:
        watch(session, 5)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            session.ask(QUESTION, sampling=ONE)
        watch_more = np.random.default_rng(4)
        for i in range(5, 12):
            session.append(watch_more.integers(0, 255, (40, 40, 3), dtype=np.uint8), float(i))
        with pytest.warns(UserWarning, match=r"reads \d+ tokens, but the model was trained on 128 positions"):
            session.ask(QUESTION, sampling=ONE)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            session.ask(QUESTION, sampling=ONE)


def test_a_long_stream_of_which_a_part_is_read_is_within_the_context(engine: Engine) -> None:
    with engine.session(memory="8MiB", policy="rekv", retrieve_tokens=32, window_frames=3) as session:
        watch(session, 20)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            session.ask(QUESTION, sampling=ONE)


def test_a_plan_says_context_and_tokens_of_a_picture(engine: Engine) -> None:
    plan = engine.plan(memory="8MiB")
    assert (plan["context"], plan["tokens_per_frame"], plan["native_tokens_per_frame"]) == (128, 16, 16)


def test_what_is_asked_of_nothing_behind_the_context_is_answered_as_before_the_first_frame() -> None:
    """The question reads no frame, so where it stands is no matter: positions it has not are not read."""
    model = NumpyVlm()
    model._spec = replace(model.spec, context=256)
    engine = Engine(model)
    with (
        engine.session(memory="1MiB", branch_tokens=32) as fresh,
        engine.session(memory="1MiB", branch_tokens=32) as session,
    ):
        wanted = fresh.ask(QUESTION, sampling=ONE).logits
        for number in range(120):
            session.append(picture(number), float(number))
        asked = session.ask(QUESTION, since=1e6, sampling=ONE)
        np.testing.assert_allclose(asked.logits, wanted, atol=1e-5)
