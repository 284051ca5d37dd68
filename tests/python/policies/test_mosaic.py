"""mosaic's arithmetic against float64 NumPy: what a token joins, mean, variance, tau(n), cuts.

The oracle follows Mosaic's rule token by token. Means are half precision in the core, so a layer with a
decision nearer to its threshold than that is not judged; a test fails where too few are left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from played import LAYERS, ROW, TOKENS, Array, Played

NEAR = 4e-3
"""Similarities closer than this may fall either way: a mean is rounded to half after every token."""


def unit(x: Array) -> Array:
    length = np.linalg.norm(x)
    return x / length if length > 0 else x


def distance(a: tuple[Array, Array], b: tuple[Array, Array], value_weight: float) -> float:
    """Squared distance between unit vectors, keys and (weighted) values."""
    similar = [unit(x) @ unit(y) for x, y in zip(a, b, strict=True)]
    return float(2 - 2 * (similar[0] + value_weight * similar[1]) / (1 + value_weight))


@dataclass
class Cluster:
    k: Array
    v: Array
    count: int = 1
    variance: float = 0.0
    members: list[int] = field(default_factory=list)

    def with_token(self, k: Array, v: Array, value_weight: float) -> tuple[Array, Array, float]:
        """r' = (n r + k)/(n + 1), s2' = (n s2 + |k - r'|^2)/(n + 1)."""
        n = self.count
        mean = ((n * self.k + k) / (n + 1), (n * self.v + v) / (n + 1))
        return *mean, (n * self.variance + distance((k, v), mean, value_weight)) / (n + 1)

    def add(self, token: int, k: Array, v: Array, value_weight: float) -> None:
        self.k, self.v, self.variance = self.with_token(k, v, value_weight)
        self.count += 1
        self.members.append(token)


def of_core(played: Played, lane: int) -> dict[int, set[int]]:
    """The tokens (by original position) of every cluster."""
    members = played.memory.store.members(lane)
    found: dict[int, set[int]] = {}
    for position, cluster in zip(members["position"], members["cluster"], strict=True):
        found.setdefault(int(cluster), set()).add(int(position))
    return found


def core_means(played: Played, lane: int) -> dict[frozenset[int], tuple[Array, Array, float, int]]:
    """Mean key and value, variance and count of every cluster, by its tokens."""
    store = played.memory.store
    columns, members = store.clusters(lane), of_core(played, lane)
    mean_k, mean_v = store.mean_k(lane), store.mean_v(lane)
    return {
        frozenset(members[c]): (mean_k[c].astype(float), mean_v[c].astype(float), s2, n)
        for c, s2, n in zip(columns["id"], columns["variance"], columns["count"], strict=True)
    }  # fmt: skip


def admitted(played: Played, lane: int) -> list[list[tuple[int, Array, Array]]]:
    """(position, k, v) of the tokens that left the window, by frame; one lane is one layer here."""
    position = played.frames[0][0].shape[1]
    frames = []
    for k, v, _ in played.left_window():
        rows = range(k.shape[1])
        frames.append(
            [(position + i, k[lane, i].astype(np.float64), v[lane, i].astype(np.float64)) for i in rows]
        )
        position += k.shape[1]
    return frames


def replay(
    frames: list[list[tuple[int, Array, Array]]], value_weight: float, radius: float
) -> tuple[list[Cluster], int]:
    """Clusters of one scene under one radius, nothing cut; and how many decisions were too near to call.

    A frame's tokens are compared with the clusters there were before it; one that would open its own may
    still join one that this frame opened.
    """
    clusters: list[Cluster] = []
    near = 0
    for frame in frames:
        before = list(clusters)
        choices = [
            min(
                ((distance((k, v), (c.k, c.v), value_weight), i) for i, c in enumerate(before)),
                default=(math.inf, -1),
            )
            for _, k, v in frame
        ]
        for (_, k, v), _ in zip(frame, choices, strict=True):
            ranked = sorted(distance((k, v), (c.k, c.v), value_weight) for c in before)
            near += len(ranked) > 1 and ranked[1] - ranked[0] < NEAR and ranked[0] <= radius + NEAR
            near += bool(ranked) and abs(ranked[0] - radius) < NEAR
        fresh: list[Cluster] = []
        for (token, k, v), (apart, at) in zip(frame, choices, strict=True):
            target = before[at] if apart <= radius else None
            if target is None and fresh:
                options = sorted((distance((k, v), (c.k, c.v), value_weight), i) for i, c in enumerate(fresh))
                near += abs(options[0][0] - radius) < NEAR
                near += (
                    len(options) > 1
                    and options[1][0] - options[0][0] < NEAR
                    and options[0][0] <= radius + NEAR
                )
                if options[0][0] <= radius:
                    target = fresh[options[0][1]]
            if target is None:
                fresh.append(Cluster(k, v, members=[token]))
                clusters.append(fresh[-1])
            else:
                target.add(token, k, v, value_weight)
    return clusters, near


@pytest.mark.parametrize("value_weight", [0.0, 1.0, 2.5])
def test_assignment_mean_and_variance_are_the_oracles(value_weight: float) -> None:
    radius, compared = 0.4, 0
    settings = {
        "levels": "semantic",
        "radius": radius,
        "tau_max": 4,
        "tau_min": 4,
        "value_weight": value_weight,
    }
    for seed in range(8):
        played = Played("mosaic", settings, seed)
        for number in range(14):
            played.random_frame(1 + (number * 5 + seed) % TOKENS)
        for lane in range(LAYERS):
            clusters, near = replay(admitted(played, lane), value_weight, radius)
            if near:
                continue
            compared += 1
            found = core_means(played, lane)
            assert {frozenset(c.members) for c in clusters} == set(found)
            for cluster in clusters:
                k, v, variance, count = found[frozenset(cluster.members)]
                assert count == cluster.count
                # A mean is rounded to half once a token, by at most 2^-11 of itself.
                assert np.allclose(k, cluster.k, rtol=3e-3, atol=3e-3)
                assert np.allclose(v, cluster.v, rtol=3e-3, atol=3e-3)
                assert variance == pytest.approx(cluster.variance, abs=2e-3)
    assert compared >= 6, "too many near ties: the oracle judged next to nothing"


def split_world(first: float, second: float, third: float, **settings: Any) -> Played:
    """Three tokens of one cluster at these angles, one a frame, the same in every layer."""
    played = Played("mosaic", {"levels": "semantic", "tau": "fixed", "value_weight": 0, **settings})

    def token(angle: float) -> Array:
        k = np.zeros((LAYERS, 1, ROW))
        k[:, 0, 0], k[:, 0, 1] = math.cos(angle), math.sin(angle)
        return k

    for angle in (
        0.0,
        first,
        second,
        third,
        0.0,
        0.0,
    ):  # the first is kept apart, the last two stay in the window
        played.frame(token(angle), token(angle))
    return played


@pytest.mark.parametrize("n0", [1.0, 32.0, 1000.0])
@pytest.mark.parametrize("angle", [0.05, 0.2, 0.35, 0.5, 0.8, 1.3])
def test_a_cluster_is_cut_when_its_variance_passes_tau_of_its_count(angle: float, n0: float) -> None:
    tau_max, tau_min = 0.06, 0.01
    played = split_world(0.0, 0.0, angle, n0=n0, tau_max=tau_max, tau_min=tau_min)
    a = Cluster(np.array([1.0, 0.0]), np.zeros(2))
    a.add(1, np.array([1.0, 0.0]), np.zeros(2), 0)
    k = np.array([math.cos(angle), math.sin(angle)])
    variance = a.with_token(k, np.zeros(2), 0)[2]
    tau = tau_min + (tau_max - tau_min) * math.exp(-3 / n0)
    assert abs(variance - tau) > 1e-3, "choose another angle: this one is too near to call"
    for lane in range(LAYERS):
        sizes = sorted(len(tokens) for tokens in of_core(played, lane).values())
        assert sizes == ([3] if variance <= tau else [1, 2])
    assert played.memory.stats()["events"]["splits"] == (0 if variance <= tau else LAYERS)


def test_a_cut_parts_the_tokens_by_two_means() -> None:
    # 0 and 1.2 rad have a variance of 0.175, with 1.25 rad of 0.177; tau(2) = 0.21 and tau(3) = 0.11.
    played = split_world(0.0, 1.2, 1.25, tau_max=1.2, tau_min=0.05, n0=1)
    for lane in range(LAYERS):
        groups = {frozenset(tokens) for tokens in of_core(played, lane).values()}
        assert groups == {frozenset({1}), frozenset({2, 3})}
        for tokens, (_, _, variance, count) in core_means(played, lane).items():
            assert count == len(tokens)
            assert variance == pytest.approx(0 if count == 1 else 1 - math.cos(0.05), abs=2e-3)


def test_one_frame_is_kept_apart_and_a_few_stay_in_the_window() -> None:
    played = Played("mosaic")
    played.random_frame()
    assert all(len(played.memory.store.clusters(lane)["id"]) == 0 for lane in range(LAYERS))
    assert np.isfinite(played.ask()).all()
    played.memory.check_invariants()


@pytest.mark.parametrize(
    ("settings", "clusters"),
    [
        ({}, 3),
        ({"levels": "semantic"}, 3),
        ({"item": "frame"}, 1),
        ({"levels": "none"}, 1),
        ({"levels": "visual"}, 1),
        ({"tau": "fixed", "tau_min": 0.1, "tau_max": 0.1}, 3),
        ({"tau": "quantile"}, None),
        ({"published": True}, None),
    ],
)
def test_frames_that_are_all_equal_make_as_many_clusters_as_a_frame_has_kinds(
    settings: dict[str, Any], clusters: int | None
) -> None:
    played = Played("mosaic", settings)
    k = np.zeros((LAYERS, TOKENS, ROW))
    k[:, np.arange(TOKENS), np.arange(TOKENS) % 3] = 1.0  # three kinds, at right angles
    for _ in range(12):
        played.frame(k, k)
    for lane in range(LAYERS):
        found = core_means(played, lane)
        assert sum(count for _, _, _, count in found.values()) == TOKENS * len(played.left_window())
        if clusters is not None:
            assert len(found) == clusters
        for mean, _, variance, _ in found.values():
            if clusters == 3:
                assert variance == pytest.approx(0, abs=1e-6)
                assert sorted(mean)[-1] == 1
            elif clusters == 1:  # two thirds of a frame lie at right angles to any kind
                assert mean[:3] == pytest.approx(1 / 3, abs=1e-3)
    played.memory.check_invariants()


def test_clusters_of_one_token_are_that_token_bit_by_bit() -> None:
    played = Played("mosaic", {"levels": "semantic", "radius": 0.0})
    for _ in range(9):
        played.random_frame()
    for lane in range(LAYERS):
        tokens = [token for frame in admitted(played, lane) for token in frame]
        found = core_means(played, lane)
        assert set(found) == {frozenset({position}) for position, _, _ in tokens}
        for position, k, v in tokens:
            mean_k, mean_v, variance, count = found[frozenset({position})]
            assert (mean_k == k).all()
            assert (mean_v == v).all()
            assert count == 1
            assert variance == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["k", "v", "embedding"])
