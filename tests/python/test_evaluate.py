"""The evaluation counts right: caps, intervals, rows, resuming, and a vision tower that runs once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mosaic_edge.evaluate as evaluation
from mosaic_edge.bootstrap import bootstrap_interval
from mosaic_edge.commands.eval import markdown, run_eval
from mosaic_edge.engine import Engine
from mosaic_edge.evaluate import EvalSettings, evaluate, full_cache_bytes, parse_caps, smallest_full_cap
from mosaic_edge.replay import ReplayVlm, encode_stream, load_stream, question_plan, save_stream
from mosaic_edge.scoring import build_row
from mosaic_edge.world import VOCABULARY, World
from numpy_vlm import NumpyVlm

ROW = {
    "policy", "difficulty", "frames", "cap_share", "cap_bytes", "peak_bytes", "accuracy", "ci_low",
    "ci_high", "questions", "ttft_ms_p50", "ttft_ms_p95", "frame_ms_p50", "frame_ms_p99",
    "by_kind", "by_delay", "tokens",
}  # fmt: skip


class WorldVlm(NumpyVlm):
    """Takes every word of the world for one of its own few, and counts how often it looks."""

    looked = 0

    def tokenize(self, text: str) -> list[int]:
        return [VOCABULARY.index(word) % self.spec.vocab_size for word in text.split()]

    def encode_frame(self, frame: Any) -> Any:
        WorldVlm.looked += 1
        return super().encode_frame(frame)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """What the evaluation loads instead of mosaic-tiny."""
    engine = Engine(WorldVlm())
    monkeypatch.setattr(evaluation.Engine, "load", lambda *_, **__: engine)
    monkeypatch.setattr(evaluation, "fingerprint", lambda _: "fixed")
    WorldVlm.looked = 0
    return engine


def small(**changes: Any) -> EvalSettings:
    settings = {
        "policies": ("full", "mosaic", "window"),
        "caps": (4.0, 2.0),
        "frames": 90,
        "difficulties": ("plain",),
    }
    return EvalSettings(**{**settings, "questions": 12, **changes})


@pytest.mark.parametrize(
    ("text", "caps"),
    [("10%", (0.1,)), ("100%,25%,2.5%", (1.0, 0.25, 0.025)), (" 5 % , 5%", (0.05,)), ("200%", (2.0,))],
)
def test_caps_are_shares_in_percent(text: str, caps: tuple[float, ...]) -> None:
    assert parse_caps(text) == pytest.approx(caps)


@pytest.mark.parametrize("text", ["", "10", "0%", "-5%", "ten%", "10%,,5%", "10%%", "nan%", "5000%"])
def test_what_is_no_share_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="caps="):
        parse_caps(text)


def test_one_stream_gives_about_the_binomial_interval() -> None:
    low, high = bootstrap_interval([[True] * 150 + [False] * 50], rounds=8000)
    half = 1.96 * np.sqrt(0.75 * 0.25 / 200)
    assert low == pytest.approx(0.75 - half, abs=0.012)
    assert high == pytest.approx(0.75 + half, abs=0.012)


def test_streams_that_differ_widen_the_interval() -> None:
    mixed = bootstrap_interval([[True, False] * 50, [True, False] * 50, [True, False] * 50])
    apart = bootstrap_interval([[True] * 100, [True, False] * 50, [False] * 100])
    assert apart[1] - apart[0] > 2 * (mixed[1] - mixed[0])


def test_the_interval_holds_the_mean_repeats_and_has_sure_ends() -> None:
    random = np.random.default_rng(3)
    for _ in range(20):
        streams = [list(random.random(int(n)) < 0.7) for n in random.integers(1, 40, 3)]
        low, high = bootstrap_interval(streams)
        assert 0 <= low <= float(np.mean(np.concatenate(streams))) <= high <= 1
        assert bootstrap_interval(streams) == (low, high)
    assert bootstrap_interval([[True] * 5, []]) == (1.0, 1.0)
    assert bootstrap_interval([[False]]) == (0.0, 0.0)


@pytest.mark.parametrize("streams", [[], [[]], [[], []]])
def test_no_question_has_no_interval(streams: list[list[bool]]) -> None:
    with pytest.raises(ValueError, match="no question"):
        bootstrap_interval(streams)


def test_questions_are_spread_over_the_stream_and_half_of_them_come_last() -> None:
    plan = question_plan(World(7, 256), 256, 48)
    assert list(plan) == [63, 127, 191, 255]
    assert sum(len(asked) for asked in plan.values()) == 48
    assert len(plan[255]) >= 24
    for frame, asked in plan.items():
        for question in asked:
            assert question.evidence[1] <= frame
    assert plan == question_plan(World(7, 256), 256, 48)


def test_a_stream_survives_the_disk_and_is_replayed_as_it_was(tmp_path: Path) -> None:
    model = WorldVlm()
    stream = encode_stream(model, "plain", 7, 40, 6)
    again = load_stream(save_stream(stream, tmp_path))
    assert again.questions == stream.questions
    replay = ReplayVlm(model, again)
    for frame in (0, 1, 39):
        tokens, embedding = replay.encode_frame(ReplayVlm.ticket(frame))
        expected = model.encode_frame(World(7, 40).render(frame))
        assert np.array_equal(tokens, expected[0])
        assert np.array_equal(embedding, expected[1])
    with pytest.raises(ValueError, match="tickets"):
        replay.encode_frame(World(7, 40).render(0))


def test_a_ticket_holds_sixteen_million_frames() -> None:
    for frame in (0, 255, 256, 65_536, 2**24 - 1):
        r, g, b = (int(v) for v in ReplayVlm.ticket(frame)[0, 0])
        assert r << 16 | g << 8 | b == frame


def test_full_gets_the_least_cap_that_holds_the_stream() -> None:
    engine = Engine(NumpyVlm())
    cap = smallest_full_cap(engine, 90, threads=1)
    pages = 90 * engine.spec.layers  # four tokens a frame: a page each
    plan = engine.plan(memory=cap, policy="full", threads=1)
    assert sum(tier["pages"] for tier in plan["tiers"]) >= pages
    less = engine.plan(memory=cap - 8192, policy="full", threads=1)
    assert sum(tier["pages"] for tier in less["tiers"]) < pages


def test_rows_hold_what_the_table_needs_and_the_same_bytes_for_all(engine: Engine, tmp_path: Path) -> None:
    rows = evaluate(small(seeds=(7, 8)), tmp_path)
    assert [(r["policy"], r["cap_share"]) for r in rows] == [
        ("full", 1.0), ("mosaic", 4.0), ("mosaic", 2.0), ("window", 4.0), ("window", 2.0),
    ]  # fmt: skip
    for row in rows:
        assert set(row) >= ROW, row.get("error")
        assert row["questions"] == 24
        assert row["ci_low"] <= row["accuracy"] <= row["ci_high"]
        assert row["peak_bytes"] <= row["cap_bytes"]
        if row["policy"] != "full":
            assert row["cap_bytes"] == int(row["cap_share"] * full_cache_bytes(engine, 90))
        for groups in (row["by_kind"], row["by_delay"]):
            assert sum(group["questions"] for group in groups.values()) == 24
        assert row["tokens"]["seen"] == 2 * 90 * engine.spec.tokens_per_frame * engine.spec.layers
    assert json.loads(json.dumps(rows)) == rows
    assert WorldVlm.looked == 2 * 90


def test_a_cap_that_cannot_work_is_a_row_with_the_reason(engine: Engine, tmp_path: Path) -> None:
    row = evaluate(small(policies=("window",), caps=(0.0001,)), tmp_path)[0]
    assert "memory=" in row["error"]
    assert "accuracy" not in row
    assert "cannot run" in markdown([row], small(), 1)


def test_a_second_run_does_nothing_again_unless_forced(engine: Engine, tmp_path: Path) -> None:
    steps: list[int] = []
    first = evaluate(small(), tmp_path)
    looked = WorldVlm.looked
    assert evaluate(small(), tmp_path, progress=lambda done, *_: steps.append(done)) == first
    assert (WorldVlm.looked, steps) == (looked, [])
    evaluate(small(caps=(4.0, 2.0, 8.0)), tmp_path, progress=lambda done, *_: steps.append(done))
    assert len(steps) == 2 + 2 * 2  # two streams, and the new cap for two policies
    evaluate(small(), tmp_path, force=True)
    assert WorldVlm.looked == 3 * looked


def test_an_interrupted_run_is_taken_up_again(engine: Engine, tmp_path: Path) -> None:
    evaluate(small(), tmp_path)
    book = tmp_path / "cells.jsonl"
    lines = book.read_text().splitlines(keepends=True)
    book.write_text("".join(lines[:3]) + lines[3][:50])
    steps: list[str] = []
    evaluate(small(), tmp_path, progress=lambda done, total, what: steps.append(what))
    assert len([step for step in steps if step != "streams"]) == len(lines) - 3
    assert len(book.read_text().splitlines()) == len(lines)


def test_right_is_the_first_word(engine: Engine, tmp_path: Path) -> None:
    base = {"policy": "window", "difficulty": "plain", "cap_share": 0.1, "cap_bytes": 10}
    memory = {"tokens": {"seen": 3}, "events": {}, "disk": {}, "tiers": [], "peak_bytes": 9}

    def answer(right: bool, kind: str, delay: float) -> dict[str, Any]:
        return {"right": right, "kind": kind, "delay": delay, "ttft_ms": 2.0, "evidence_read": not right}

    cells = [
        {**base, "seed": 1, "memory": memory, "frame_ms": [1.0, 3.0],
         "answers": [answer(True, "colour", 5), answer(False, "room", 200)]},
        {**base, "seed": 2, "memory": memory, "frame_ms": [2.0], "answers": [answer(True, "room", 400)]},
    ]  # fmt: skip
    row = build_row(cells, 7)
    assert row["accuracy"] == pytest.approx(2 / 3)
    assert row["by_kind"] == {
        "colour": {"accuracy": 1.0, "questions": 1},
        "room": {"accuracy": 0.5, "questions": 2},
    }
    assert {name: group["questions"] for name, group in row["by_delay"].items()} == {
        "0-30 s": 1, "120-300 s": 1, "over 300 s": 1,
    }  # fmt: skip
    assert row["frame_ms_p50"] == 2.0
    assert row["tokens"] == {"seen": 6}
    assert row["evidence_recall"] == pytest.approx(1 / 3)


def test_files_are_written_with_a_table_and_a_plot(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_eval(small(), tmp_path / "deep" / "folder", jobs=1, force=False, quiet=True)
    out = tmp_path / "deep" / "folder"
    assert json.loads((out / "eval.json").read_text())["rows"] == result["rows"]
    assert (out / "eval.md").read_text().count("| plain |") == len(result["rows"])
    assert capsys.readouterr().out == ""
    pytest.importorskip("matplotlib")
    assert (out / "accuracy.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "bad",
    [
        {"policies": ("nope",)},
        {"frames": 3},
        {"questions": 0},
        {"seeds": ()},
        {"difficulties": ("hard",)},
        {"disk": "x"},
    ],
    ids=str,
)
def test_a_bad_setting_is_refused_before_anything_runs(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        small(**bad)
