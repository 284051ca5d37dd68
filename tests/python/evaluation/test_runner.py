"""The evaluation counts right: intervals, rows, resuming, streams that are encoded once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mosaic_edge.evaluation.runner as evaluation
from mosaic_edge import _core
from mosaic_edge.cli.eval import run_eval
from mosaic_edge.config import SessionConfig
from mosaic_edge.engine import Engine
from mosaic_edge.evaluation.bootstrap import bootstrap_interval
from mosaic_edge.evaluation.cells import (
    full_cache_bytes,
    named_by_chance,
    retrieves,
    run_cell,
    smallest_full_cap,
)
from mosaic_edge.evaluation.plots import PLOTS, draw
from mosaic_edge.evaluation.recording import record_stream
from mosaic_edge.evaluation.replay import TRACE, ReplayVlm, load_stream, question_plan
from mosaic_edge.evaluation.report import markdown
from mosaic_edge.evaluation.runner import EvalSettings, evaluate
from mosaic_edge.evaluation.scoring import build_row, kl_divergence
from mosaic_edge.evaluation.variants import Cap, Cell, parse_caps, parse_policies, parse_variant
from mosaic_edge.sampling import SamplingParams
from mosaic_edge.world import VOCABULARY, World
from numpy_vlm import NumpyVlm

ROW = {
    "policy", "reference", "difficulty", "frames", "cap", "cap_share", "cap_bytes", "disk_bytes", "seeds",
    "taken_bytes", "accuracy", "ci_low", "ci_high", "questions", "first_token_ms_p50", "first_token_ms_p95",
    "first_token_ms_by_frames", "evidence_of_right", "evidence_by_chance",
    "frame_ms_p50", "frame_ms_p99", "evidence_recall", "retrieval_recall", "kl_to_full", "kl_to_full_p95",
    "order_independent", "by_kind", "by_delay", "tokens", "events", "disk", "tiers", "splits", "bytes_moved",
    "gib_per_hour_written", "memory_curve",
}  # fmt: skip


class WorldVlm(NumpyVlm):
    """Takes every word of the world for one of its own few, and counts how often it looks and thinks."""

    looked = decoded = 0

    def tokenize(self, text: str, plain: tuple[int, int] | None = None) -> list[int]:
        return [VOCABULARY.index(word) % self.spec.vocab_size for word in text.split()]

    def encode(self, frame: Any, pts: float, elapsed: float, number: int) -> Any:
        WorldVlm.looked += 1
        return super().encode(frame, pts, elapsed, number)

    def forward(self, embeds: Any, attend: Any, want_logits: bool = True) -> Any:
        WorldVlm.decoded += not want_logits
        return super().forward(embeds, attend, want_logits)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """What the evaluation loads instead of mosaic-tiny."""
    engine = Engine(WorldVlm())
    monkeypatch.setattr(evaluation.Engine, "load", lambda *_, **__: engine)
    monkeypatch.setattr(evaluation, "fingerprint", lambda _: "fixed")
    WorldVlm.looked = WorldVlm.decoded = 0
    return engine


def small(policies: str = "full,mosaic,window", caps: str = "400%,200%", **changes: Any) -> EvalSettings:
    settings = {"lengths": (90,), "difficulties": ("plain",), "questions": 12}
    return EvalSettings(
        **{**settings, "policies": parse_policies(policies), "caps": parse_caps(caps), **changes}
    )


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
    stream = load_stream(record_stream(Engine(model), "plain", 7, 40, 6, tmp_path))
    assert stream.questions == question_plan(World(7, 40), 40, 6)
    replay = ReplayVlm(model, stream)
    for frame in (0, 1, 39):
        made = replay.encode(ReplayVlm.ticket(frame), float(frame), float(frame), frame)
        expected = model.encode(World(7, 40).render(frame), float(frame), float(frame), frame)
        assert np.array_equal(made.tokens, expected.tokens)
        assert np.array_equal(made.embedding, expected.embedding)
        assert made.columns == expected.columns
    assert (stream.encode_ms > 0).all()
    assert (stream.decode_ms > 0).all()
    with pytest.raises(ValueError, match="tickets"):
        replay.encode(World(7, 40).render(0), 0.0, 0.0, 0)


def test_a_ticket_holds_sixteen_million_frames() -> None:
    for frame in (0, 255, 256, 65_536, 2**24 - 1):
        r, g, b = (int(v) for v in ReplayVlm.ticket(frame)[0, 0])
        assert r << 16 | g << 8 | b == frame


def compare_with_real(engine: Engine, folder: Path, policy: str, share: float, **more: Any) -> None:
    """A replayed cell answers as a session that sees the frames themselves, bit by bit in what it keeps."""
    frames = 70
    place = folder / f"plain-{frames}-7"
    if not place.exists():
        record_stream(engine, "plain", 7, frames, 12, folder)
    stream = load_stream(place)
    disk = more.pop("disk", 0)
    cell = Cell("plain", frames, parse_variant(policy), Cap(share=share), disk)
    row, logits = run_cell(engine, place, cell, more)
    assert logits is not None, row
    memory = {"memory": row["cap_bytes"], "policy": policy, "disk": disk or None, **more}
    as_recorded = engine.plan(**memory)["window_codec"] == SessionConfig(**more).exact
    assert row["traced"] == (bool(engine.spec.video_window) and as_recorded)
    told = iter(zip(row["answers"], logits, strict=True))
    world = World(7, frames)
    with engine.session(**memory) as session:
        for frame in range(frames):
            session.append(world.render(frame), float(frame))
            for question in stream.questions.get(frame, ()):
                words = len(engine.model.tokenize(question.answer))
                reply = session.ask(question.text, sampling=SamplingParams(max_tokens=words))
                answer, mine = next(told)
                assert reply.text == answer["said"]
                assert np.allclose(reply.logits, mine, atol=1e-5, rtol=0)
        stats = session.memory()
    assert stats["tokens"] == row["memory"]["tokens"]
    assert stats["clusters"] == row["memory"]["clusters"]
    assert [t["used_bytes"] for t in stats["tiers"]] == [t["used_bytes"] for t in row["memory"]["tiers"]]


@pytest.mark.parametrize("window", [4, 0])
@pytest.mark.parametrize("policy", _core.policies())
def test_a_replayed_cell_equals_a_real_session(policy: str, window: int, tmp_path: Path) -> None:
    engine = Engine(WorldVlm(video_window=window))
    share = 4.0 if policy == "mukv" else 2.0  # a segment of frames waits in its window
    compare_with_real(engine, tmp_path, policy, share)
    compare_with_real(engine, tmp_path, policy, share, exact="fp16", max_cluster_tokens=5)
    compare_with_real(engine, tmp_path, policy, share, window_codec="fp16")


def test_a_replayed_cell_equals_a_real_session_of_mosaic_tiny(tmp_path: Path) -> None:
    engine = Engine.load("mosaic-tiny", threads=1)
    compare_with_real(engine, tmp_path, "mosaic", 0.4)
    compare_with_real(engine, tmp_path, "mosaic", 0.6, disk=1 << 20)
    compare_with_real(engine, tmp_path, "uniform", 0.4)


def test_a_trace_is_of_one_kind_of_numbers_only(engine: Engine, tmp_path: Path) -> None:
    place = record_stream(engine, "plain", 7, 40, 6, tmp_path)
    stream = load_stream(place)
    assert {name: stream.trace[name].shape for name in TRACE} == {
        "q": (40, 3, 4, 4, 16), "k": (40, 3, 4, 2, 16), "v": (40, 3, 4, 2, 16),
    }  # fmt: skip
    decoded = WorldVlm.decoded
    for variant, runs in (
        ("mosaic", False),
        ("mosaic[exact=fp32]", True),
        ("mosaic[positions=original]", True),
    ):
        row, _ = run_cell(engine, place, Cell("plain", 40, parse_variant(variant), Cap(size=4 << 20)), {})
        assert (row["traced"], WorldVlm.decoded - decoded) == (not runs, 40 if runs else 0)
        decoded = WorldVlm.decoded


def test_full_gets_the_least_cap_that_holds_the_stream() -> None:
    engine = Engine(NumpyVlm())
    cap = smallest_full_cap(engine, 90, kernel_threads=1)
    pages = 90 * engine.spec.layers  # four tokens a frame: a page each
    plan = engine.plan(memory=cap, policy="full", kernel_threads=1)
    assert sum(tier["pages"] for tier in plan["tiers"]) >= pages
    less = engine.plan(memory=cap - 8192, policy="full", kernel_threads=1)
    assert sum(tier["pages"] for tier in less["tiers"]) < pages


def test_policies_that_retrieve_get_a_second_row_with_the_disk(engine: Engine, tmp_path: Path) -> None:
    reads = {
        name: retrieves(engine, parse_variant(name), {})
        for name in (
            "edge", "edge[unit=summaries]", "edge[unit=summaries;members=never]", "mosaic", "full", "window",
            "uniform",
        )
    }  # fmt: skip
    assert [name for name, reads_part in reads.items() if reads_part] == [
        "edge", "edge[unit=summaries]", "mosaic",
    ]  # fmt: skip
    rows = evaluate(small(caps="300%", disk="1MiB"), tmp_path)
    assert [(r["policy"], r["disk_bytes"]) for r in rows] == [
        ("full", 0), ("mosaic", 0), ("mosaic + disk", 1 << 20), ("window", 0),
    ]  # fmt: skip
    spilled = rows[2]
    assert spilled["bytes_moved"] >= spilled["disk"]["bytes_written"] > 0
    assert spilled["gib_per_hour_written"] == spilled["disk"]["bytes_written"] / 2**30 / (2 * 90 / 3600)
    assert [tier["medium"] for tier in spilled["tiers"]][-1] == "disk"
    assert all(row["bytes_moved"] == 0 for row in rows if not row["disk_bytes"])


def test_rows_hold_what_the_table_needs_and_the_same_bytes_for_all(engine: Engine, tmp_path: Path) -> None:
    session = {"window_codec": "fp16"}  # as it was recorded, so nothing is decoded again
    rows = evaluate(small(caps="400%,200KiB", seeds=(7, 8), session=session), tmp_path)
    assert [(r["policy"], r["cap"]) for r in rows] == [
        ("full", "100%"), ("mosaic", "400%"), ("mosaic", "200.0 KiB"), ("window", "400%"),
        ("window", "200.0 KiB"),
    ]  # fmt: skip
    whole = full_cache_bytes(engine, 90)
    for row in rows:
        assert set(row) >= ROW, row.get("error")
        assert row["questions"] == 24
        assert row["ci_low"] <= row["accuracy"] <= row["ci_high"]
        assert row["taken_bytes"] <= row["cap_bytes"]
        if not row["reference"]:
            assert row["cap_bytes"] == (4 * whole if row["cap"] == "400%" else 200 << 10)
            assert row["cap_share"] == pytest.approx(row["cap_bytes"] / whole)
        for groups in (row["by_kind"], row["by_delay"], row["first_token_ms_by_frames"]):
            assert sum(group["questions"] for group in groups.values()) == 24
        assert row["tokens"]["seen"] == 2 * 90 * engine.spec.tokens_per_frame * engine.spec.layers
        curve = row["memory_curve"]
        assert curve["seconds"][-1] == 89
        for used in curve["tiers"].values():
            assert len(used) == len(curve["seconds"]) == 64
        assert all(
            curve["fixed_bytes"] + sum(now) <= row["taken_bytes"]
            for now in zip(*curve["tiers"].values(), strict=True)
        )
    assert json.loads(json.dumps(rows)) == rows
    assert WorldVlm.looked == 2 * 90
    assert WorldVlm.decoded == 2 * 90


def test_logits_are_compared_with_full_where_full_is_there(engine: Engine, tmp_path: Path) -> None:
    full, _, window = evaluate(small(caps="150%"), tmp_path)
    assert full["kl_to_full"] == full["kl_to_full_p95"] == 0
    assert 0 < window["kl_to_full"] <= window["kl_to_full_p95"]
    alone = evaluate(small("window", caps="150%"), tmp_path)[0]
    assert alone == {**window, "kl_to_full": None, "kl_to_full_p95": None}


def test_the_divergence_is_that_of_the_distributions() -> None:
    p, q = np.array([[0.5, 0.25, 0.25]]), np.array([[0.25, 0.25, 0.5]])
    expected = float((p * np.log(p / q)).sum())
    moved = (np.log(p) + 900).astype(np.float32), (np.log(q) - 7).astype(np.float32)
    assert kl_divergence(*moved)[0] == pytest.approx(expected, rel=1e-3)
    assert kl_divergence(moved[0], moved[0])[0] == 0
    sure = np.array([[200.0, 0, 0]], np.float32)
    assert np.isfinite(kl_divergence(sure, -sure)).all()


def test_a_cap_that_cannot_work_is_a_row_with_the_reason(engine: Engine, tmp_path: Path) -> None:
    row, other = evaluate(small("window", caps="0.01%,400%"), tmp_path)
    assert "memory=" in row["error"]
    assert "accuracy" not in row
    assert other["accuracy"] >= 0
    text = markdown([row, other], small(), 1)
    assert text.count("cannot run") == 2  # in its place in the table, and below it with the reason
    assert "memory=" in text
    for plot in PLOTS.values():
        draw(plot([row]), tmp_path / "empty.png")


def test_a_second_run_does_nothing_again_unless_forced(engine: Engine, tmp_path: Path) -> None:
    steps: list[int] = []
    first = evaluate(small(), tmp_path)
    looked = WorldVlm.looked
    assert evaluate(small(), tmp_path, progress=lambda done, *_: steps.append(done)) == first
    assert (WorldVlm.looked, steps) == (looked, [])
    evaluate(small(caps="400%,200%,800%"), tmp_path, progress=lambda done, *_: steps.append(done))
    assert len(steps) == 2 + 2 * 2  # two streams, and the new cap for two policies
    evaluate(small(), tmp_path, force=True)
    assert WorldVlm.looked == 3 * looked


def test_an_interrupted_run_is_taken_up_again(engine: Engine, tmp_path: Path) -> None:
    before = evaluate(small(), tmp_path)
    book = tmp_path / "cells.jsonl"
    lines = book.read_text().splitlines(keepends=True)
    book.write_text("".join(lines[:3]) + lines[3][:50])
    steps: list[str] = []
    after = evaluate(small(), tmp_path, progress=lambda done, total, what: steps.append(what))
    assert len([step for step in steps if not step.startswith("stream")]) == len(lines) - 3
    assert len(book.read_text().splitlines()) == len(lines)
    assert [r["accuracy"] for r in after] == [r["accuracy"] for r in before]
    next((tmp_path / "logits").iterdir()).unlink()  # a cell whose logits are gone is measured again
    steps.clear()
    evaluate(small(), tmp_path, progress=lambda done, total, what: steps.append(what))
    assert len(steps) == 2  # its stream and itself


def test_every_length_has_its_rows_and_streams_are_gone_afterwards(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[list[str]] = []
    real = evaluation.shutil.rmtree

    def gone(place: Path, *rest: Any, **more: Any) -> None:
        folders.append(sorted(path.name for path in Path(place).parent.iterdir()))
        real(place, *rest, **more)

    monkeypatch.setattr(
        evaluation.shutil, "rmtree",
        gone,
    )  # fmt: skip
    rows = evaluate(small("window", caps="300%", lengths=(90, 40), seeds=(7,)), tmp_path)
    assert [row["frames"] for row in rows] == [90, 40]
    assert rows[0]["cap_bytes"] == rows[1]["cap_bytes"] / 40 * 90
    assert folders[:2] == [["plain-90-7"], ["plain-40-7"]]


def answer(right: bool, kind: str, delay: float, frames: int = 4) -> dict[str, Any]:
    return {
        "right": right, "kind": kind, "delay": delay, "first_token_ms": 2.0 * frames,
        "evidence_read": not right, "retrieved": right, "moments_full": False, "frames": frames,
        "evidence_by_chance": 0.25 if right else 0.5,
    }  # fmt: skip


def test_a_row_joins_its_cells() -> None:
    tokens = {"seen": 3, "collapsed": 1, "dropped": 0}
    tier = {"medium": "host", "codec": "int4", "used_bytes": 4, "peak_bytes": 5}
    memory = {"tokens": tokens, "events": {"splits": 2}, "disk": {"bytes_written": 2**30, "bytes_read": 5}}
    memory |= {"tiers": [tier], "taken_bytes": 9}
    base = {
        "policy": "window", "reference": False, "difficulty": "plain", "frames": 1800, "cap": "10%",
        "cap_share": 0.1, "cap_bytes": 10, "disk_bytes": 0, "selects": True, "memory": memory, "curve": {},
    }  # fmt: skip
    cells = [
        {**base, "seed": 1, "frame_ms": [1.0, 3.0], "order_independent": {"same": 7, "questions": 8},
         "answers": [answer(True, "colour", 5), answer(False, "room", 200)]},
        {**base, "seed": 2, "frame_ms": [2.0], "order_independent": None,
         "memory": {**memory, "tiers": [{**tier, "peak_bytes": 7}]},
         "answers": [answer(True, "room", 2e3, 9)]},
    ]  # fmt: skip
    row = build_row(cells)
    assert row["accuracy"] == pytest.approx(2 / 3)
    assert {kind: (g["accuracy"], g["questions"]) for kind, g in row["by_kind"].items()} == {
        "colour": (1.0, 1), "room": (0.5, 2),
    }  # fmt: skip
    assert {name: group["questions"] for name, group in row["by_delay"].items()} == {
        "0-30 s": 1, "120-480 s": 1, "over 1920 s": 1,
    }  # fmt: skip
    assert row["frame_ms_p50"] == 2.0
    assert row["first_token_ms_by_frames"] == {
        "4": {"p50": 8.0, "p95": 8.0, "questions": 2}, "9": {"p50": 18.0, "p95": 18.0, "questions": 1},
    }  # fmt: skip
    assert row["tokens"]["seen"] == 6
    assert row["splits"] == 4
    assert row["bytes_moved"] == 2 * (2**30 + 5)
    assert row["gib_per_hour_written"] == 2.0
    assert row["tiers"] == [{**tier, "peak_bytes": 7}]
    assert row["evidence_recall"] == pytest.approx(1 / 3)
    assert row["evidence_of_right"] == 0  # an answer named its evidence where it was wrong
    assert row["evidence_by_chance"] == pytest.approx(1 / 3)
    assert row["retrieval_recall"] == pytest.approx(2 / 3)
    assert row["order_independent"] == 7 / 8


@pytest.mark.parametrize("seed", range(4))
def test_ranges_laid_anywhere_meet_the_evidence_as_often_as_said(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shown = [(float(a), float(a + rng.uniform(0, 9))) for a in rng.uniform(-1, 100, 6)]
    lengths = rng.uniform(0, 12, 4)
    met = np.zeros(200_000, bool)
    for length in lengths:
        start = rng.uniform(0, 100 - length, len(met))
        for a, b in shown:
            met |= (start <= b) & (a <= start + length)
    assert named_by_chance(lengths.tolist(), shown, 100) == pytest.approx(met.mean(), abs=0.005)


def test_retrieval_recall_tells_what_was_kept_from_what_was_lost(engine: Engine, tmp_path: Path) -> None:
    full, window = evaluate(small("full,window", caps="150%"), tmp_path)
    assert full["retrieval_recall"] == 1.0
    assert window["retrieval_recall"] < 1.0
    assert full["retrieval_recall_unsure"] == window["retrieval_recall_unsure"] == 0


@pytest.mark.parametrize("policy", _core.policies())
def test_answers_do_not_depend_on_the_questions_before(policy: str) -> None:
    engine = Engine(WorldVlm())
    questions = [f"what colour was the {word} ?" for word in VOCABULARY[5:13]]
    assert len(questions) == 8
    with engine.session(memory="256KiB" if policy != "full" else "1MiB", policy=policy) as session:
        for frame in range(60):
            session.append(World(7, 60).render(frame), float(frame))
        first = {q: session.ask(q).logits for q in questions}
        for q in [*reversed(questions), questions[3], questions[3], questions[0]]:
            assert np.array_equal(session.ask(q).logits, first[q])
        for q in questions:  # a dialogue may change them; it has to take them
            assert session.ask(q, dialogue=True).tokens > 0


def test_a_row_says_how_many_answers_stay_in_any_order(engine: Engine, tmp_path: Path) -> None:
    rows = evaluate(small(caps="200%", questions=40), tmp_path)
    assert [row["order_independent"] for row in rows] == [1.0, 1.0, 1.0]


def test_files_are_written_with_tables_and_plots(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = small(caps="900%,600%", lengths=(90, 40), disk="1MiB")
    result = run_eval(settings, tmp_path / "deep" / "folder", jobs=1, force=False, quiet=True)
    out = tmp_path / "deep" / "folder"
    assert json.loads((out / "eval.json").read_text())["rows"] == result["rows"]
    text = (out / "eval.md").read_text()
    assert text.count("\n## ") == 2
    assert text.count("\n| mosaic + disk | ") == 2 * (1 + 2)  # a line of accuracy and one per cap
    assert capsys.readouterr().out == ""
    pytest.importorskip("matplotlib")
    assert sorted(PLOTS) == ["accuracy", "delay", "first_token", "memory"]
    for name in PLOTS:
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_processes_share_the_work_and_agree(tmp_path: Path) -> None:
    settings = small("full,mosaic", "200%", lengths=(32,), questions=4, model="mosaic-tiny")
    done: list[tuple[int, int]] = []
    two = evaluate(settings, tmp_path / "2", jobs=2, progress=lambda *step: done.append(step[:2]))
    one = evaluate(settings, tmp_path / "1")
    assert done == [(i, 6) for i in range(1, 7)]
    for a, b in zip(one, two, strict=True):
        assert (a["accuracy"], a["tokens"], a["kl_to_full"]) == (b["accuracy"], b["tokens"], b["kl_to_full"])


@pytest.mark.parametrize(
    "bad",
    [
        {"policies": ()},
        {"lengths": (512, 3)},
        {"questions": 0},
        {"seeds": ()},
        {"difficulties": ("hard",)},
        {"disk": "x"},
    ],
    ids=str,
)
def test_a_bad_setting_is_refused_before_anything_runs(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        EvalSettings(**bad)


@pytest.mark.parametrize("policy", ["mosaic[nonsense=1]", "window[alpha=1]", "mosaic[packed=int3]"])
def test_a_setting_the_policy_does_not_know_is_refused_before_anything_runs(
    policy: str, engine: Engine, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"policies='.*\["):
        evaluate(small(policy), tmp_path)
    assert WorldVlm.looked == 0


def test_caps_that_read_alike_are_measured_apart(engine: Engine, tmp_path: Path) -> None:
    rows = evaluate(small(caps="300KiB,300.04KiB", policies="window"), tmp_path)
    assert sorted(row["cap_bytes"] for row in rows) == [300 * 1024, 307240]
