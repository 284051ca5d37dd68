"""Where two frames make one picture, a session holds the first until the second comes or a question does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mosaic_edge import Engine, MemoryCapError
from mosaic_edge.config import SessionConfig
from mosaic_edge.models.vlm import EncodedFrame
from mosaic_edge.sampling import SamplingParams

QUESTION = "what colour was the ball ?"
ONE = SamplingParams(max_tokens=1)


class Pairs:
    """mosaic-tiny as a model of two frames a picture: it looks at their mean, and notes what it was given."""

    def __init__(self, **changes: Any) -> None:
        self._model: Any = Engine.load("mosaic-tiny").model
        self.spec = replace(self._model.spec, temporal_patch_size=2, video_window=0, **changes)
        self.given: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def check(self, height: int, width: int) -> None:
        if width > 90:
            raise ValueError(f"a frame of {height} x {width} is too long")

    def encode(self, frame: Any, pts: float, elapsed: float, number: int) -> EncodedFrame:
        self.given.append((frame[:, 0, 0, 0].tolist(), pts, elapsed, number))
        return self._model.encode(frame.mean(axis=0).astype(np.uint8), pts, elapsed, number)  # type: ignore[no-any-return]


@pytest.fixture
def model() -> Iterator[Pairs]:
    yield Pairs()


def grey(level: int, height: int = 32, width: int = 32) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def test_two_frames_are_one_picture_of_both_and_a_question_ends_an_odd_one(model: Pairs) -> None:
    with Engine(model).session(memory="8MiB") as session:
        for i in range(5):
            session.append(grey(i), 10.0 + i)
        assert (session.memory()["frames"], session.memory()["held_frames"]) == (4, 1)
        assert model.given == [([0, 1], 10.5, 0.0, 0), ([2, 3], 12.5, 2.0, 1)]
        session.ask(QUESTION, sampling=ONE)
        assert model.given[2:] == [([4, 4], 14.0, 4.0, 2)]
        assert (session.memory()["frames"], session.memory()["held_frames"]) == (5, 0)
        session.append(grey(7), 20.0)
        session.ask(QUESTION, sampling=ONE)
        assert model.given[3:] == [([7, 7], 20.0, 10.0, 3)]
        session.check_invariants()


def test_a_held_frame_is_a_copy(model: Pairs) -> None:
    with Engine(model).session(memory="8MiB") as session:
        frame = grey(3)
        session.append(frame, 0.0)
        frame[:] = 9
        session.append(frame, 1.0)
    assert model.given[0][0] == [3, 9]


def test_a_frame_of_another_size_begins_a_picture(model: Pairs) -> None:
    with Engine(model).session(memory="8MiB") as session:
        session.append(grey(1), 0.0)
        session.append(grey(2, 40, 32), 1.0)
        session.append(grey(3, 40, 32), 2.0)
        assert [given[0] for given in model.given] == [[1, 1], [2, 3]]
        assert session.memory()["frames"] == 3


def test_a_frame_that_could_not_be_encoded_is_refused_at_once_and_changes_nothing(model: Pairs) -> None:
    with Engine(model).session(memory="8MiB") as session:
        session.append(grey(1), 0.0)
        with pytest.raises(ValueError, match="too long"):
            session.append(grey(2, 32, 200), 1.0)
        with pytest.raises(ValueError, match="pts must not fall"):
            session.append(grey(2), -1.0)
        session.append(grey(5), 1.0)
        assert model.given[0][0] == [1, 5]


def test_a_picture_that_is_refused_is_refused_whole_and_what_is_kept_answers_on(model: Pairs) -> None:
    with Engine(model).session(memory="400KiB", policy="full") as session:
        with pytest.raises(MemoryCapError):
            for i in range(400):
                session.append(grey(i % 200), float(i))
        held = session.memory()
        assert held["held_frames"] == 0 and held["frames"] % 2 == 0
        assert np.isfinite(session.ask(QUESTION, sampling=ONE).logits).all()
        session.check_invariants()


def test_evidence_spans_both_frames_of_a_picture(model: Pairs) -> None:
    with Engine(model).session(memory="8MiB") as session:
        for i in range(8):
            session.append(grey(30 * i), 0.5 * i)
        moments = session.ask(QUESTION, sampling=ONE).moments
    assert {(start, end) for start, end, _ in moments} == {(i, i + 0.5) for i in range(4)}


def test_absolute_time_stands_at_its_own_place_though_no_context_is_known() -> None:
    spec = replace(Pairs().spec, context=0, tokens_per_second=2.0)
    assert SessionConfig().core_memory(spec, 0)["positions"] == "original"
    assert SessionConfig(positions="contiguous").core_memory(spec, 0)["positions"] == "contiguous"
    assert SessionConfig().core_memory(replace(spec, tokens_per_second=0.0), 0)["positions"] == "auto"
