"""The world is deterministic, its questions have one true answer, its video file plays back what was
rendered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mosaic_edge.world import (
    COLOURS,
    KINDS,
    ROOMS,
    SHAPES,
    VOCABULARY,
    Question,
    World,
    check_words,
    write_mp4,
)
from mosaic_edge.world.script import FADE, Sighting
from mosaic_edge.world.words import split_words

DIFFICULTIES = ("plain", "lively")


def answers_by_script(world: World, question: Question, at: float) -> set[str]:
    """All answers the event script allows, found the slow way from the words of the question."""
    words = split_words(question.text)
    seen = [s for v in world.script.visits_until(at) for s in v.sightings if s.t0 - FADE < at]

    def named(s: Sighting) -> bool:
        for options, value in ((SHAPES, s.shape), (COLOURS, s.colour), (ROOMS, s.room)):
            if any(w in options and w != value for w in words):
                return False
        return True

    members = [s for s in seen if named(s)]
    if question.kind == "now":
        if "room" in words:
            return {world.room_at(at)}
        shown = world.visible_at(at)
        return {s.colour if "colour" in words else s.shape for s in shown} or {"nothing"}
    if question.kind == "first":
        return {min(members, key=lambda s: s.t0).shape}
    if question.kind == "last":
        return {max(members, key=lambda s: min(s.t1, at)).shape}
    return {{"shape": s.shape, "room": s.room}.get(question.kind, s.colour) for s in members}


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_two_worlds_of_one_seed_are_the_same_whatever_was_asked_before(difficulty: str) -> None:
    a, b = World(5, 300, difficulty), World(5, 300, difficulty)  # type: ignore[arg-type]
    late = a.render(290.5)
    for t in (0.0, 17.25, 290.5):
        assert np.array_equal(a.render(t), b.render(t))
    assert np.array_equal(late, b.render(290.5))
    rng = np.random.default_rng
    assert a.questions(250, rng(1), 20) == b.questions(250, rng(1), 20)


def test_another_seed_is_another_world() -> None:
    assert not np.array_equal(World(1, 60).render(10), World(2, 60).render(10))


@pytest.mark.parametrize("size", [16, 48, 97, 192])
@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_a_frame_has_the_size_asked_for(difficulty: str, size: int) -> None:
    frame = World(3, 10, difficulty).render(1.5, size)  # type: ignore[arg-type]
    assert frame.shape == (size, size, 3) and frame.dtype == np.uint8


@pytest.mark.parametrize("at", [7, 33, 128, 511.5])
@pytest.mark.parametrize("seed", range(6))
def test_every_answer_is_true_and_the_only_one(seed: int, at: float) -> None:
    world = World(seed, 600, "lively")
    for q in world.questions(at, np.random.default_rng(seed), 200):
        assert answers_by_script(world, q, at) == {q.answer}, q
        check_words(f"{q.text} {q.answer}")
        assert len(split_words(q.answer)) == 1
        assert 0 <= q.evidence[0] <= q.evidence[1] <= at
        assert q.delay == pytest.approx(at - q.evidence[1])


@pytest.mark.parametrize("seed", range(4))
def test_the_evidence_shows_the_answer_to_one_frame_a_second(seed: int) -> None:
    world = World(seed, 600)
    for q in world.questions(512, np.random.default_rng(0), 200):
        if q.kind == "now":
            continue
        assert q.sightings[-1] == q.evidence
        assert list(q.sightings) == sorted(q.sightings)
        for start, end in q.sightings:
            moments = range(int(np.ceil(start)), int(end) + 1)
            assert moments
            for t in moments:
                assert any(q.answer in (s.shape, s.colour, s.room) for s in world.visible_at(t))


def test_on_a_long_stream_a_thing_is_seen_again() -> None:
    asked = World(7, 4000).questions(3999, np.random.default_rng(0), 60)
    assert max(len(q.sightings) for q in asked) > 3


def test_a_long_world_offers_many_questions_about_moments_far_back() -> None:
    far = [
        sum(q.delay > 128 for q in World(s, 600).questions(512, np.random.default_rng(0), 300))
        for s in range(5)
    ]
    assert min(far) >= 20


def test_all_kinds_are_asked_and_a_choice_of_kinds_is_kept() -> None:
    rng = np.random.default_rng(0)
    found = {q.kind for s in range(5) for q in World(s, 600).questions(300, rng, 100)}
    assert found == set(KINDS)
    assert {q.kind for q in World(0, 600).questions(300, rng, 30, kinds=["two_keys"])} == {"two_keys"}
    with pytest.raises(ValueError, match="known: colour shape room two_keys"):
        World(0, 600).questions(300, rng, 30, kinds=["smell"])


def test_the_script_has_repeats_returns_and_empty_stretches_and_at_most_two_objects() -> None:
    world = World(11, 3600)
    visits = world.script.visits_until(1200)
    assert len({v.room for v in visits}) == len(ROOMS) and len(visits) > len(ROOMS)
    counts = [len(world.visible_at(t)) for t in range(1200)]
    assert set(counts) == {0, 1, 2} and np.mean(np.array(counts) == 0) > 0.15
    dwell = [s.t1 - s.t0 for v in visits for s in v.sightings]
    assert 2 <= min(dwell) < 3 and 10 < max(dwell) <= 16


def test_hours_are_reached_without_drawing_a_frame() -> None:
    world = World(1, 5 * 3600)
    assert world.render(5 * 3600 - 1).shape == (48, 48, 3)


def test_an_unknown_word_is_named_with_the_words_that_are_known() -> None:
    check_words("What colour was the ball?")
    with pytest.raises(ValueError, match="unknown word 'zebra'; known words: what") as error:
        check_words("where was the zebra ?")
    assert all(word in str(error.value) for word in VOCABULARY)
    with pytest.raises(ValueError, match="question is empty"):
        check_words("  ")


def test_bad_settings_are_refused_with_what_was_expected() -> None:
    with pytest.raises(ValueError, match="expected 'plain' or 'lively'"):
        World(0, 10, "hard")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be positive"):
        World(0, 0)
    with pytest.raises(ValueError, match=r"outside this world of 10.0 s"):
        World(0, 10).render(10.5)


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_an_mp4_plays_back_what_was_rendered_at_its_time(tmp_path: Path, difficulty: str) -> None:
    av = pytest.importorskip("av")
    world, steps = World(4, 13, difficulty), []  # type: ignore[arg-type]
    path = write_mp4(
        tmp_path / "world.mp4",
        world,
        fps=5,
        size=96,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps[-1] == (65, 65)
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        frames = list(container.decode(video=0))
    assert len(frames) == 65
    for i in (0, 1, 33, 64):
        assert frames[i].time == pytest.approx(i / 5)
        there = frames[i].to_ndarray(format="rgb24").astype(float).reshape(48, 2, 48, 2, 3).mean((1, 3))
        assert np.abs(there - world.render(i / 5)).mean() < 12
