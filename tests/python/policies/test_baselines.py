"""window, uniform and full against float64: which frames are kept, and the attention over exactly those."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mosaic_edge import MemoryCapError
from played import PlayedMemory

POLICIES = ["window", "uniform", "full"]
PAGE = 16


def play(policy: str, tokens: int, **memory: Any) -> PlayedMemory:
    return PlayedMemory(policy, frame_tokens=tokens, **memory)


def capacity(played: PlayedMemory, tokens: int) -> int:
    """Frames that the pages hold in every layer."""
    pages = sum(tier["pages"] for tier in played.memory.plan()["tiers"])
    return int(pages) // (played.layers * -(-tokens // PAGE))


def wanted(policy: str, last: int, room: int) -> set[int]:
    """Numbers of the frames kept of 1 to `last`; frame 0 is kept apart."""
    if policy == "window":
        return set(range(max(1, last - room + 1), last + 1))
    stride = 1
    while policy == "uniform" and last // stride > room:
        stride *= 2
    return set(range(stride, last + 1, stride))


def check(played: PlayedMemory, kept: set[int], since: float | None = None) -> None:
    """Every layer keeps these frames, and a question reads all tokens of them and no others."""
    for layer in range(played.layers):
        assert set(played.memory.store.clusters(layer)["born"].tolist()) == kept
    for tokens in (1, 5):
        q, k, v, out = played.ask(tokens, since)
        start = -1 if since is None else since
        read = [t for frame in played.stored for t in frame if t.frame in kept and t.frame >= start]
        for layer in range(played.layers):
            truth = played.expected(layer, read, q, k, v, start)
            np.testing.assert_allclose(out[layer], truth, atol=2e-4)
    played.memory.check_invariants()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("exact", ["fp32", "fp16"])
@pytest.mark.parametrize("tokens", [1, 13, 17])
def test_from_one_frame_on_all_is_read_while_all_fits(policy: str, exact: str, tokens: int) -> None:
    played = play(policy, tokens, exact=exact)
    for n in range(14):
        played.frame(tokens)
        if n in (0, 1, 3, 13):
            check(played, {frame[0].frame for frame in played.stored})
    assert capacity(played, tokens) > 14
    check(played, {frame[0].frame for frame in played.stored}, since=6.0)


@pytest.mark.parametrize("policy", ["window", "uniform"])
@pytest.mark.parametrize("tokens", [1, 7, 16, 17])
def test_under_a_cap_the_frames_of_the_oracle_stay(policy: str, tokens: int) -> None:
    played = play(policy, tokens, cap_bytes=(250 if tokens > PAGE else 200) << 10)
    room, seen = capacity(played, tokens), 0
    assert 3 <= room <= 50
    for _ in range(4 * room + 7):
        played.frame(tokens)
        seen = len(played.stored)
        kept = set(played.memory.store.clusters(0)["born"].tolist())
        assert kept == wanted(policy, seen, room)
    check(played, wanted(policy, seen, room))
    check(played, wanted(policy, seen, room), since=float(seen - 2))


@pytest.mark.parametrize("policy", POLICIES)
def test_frames_that_are_all_equal_are_kept_and_read_as_any_others(policy: str) -> None:
    cap = {} if policy == "full" else {"cap_bytes": 200 << 10}
    played = play(policy, 7, **cap)
    same = tuple(played.floats(played.layers, 7, heads, played.d) for heads in (4, 2, 2))
    room = capacity(played, 7)
    frames = 20 if policy == "full" else 2 * room + 9
    for _ in range(frames):
        played.frame(7, 4, same)
    check(played, wanted(policy, len(played.stored), room))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_refused_and_change_nothing(policy: str, bad: float) -> None:
    played = play(policy, 7)
    for _ in range(9):
        played.frame(7)
    before = played.memory.stats()
    for layer, where in ((0, 1), (1, 2)):
        qkv = [played.floats(7, heads, played.d) for heads in (4, 2, 2)]
        out = np.empty((7, 4, played.d), np.float32)
        played.memory.begin_frame(99.0, np.ones(4, np.float32), 7, 4)
        for earlier in range(layer):
            played.memory.attend(earlier, *qkv, out, 7)
        qkv[where] = qkv[where].copy()
        qkv[where][6, 1, 15] = bad
        with pytest.raises(ValueError, match="NaN or infinity"):
            played.memory.attend(layer, *qkv, out, 7)
        played.memory.abort()
        assert played.memory.stats() == before
    played.frame(7)
    check(played, {frame[0].frame for frame in played.stored})


def test_full_refuses_the_frame_that_does_not_fit_and_answers_as_before() -> None:
    played = play("full", 7, cap_bytes=200 << 10)
    room = capacity(played, 7)
    for _ in range(room + 1 + played.window_frames):
        played.frame(7)
    assert len(played.stored) == room
    before = played.memory.stats()
    for _ in range(2):
        with pytest.raises(MemoryCapError):
            played.frame(7)
    assert played.memory.stats() == before
    check(played, wanted("full", room, room))
