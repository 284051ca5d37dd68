"""A session takes frames in under its cap, answers from what it kept, and refuses bad input unchanged."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mosaic_edge
from mosaic_edge import _core
from mosaic_edge.config import SessionConfig, parse_bytes
from mosaic_edge.engine import Engine, Session
from mosaic_edge.models.vlm import FrameArray
from mosaic_edge.sampling import SamplingParams
from mosaic_edge.sources import SourceError
from mosaic_edge.world import World
from numpy_vlm import WORDS, NumpyVlm, picture
from videos import MakeVideo

QUESTION = "what colour was the ball ?"
OTHER = "what was in the kitchen ?"
SMALL = "400KiB"
"""Of a stream of a few hundred frames, a part."""

SHORT = SamplingParams(max_tokens=3)


def account(session: Session) -> dict[str, Any]:
    """What must not change when something is refused."""
    stats = session.memory()
    return {name: stats[name] for name in ("tokens", "events", "taken_bytes", "frames")}


def fill(session: Session, frames: int, first: int = 0) -> None:
    for number in range(first, first + frames):
        session.append(picture(number), float(number))


CAPPED = [name for name in _core.policies() if name != "full"]  # which refuses what does not fit


def open_session(**settings: Any) -> Session:
    return Engine(NumpyVlm()).session(**{"memory": "1MiB", "kernel_threads": 1, **settings})


@pytest.fixture
def session() -> Iterator[Session]:
    with open_session() as opened:
        fill(opened, 23)
        yield opened


@pytest.mark.parametrize("policy", _core.policies())
def test_an_answer_is_made_of_known_words_and_points_into_the_stream(policy: str) -> None:
    with open_session(policy=policy) as session:
        fill(session, 41)
        reply = session.ask(QUESTION, sampling=SHORT)
        assert reply.tokens == 3
        assert all(word in WORDS for word in reply.text.split())
        assert reply.evidence
        for moment in reply.evidence:
            assert 0 <= moment.start <= moment.end <= 40
            assert 0 < moment.score <= 1
        assert sum(moment.score for moment in reply.evidence) <= 1 + 1e-6
        assert reply.logits.shape == (len(WORDS),)
        assert 0 < reply.first_token_seconds <= reply.seconds
        session.check_invariants()


def test_a_question_before_the_first_frame_is_answered_from_nothing() -> None:
    with open_session() as session:
        assert session.ask(QUESTION, sampling=SHORT).evidence == ()


@pytest.mark.parametrize("policy", CAPPED)
def test_a_long_stream_stays_under_a_small_cap_and_every_token_is_accounted_for(policy: str) -> None:
    with open_session(policy=policy, memory=SMALL) as session:
        for number in range(700):
            session.append(picture(number), float(number))
            if number % 97 == 0:
                session.check_invariants()
                assert session.memory()["taken_bytes"] <= parse_bytes(SMALL)
        tokens = session.memory()["tokens"]
        spec = session._spec
        by_head = policy in ("infinipot-v", "edge")
        lanes = spec.layers * (spec.kv_heads if by_head else 1)
        assert tokens["seen"] == 700 * spec.tokens_per_frame * lanes
        assert sum(count for name, count in tokens.items() if name != "seen") == tokens["seen"]
        session.ask(QUESTION, sampling=SHORT)
        session.check_invariants()


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        [[1, 2], [3, 4]],
    ],
    ids=["floats", "grey", "four channels", "no rows", "a list"],
)
def test_a_bad_frame_is_refused_and_changes_nothing(session: Session, bad: FrameArray) -> None:
    before, answer = account(session), session.ask(QUESTION, sampling=SHORT).logits
    with pytest.raises(ValueError, match=r"frame: expected uint8 \[H, W, 3\], got"):
        session.append(bad)
    assert account(session) == before
    assert np.array_equal(session.ask(QUESTION, sampling=SHORT).logits, answer)


@pytest.mark.parametrize("pts", [21.5, -1.0, float("nan"), float("inf"), 1.1e9])
def test_falling_or_impossible_times_are_refused_and_change_nothing(session: Session, pts: float) -> None:
    before = account(session)
    with pytest.raises(ValueError, match=r"pts"):
        session.append(picture(23), pts)
    assert account(session) == before
    session.append(picture(23), 23.0)
    assert session.memory()["frames"] == 24


@pytest.mark.parametrize("start", [1_999_999.0, 1_790_000_000.0, -5e8])
def test_a_clock_that_starts_far_from_zero_is_followed_and_named_as_it_is(start: float) -> None:
    with open_session() as session, open_session() as plain:
        for number in range(12):
            session.append(picture(number), start + number)
            plain.append(picture(number), float(number))
        replies = [
            each.ask(QUESTION, since=since, sampling=SHORT)
            for each, since in ((session, start + 5), (plain, 5.0), (session, None), (plain, None))
        ]
        for far, near in (replies[:2], replies[2:]):
            assert np.array_equal(far.logits, near.logits)
            assert [(m.start - start, m.end - start) for m in far.evidence] == [
                (m.start, m.end) for m in near.evidence
            ]
        with pytest.raises(ValueError, match="pts"):
            session.append(picture(1), start + 1.1e9)
    with open_session() as session, pytest.raises(ValueError, match="pts=1e\\+300"):
        session.append(picture(1), 1e300)


def test_frames_without_times_follow_at_the_rate_of_the_stream() -> None:
    with open_session() as session:
        for number in range(5):
            session.append(picture(number))
        session.append(picture(5), 4.25)
        session.append(picture(6))
        with pytest.raises(ValueError, match="pts must not fall"):
            session.append(picture(7), 4.49)


@pytest.mark.parametrize("broken", ["nan", "raise"])
def test_a_model_that_breaks_down_in_a_frame_or_a_question_leaves_the_session_usable(broken: str) -> None:
    model = NumpyVlm()
    with Engine(model).session(memory="1MiB", kernel_threads=1) as session:
        fill(session, 23)
        before, answer = account(session), session.ask(QUESTION, sampling=SHORT).logits
        for action in (lambda: session.append(picture(23), 23.0), lambda: session.ask(QUESTION)):
            model.break_next = broken
            with pytest.raises((ValueError, RuntimeError)):
                action()
            assert account(session)["tokens"]["seen"] == before["tokens"]["seen"]
            assert account(session)["frames"] == before["frames"]
            session.check_invariants()
        assert np.allclose(session.ask(QUESTION, sampling=SHORT).logits, answer, atol=0.2)
        fill(session, 30, first=23)
        session.check_invariants()


def test_an_unknown_word_is_named_and_the_known_ones_are_listed(session: Session) -> None:
    before = account(session)
    with pytest.raises(ValueError, match=r"unknown word 'weather'; known words: .*kitchen"):
        session.ask("what was the weather ?")
    with pytest.raises(ValueError, match="no text"):
        session.ask("")
    assert account(session) == before


def test_a_question_longer_than_its_room_names_the_knob(session: Session) -> None:
    before = account(session)
    with pytest.raises(mosaic_edge.MemoryCapError, match="branch_tokens="):
        session.ask(" ".join(["ball"] * 600))
    assert account(session) == before
    session.ask(QUESTION, sampling=SHORT)


@pytest.mark.parametrize("policy", _core.policies())
def test_an_impossible_cap_names_the_knob(policy: str) -> None:
    engine = Engine(NumpyVlm())
    for attempt in (engine.session, engine.plan):
        with pytest.raises(mosaic_edge.MemoryCapError, match="memory="):
            attempt(memory="1KiB", policy=policy)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_the_plan_is_what_a_session_takes(threads: int) -> None:
    engine = Engine(NumpyVlm())
    plan = engine.plan(memory="8MiB", policy="mosaic", kernel_threads=threads)
    with engine.session(memory="8MiB", policy="mosaic", kernel_threads=threads) as session:
        assert session.memory()["taken_bytes"] == plan["total_bytes"] <= plan["cap_bytes"] == 8 << 20


@pytest.mark.parametrize(
    "settings",
    [{"policy": "nope"}, {"memory": "lots"}, {"memory": 0}, {"exact": "int3"}, {"positions": "sideways"},
     {"window_frames": 1}, {"policy_settings": {"nonsense": 1.0}}, {"index_share": 2.0},
     {"branch_tokens": -1}],
    ids=str,
)  # fmt: skip
def test_a_bad_setting_is_refused_in_one_line(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as error:
        open_session(**settings)
    assert "\n" not in str(error.value)


def test_full_refuses_the_frame_that_does_not_fit_and_still_answers() -> None:
    with open_session(policy="full", memory=SMALL) as session:
        with pytest.raises(mosaic_edge.MemoryCapError, match="memory="):
            fill(session, 2000)
        held = session.memory()["frames"]
        assert 4 < held < 2000
        before, answer = account(session), session.ask(QUESTION, sampling=SHORT).logits
        with pytest.raises(mosaic_edge.MemoryCapError):
            session.append(picture(held), float(held))
        assert account(session) == before
        assert np.array_equal(session.ask(QUESTION, sampling=SHORT).logits, answer)


@pytest.mark.parametrize("policy", ["mosaic", "full"])
def test_answers_do_not_depend_on_earlier_questions(policy: str) -> None:
    with open_session(policy=policy) as session:
        fill(session, 60)
        first = session.ask(QUESTION)
        other = session.ask(OTHER)
        again = session.ask(QUESTION)
        assert np.array_equal(first.logits, again.logits)
        assert (first.text, first.evidence) == (again.text, again.evidence)
        assert not np.array_equal(first.logits, other.logits)


def test_a_dialogue_is_remembered_and_its_room_is_bounded(session: Session) -> None:
    alone = session.ask(OTHER, sampling=SHORT).logits
    session.ask(QUESTION, dialogue=True, sampling=SHORT)
    after = session.ask(OTHER, sampling=SHORT).logits
    assert not np.array_equal(alone, after)
    peak = session.memory()["taken_bytes"]
    for _ in range(40):
        session.ask(QUESTION, dialogue=True, sampling=SHORT)
        session.check_invariants()
    assert session.memory()["taken_bytes"] == peak
    assert session.memory()["events"]["dropped_dialogue_tokens"] > 0


@pytest.mark.parametrize("policy", _core.policies())
def test_two_runs_are_identical(policy: str) -> None:
    def once() -> tuple[bytes, dict[str, Any], Any]:
        with open_session(policy=policy, memory="2MiB" if policy == "full" else SMALL) as session:
            fill(session, 150)
            reply = session.ask(QUESTION)
            return reply.logits.tobytes(), session.memory()["tokens"], reply.evidence

    assert once() == once()


def test_a_streamed_answer_is_the_answer(session: Session) -> None:
    whole = session.ask(QUESTION)
    stream = session.ask(QUESTION, stream=True)
    with pytest.raises(RuntimeError, match="not complete"):
        _ = stream.reply
    pieces = list(stream)
    assert len(pieces) == whole.tokens
    assert "".join(pieces) == whole.text == stream.reply.text


def test_a_streamed_answer_may_be_stopped_and_blocks_frames_until_then(session: Session) -> None:
    whole = session.ask(QUESTION)
    stream = session.ask(QUESTION, stream=True)
    next(iter(stream))
    with pytest.raises(ValueError, match="being streamed"):
        session.append(picture(23), 23.0)
    stream.close()
    session.check_invariants()
    assert np.array_equal(session.ask(QUESTION).logits, whole.logits)
    session.append(picture(23), 23.0)


def test_an_answer_may_be_drawn_and_ended_by_different_threads(session: Session) -> None:
    whole = session.ask(QUESTION)
    stream = session.ask(QUESTION, stream=True)
    pieces = iter(stream)
    first: list[str] = []
    thread = threading.Thread(target=lambda: first.append(next(pieces)))
    thread.start()
    thread.join()
    assert session.memory()["frames"] > 0
    assert "".join([*first, *pieces]) == whole.text
    session.append(picture(23), 23.0)


def test_closing_the_session_ends_a_streamed_answer_with_a_clear_error(session: Session) -> None:
    pieces = iter(session.ask(QUESTION, stream=True))
    next(pieces)
    session.close()
    with pytest.raises(ValueError, match="session is closed"):
        list(pieces)


def test_one_gap_in_time_changes_neither_the_default_time_nor_what_is_neighbouring(session: Session) -> None:
    session.append(picture(23), 600.0)
    session.append(picture(24))
    assert session._stream.last_pts == pytest.approx(601.0)


@pytest.mark.parametrize("since", [float("nan"), float("inf")])
def test_since_must_be_a_time(session: Session, since: float) -> None:
    with pytest.raises(ValueError, match="since"):
        session.ask(QUESTION, since=since)
    session.ask(QUESTION, since=1e12)  # later than anything seen: reads nothing, breaks nothing
    session.append(picture(23), 23.0)


def test_no_summary_reaches_back_behind_since() -> None:
    with open_session() as session:
        fill(session, 60)
        session.ask(QUESTION, since=40.0, sampling=SHORT)
        assert all(start >= 40.0 for start, _, _ in session._blocks.memory.evidence())


def test_since_reads_nothing_older(session: Session) -> None:
    for since in (0.0, 7.0, 15.5, 22.0):
        for moment in session.ask(QUESTION, since=since, sampling=SHORT).evidence:
            assert moment.start >= since
    assert not np.array_equal(session.ask(QUESTION, since=15.0).logits, session.ask(QUESTION).logits)


def test_a_closed_session_says_so_and_closes_twice() -> None:
    with open_session() as session:
        fill(session, 5)
    session.close()
    for action in (session.memory, lambda: session.append(picture(5)), lambda: session.ask(QUESTION)):
        with pytest.raises(ValueError, match="session is closed"):
            action()


def test_two_threads_take_turns() -> None:
    with open_session(memory=SMALL) as session:
        fill(session, 10)
        failures: list[BaseException] = []

        def guard(work: Any) -> None:
            try:
                work()
            except BaseException as error:
                failures.append(error)

        def ask() -> None:
            for _ in range(25):
                assert session.ask(QUESTION, sampling=SHORT).tokens == 3

        threads = [
            threading.Thread(target=guard, args=(work,))
            for work in (lambda: fill(session, 120, 10), ask, ask)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=120)
        assert not any(thread.is_alive() for thread in threads)
        assert not failures
        session.check_invariants()
        together = session.ask(QUESTION)
    with open_session(memory=SMALL) as alone:
        fill(alone, 130)
        assert np.array_equal(alone.ask(QUESTION).logits, together.logits)


def test_sessions_of_one_engine_do_not_see_each_other() -> None:
    engine = Engine(NumpyVlm())
    with (
        engine.session(memory="1MiB", kernel_threads=1) as a,
        engine.session(memory="1MiB", kernel_threads=1) as b,
    ):
        fill(a, 30)
        fill(b, 30, first=500)
        mixed = a.ask(QUESTION).logits
    with engine.session(memory="1MiB", kernel_threads=1) as a:
        fill(a, 30)
        assert np.array_equal(a.ask(QUESTION).logits, mixed)


def test_a_disk_tier_takes_what_does_not_fit(tmp_path: Path) -> None:
    summaries = {"unit": "summaries"}
    with open_session(
        memory="900KiB", disk="8MiB", spill_dir=str(tmp_path), policy_settings=summaries
    ) as session:
        fill(session, 500)
        tokens = session.memory()["tokens"]
        assert tokens["spilled"] > 0
        assert tokens["dropped"] == 0
        session.ask(QUESTION, sampling=SHORT)
        session.check_invariants()
        assert list(tmp_path.iterdir()) == []  # the spill file has no name


def test_a_video_file_streams_in(make_video: MakeVideo) -> None:
    times: list[float] = []
    with open_session() as session:
        count = session.append_video(
            make_video(times=[i / 10 for i in range(50)]), fps=2, progress=lambda pts, _: times.append(pts)
        )
        assert count == len(times) == session.memory()["frames"] == 10
        assert times == pytest.approx([i / 2 for i in range(10)])


def test_a_truncated_video_gives_what_decodes_and_then_one_error(
    make_video: MakeVideo, tmp_path: Path
) -> None:
    whole = make_video("whole.mkv", times=[i / 10 for i in range(60)])
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with open_session() as session:
        with pytest.raises(SourceError, match=r"cut\.mkv"):
            session.append_video(cut, fps=5)
        assert session.memory()["frames"] > 0
        session.ask(QUESTION, sampling=SHORT)


def test_mosaic_tiny_answers_four_of_five_questions_about_64_frames() -> None:
    engine = Engine.load("mosaic-tiny")
    right = asked = 0
    for difficulty in ("plain", "lively"):
        for seed in (31, 32):
            world = World(seed, 64, difficulty)  # type: ignore[arg-type]
            with engine.session(memory="8MiB", policy="full") as session:
                for second in range(64):
                    session.append(world.render(second), float(second))
                for question in world.questions(63, np.random.default_rng(seed), 24):
                    asked += 1
                    right += session.ask(question.text).text.split()[:1] == [question.answer]
    assert asked >= 60
    assert right >= 0.8 * asked, f"{right} of {asked}"


@pytest.mark.parametrize("fps", [0, -1.0, float("nan")])
def test_a_rate_that_is_none_is_refused_and_not_taken_for_the_default(
    make_video: MakeVideo, fps: float
) -> None:
    with Engine(NumpyVlm()).session(memory="2MiB") as session, pytest.raises(ValueError, match="fps"):
        session.append_video(make_video(), fps=fps)


def test_a_session_is_made_of_a_config_of_keywords_or_of_keywords_over_a_config() -> None:
    engine, config = Engine(NumpyVlm()), SessionConfig(memory="1MiB", policy="window", kernel_threads=1)
    for session in (
        engine.session(config),
        engine.session(memory="1MiB", policy="window", kernel_threads=1),
        engine.session(config=SessionConfig(memory="9MiB", policy="window", kernel_threads=1), memory="1MiB"),
    ):
        assert session.config == config
        session.close()
    assert engine.plan(config) == engine.plan(memory="1MiB", policy="window", kernel_threads=1)
    with pytest.raises(TypeError, match="nonsense"):
        engine.session(config, nonsense=1)  # type: ignore[call-arg]


def test_the_card_of_mosaic_tiny_bounds_what_edge_keeps_whatever_the_cap() -> None:
    engine = Engine.load("mosaic-tiny", threads=1)
    card = engine.spec.policy_settings["edge"]
    assert set(card) == {"unit", "most_tokens"}
    lanes = engine.spec.layers * engine.spec.kv_heads
    pages = {memory: engine.plan(memory=memory)["tiers"][0]["pages"] for memory in ("1MiB", "8MiB", "64MiB")}
    assert pages["8MiB"] == pages["64MiB"] == lanes * float(card["most_tokens"]) / 16 > pages["1MiB"]
