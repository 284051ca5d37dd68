"""rekv against an independent float64 version: which frames are kept, which a question reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from played import PlayedMemory, Token


def wanted_frames(
    played: PlayedMemory, layer: int, q: np.ndarray, score: str, frames: int, budget: int
) -> list[list[Token]]:
    """The frames of a layer that ReKV reads for a question."""
    stored = played.stored
    if not stored:
        return []
    means = np.stack([np.mean([t.k[layer] for t in frame], axis=0) for frame in stored])  # [F, Hkv, D]
    group = played.q_heads // played.kv_heads
    if score == "dot":
        mean = q[layer].mean(0).reshape(played.kv_heads, group, played.d).sum(1)
        scores = np.einsum("hd,fhd->f", mean, means)
    else:
        logits = np.einsum("tqd,fqd->tqf", q[layer], np.repeat(means, group, axis=1)) / np.sqrt(played.d)
        logits += np.log([len(frame) for frame in stored])
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        scores = (weights / weights.sum(-1, keepdims=True)).sum((0, 1))
    read, tokens = [], 0
    for i in np.argsort(-scores, kind="stable"):
        if len(read) < frames and tokens + len(stored[i]) <= budget:
            read.append(stored[i])
            tokens += len(stored[i])
    return read


def check_questions(played: PlayedMemory, score: str, frames: int, budget: int, times: int = 4) -> None:
    for tokens in [1, 5, 3, 7][:times]:
        q, k, v, out = played.ask(tokens)
        for layer in range(played.layers):
            read = [t for f in wanted_frames(played, layer, q, score, frames, budget) for t in f]
            np.testing.assert_allclose(out[layer], played.expected(layer, read, q, k, v), atol=2e-4)


@pytest.mark.parametrize("exact", ["fp32", "fp16"])
@pytest.mark.parametrize("score", ["dot", "mass"])
@pytest.mark.parametrize(("tokens", "grid_w"), [(16, 4), (15, 5), (13, 5), (1, 1)])
def test_a_question_reads_the_best_frames_in_time_order(
    exact: str, score: str, tokens: int, grid_w: int
) -> None:
    played = PlayedMemory("rekv", {"frames": 4, "score": score}, exact=exact, frame_tokens=tokens)
    for n in range(24):
        played.frame(tokens, grid_w)
        if n in (0, 4, 11):
            check_questions(played, score, 4, 10**9, 1)
    assert set(played.members(0)) == {t.position for frame in played.stored for t in frame}
    check_questions(played, score, 4, 10**9)
    played.memory.check_invariants()


def test_the_budget_of_tokens_skips_what_does_not_fit() -> None:
    played = PlayedMemory("rekv", {"frames": 9}, frame_tokens=16, retrieve_tokens=40)
    for n in range(20):
        played.frame([16, 7, 1, 13][n % 4])
    check_questions(played, "dot", 9, 40)


def test_equal_frames_are_read_oldest_first() -> None:
    played = PlayedMemory("rekv", {"frames": 3}, frame_tokens=7)
    same = tuple(played.floats(2, 7, heads, 16) for heads in (4, 2, 2))
    for _ in range(12):
        played.frame(7, 4, same)
    check_questions(played, "dot", 3, 10**9)


def test_a_frame_with_nan_is_refused_and_nothing_of_it_is_kept() -> None:
    played = PlayedMemory("rekv", {"frames": 3}, frame_tokens=7)
    for _ in range(9):
        played.frame(7)
    before = played.members(0)
    q, k, v = (played.floats(7, heads, 16) for heads in (4, 2, 2))
    k[3, 1, 5] = np.nan
    played.memory.begin_frame(99.0, np.ones(4, np.float32), 7, 4)
    with pytest.raises(ValueError, match="NaN"):
        played.memory.attend(0, q, k, v, np.empty((7, 4, 16), np.float32), 7)
    assert played.members(0) == before
    check_questions(played, "dot", 3, 10**9)


@pytest.mark.parametrize("disk", [0, 40 << 10, 16 << 20])
def test_under_a_cap_the_newest_frames_stay_and_are_still_read_exactly(disk: int, tmp_path: Path) -> None:
    played = PlayedMemory(
        "rekv",
        {"frames": 3},
        frame_tokens=16,
        cap_bytes=700 << 10,
        disk_bytes=disk,
        spill_dir=str(tmp_path),
        retrieve_tokens=48,
    )
    for n in range(150):
        played.frame(16)
        if n % 10 == 9:
            played.memory.check_invariants()
    played.memory.drain()
    kept = {int(t) for t in played.memory.store.clusters(0)["born"]}
    assert kept == {int(t) for t in played.memory.store.clusters(1)["born"]}
    assert kept == set(range(min(kept), 147)), "FIFO: the newest, without a gap"
    stats = played.memory.stats()
    assert stats["tokens"]["collapsed"] == 0
    assert (stats["tokens"]["spilled"] > 0) == (disk > 0)
    assert (stats["tokens"]["dropped"] > 0) == (min(kept) > 1)
    played.stored = [frame for frame in played.stored if frame[0].frame in kept]
    check_questions(played, "dot", 3, 48)
