"""edge against an independent float64 version: what a token joins, what opens, what merges."""

from __future__ import annotations

import numpy as np
import pytest

from edge_oracle import PlayedEdge, stored
from odd_streams import ODD, around, odd_frame
from played import PlayedMemory


@pytest.mark.parametrize("exact", ["fp32", "fp16"])
@pytest.mark.parametrize("value_weight", [0.0, 1.0, 2.5])
@pytest.mark.parametrize(("tokens", "clusters"), [(16, 40), (13, 7), (5, 2), (7, 63), (1, 5)])
def test_every_token_joins_opens_or_merges_as_the_oracle_decides(
    exact: str, value_weight: float, tokens: int, clusters: int
) -> None:
    edge = PlayedEdge({"value_weight": value_weight}, clusters, exact=exact, frame_tokens=tokens)
    frames = around(0.15)(edge.played, tokens)
    for _ in range(30):
        edge.frame(tokens, next(frames))
    edge.account()
    assert edge.forks < 2 * 30 / 3, "most decisions are clear"


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize(("tokens", "clusters"), [(13, 6), (7, 40), (1, 2)])
def test_streams_that_ask_for_trouble_are_filed_as_the_oracle_decides(
    name: str, tokens: int, clusters: int
) -> None:
    edge = PlayedEdge({}, clusters, frame_tokens=tokens)
    for n in range(20):
        edge.frame(tokens, odd_frame(edge.played, name, tokens, n))
    edge.account()
    if name == "all_alike":
        assert all(len(stored(edge.played, lane)) == 1 for lane in range(edge.played.layers))
    if name == "all_frames_equal" and clusters > tokens:
        assert all(len(stored(edge.played, lane)) == tokens for lane in range(edge.played.layers))
    if name == "no_two_alike" and clusters < tokens:
        assert edge.played.memory.stats()["events"]["merges"] >= 8 * edge.played.layers


def test_keys_and_values_that_are_all_zero_are_kept_as_zero_and_counted() -> None:
    """Every pair is equally far: any may merge."""
    played = PlayedMemory("edge", {"unit": "summaries"}, clusters=5, frame_tokens=7)
    nothing = np.zeros((2, 7, 2, 16), np.float32)
    for _ in range(20):
        played.frame(7, 4, (played.floats(2, 7, 4, 16), nothing, nothing))
    for lane in range(played.layers):
        held = stored(played, lane)
        assert 0 < len(held) <= 5
        assert sum(s.count for s in held) == sum(len(frame) for frame in played.stored)
        assert all((s.k == 0).all() and (s.v == 0).all() for s in held)
    assert np.isfinite(played.ask(3)[3]).all()
    played.memory.check_invariants()


@pytest.mark.parametrize("exact", ["fp32", "fp16"])
def test_without_members_no_token_takes_a_page(exact: str) -> None:
    played = PlayedMemory("edge", {"unit": "summaries"}, exact=exact, clusters=60, frame_tokens=13)
    stream = around(0.3, 20)(played, 13)
    for _ in range(30):
        played.frame(13, 4, next(stream))
        assert all(not played.memory.store.clusters(lane)["members"].any() for lane in range(played.layers))
    stats = played.memory.stats()
    assert stats["events"]["collapsed_clusters"] == 0
    seen = sum(len(frame) for frame in played.stored) * played.layers
    alone = sum(s.count == 1 for lane in range(played.layers) for s in stored(played, lane))
    assert stats["tokens"]["collapsed"] == seen - (alone if exact == "fp16" else 0)
    played.memory.check_invariants()
