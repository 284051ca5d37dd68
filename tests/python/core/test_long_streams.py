"""Streams of decades: times to the millisecond, as they were given, whatever keeps the tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mosaic_edge import Engine, Policy, _core
from numpy_vlm import NumpyVlm, picture
from played import EMBEDDING, LAYERS, MODEL, ROW, Played

YEAR = 365.25 * 86400
DECADES = 30 * YEAR
KEPT: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("edge", {}, {"cap_bytes": 300 << 10}),
    ("edge", {}, {"cap_bytes": 300 << 10, "disk_bytes": 1 << 20}),
    ("edge", {"unit": "summaries"}, {"cap_bytes": 300 << 10}),
    ("mosaic", {"unit": "tokens"}, {"cap_bytes": 300 << 10, "disk_bytes": 1 << 20}),
    ("mosaic", {}, {"cap_bytes": 300 << 10, "disk_bytes": 1 << 20, "clusters": 0, "packed": "int4"}),
    ("infinipot-v", {}, {"cap_bytes": 300 << 10}),
    ("mukv", {}, {"cap_bytes": 300 << 10}),
    ("rekv", {}, {"cap_bytes": 300 << 10}),
    ("uniform", {}, {"cap_bytes": 300 << 10}),
    ("window", {}, {"window_frames": 40}),
]


def moments(played: Played) -> set[float]:
    return {time for first, last, _ in played.memory.evidence() for time in (first, last)}


@pytest.mark.parametrize(("policy", "settings", "memory"), KEPT)
def test_evidence_is_exact_through_thirty_years(
    policy: str, settings: dict[str, Any], memory: dict[str, Any], tmp_path: Path
) -> None:
    played = Played(policy, settings, seed=3, **memory, spill_dir=str(tmp_path))
    gaps = np.random.default_rng(5).exponential(1.0, 500)
    gaps[::7] = 0.0005  # bursts: a second frame in the same or the next millisecond
    times = np.round(DECADES * np.cumsum(gaps) / gaps.sum() - 1000.0, 3).tolist()
    for time in times:
        played.pts = time
        played.random_frame()
    played.memory.check_invariants()
    played.ask()
    assert moments(played) <= set(times)
    assert times[-1] in moments(played)
    assert policy == "window" or min(moments(played)) < times[-1] - YEAR
    half = times[250]
    played.ask(since=half)
    assert moments(played) <= {time for time in times if time >= half}
    assert times[-1] in moments(played)


def test_a_policy_in_python_is_told_the_whole_time() -> None:
    class Keeps(Policy):  # type: ignore[misc]  # the core is not typed
        def __init__(self) -> None:
            super().__init__(by_token=True)
            self.told: list[int] = []

        def admit(self, store: Any, block: Any) -> Any:
            self.told.extend(block.time_ms.tolist())
            return np.full(len(block.k), Policy.OPEN)

        def evict(self, store: Any, need: Any) -> list[Any]:
            return []

    policy = Keeps()
    played = Played(policy)
    times = [0.0, 1.25, 2e6 + 0.001, YEAR, DECADES - 0.001, DECADES, DECADES, DECADES]
    for time in times:
        played.pts = time
        played.random_frame()
    left = times[1 : len(times) - 2]  # the first is kept apart, two are in the window
    assert sorted(set(policy.told)) == sorted({round(time * 1000) for time in left})
    kept = played.memory.store.members(0)
    assert set(kept["time_ms"].tolist()) == set(policy.told)


@pytest.mark.parametrize("pts", [-2_000_001.0, 1_000_000_001.0, 1e300, float("nan")])
def test_a_time_beyond_any_stream_is_refused_and_nothing_taken(pts: float) -> None:
    played = Played("window")
    for _ in range(3):
        played.random_frame()
    with pytest.raises(ValueError, match="pts must be seconds"):
        played.memory.begin_frame(pts, np.ones(EMBEDDING, np.float32), 6)
    played.random_frame()
    assert played.memory.stats()["frames"] == 4


def test_a_session_takes_frames_and_names_them_for_decades() -> None:
    with Engine(NumpyVlm()).session(memory="1MiB", policy="window", kernel_threads=1) as session:
        times = [0.0, 1_999_999.0, 2_000_000.0, 2_000_001.5, YEAR, DECADES, DECADES + 0.001]
        for i, time in enumerate(times):
            session.append(picture(i), time)
        seen = {time for first, last, _ in session.ask("what colour was the ball ?").moments
                for time in (first, last)}  # fmt: skip
        assert seen <= set(times)
        assert DECADES + 0.001 in seen


def test_a_stream_whose_positions_are_used_up_is_refused_and_still_answers() -> None:
    """Where a picture stands at its time: the only stream that gets there in a test."""
    model = {**MODEL, "rope": {"rotary_dim": 8, "sections": [1, 1, 2]}, "video_window": 0}
    memory = _core.KvMemory(model, {"cap_bytes": 1 << 20, "window_frames": 2}, "edge", {}, "cpu", 1)
    played = Played("window")  # for its arrays
    played.memory = memory

    def frame(pts: float, position: int) -> None:
        memory.begin_frame(pts, np.ones(EMBEDDING, np.float32), 6, 3, 0, 0, position)
        played.attend(*np.ones((2, LAYERS, 6, ROW)))
        memory.commit()

    last = 2_000_000_000
    for i in range(5):
        frame(float(i), last - 5 + i)
    for position in (-1, last, (1 << 31) - 1):
        with pytest.raises(ValueError, match="Open another"):
            frame(5.0, position)
    assert np.isfinite(played.ask()).all()
    memory.check_invariants()


@pytest.mark.parametrize(("policy", "settings", "memory"), KEPT)
def test_frames_before_time_zero_are_evidence_as_others_are(
    policy: str, settings: dict[str, Any], memory: dict[str, Any], tmp_path: Path
) -> None:
    found = []
    for start in (-1000.0, 1000.0):
        played = Played(policy, settings, seed=3, **memory, spill_dir=str(tmp_path))
        for i in range(60):
            played.pts = start + i / 2
            played.random_frame()
        played.ask()
        found.append({moment - start for moment in moments(played)})
    assert found[0] == found[1] and len(found[0]) > 1