def test_nan_is_refused_and_leaves_no_trace(bad: float, where: str) -> None:
    played, twin = Played("mosaic"), Played("mosaic")
    for _ in range(5):
        played.random_frame()
        twin.random_frame()
    k, v, embedding = np.ones((LAYERS, 3, ROW)), np.ones((LAYERS, 3, ROW)), np.ones(5)
    {"k": k[1], "v": v[1], "embedding": embedding[None]}[where][0, 0 if where == "embedding" else 2] = bad
    state = played.random.bit_generator.state
    before = played.memory.stats()
    with pytest.raises(ValueError, match="refused"):
        played.frame(k, v, embedding)
    assert played.memory.stats() == before
    played.random.bit_generator.state = state
    played.pts = twin.pts
    assert (played.random_frame() == twin.random_frame()).all()
    assert (played.ask() == twin.ask()).all()


def test_prefetch_changes_what_is_read_early_and_no_answer(tmp_path: Any) -> None:
    streams = [
        Played(
            "mosaic", seed=4, prefetch=prefetch, cap_bytes=230_000, clusters=24, branch_tokens=16,
            disk_bytes=1 << 20, spill_dir=str(tmp_path), retrieve_tokens=64,
        )
        for prefetch in (True, False)
    ]  # fmt: skip
    answers = []
    for played in streams:
        for _ in range(60):
            played.random_frame()
        answers.append(np.stack([played.ask(3) for _ in range(6)]))
        played.memory.check_invariants()
        assert played.memory.stats()["tokens"]["spilled"] > 0
    assert (answers[0] == answers[1]).all()
    with_it, without = (played.memory.stats()["events"] for played in streams)
    assert (
        with_it["fetched_pages"] + with_it["fetch_hits"]
        > without["fetched_pages"] + without["fetch_hits"]
        > 0
    )


def test_without_summaries_only_what_is_chosen_is_attended() -> None:
    """The answer with nothing chosen is the answer of a memory that never had what is stored."""
    played = Played("mosaic", {"levels": "none"}, retrieve_tokens=1, summaries=False, max_cluster_tokens=12)
    kept = Played("window", retrieve_tokens=1)
    first = played.random_frame()
    kept.random.bit_generator.state = np.random.default_rng(1).bit_generator.state
    assert (kept.random_frame() == first).all()
    for _ in range(11):
        played.random_frame()
    for k, v, embedding in played.frames[-2:]:
        kept.frame(k, v, embedding)
    state = np.random.default_rng(8).bit_generator.state
    played.random.bit_generator.state = kept.random.bit_generator.state = state
    assert np.allclose(played.ask(), kept.ask(), atol=1e-5)
    assert len(played.memory.store.clusters(0)["id"]) >= 4
