"""Policy edge in float64: admission replayed.

Decisions are replayed frame by frame from what the store holds. Means are half precision and distances
single precision in the core, so a decision within MARGIN may fall either way: the oracle tries both, and one
of what it finds must be what the store holds afterwards, every cluster of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from played import PlayedMemory

Array = np.ndarray
MARGIN = 2e-5
RADIUS = 0.02
ALWAYS: Any = "always"
"""members=: kept in pages of DRAM too."""


def half(x: Array) -> Array:
    return x.astype(np.float32).astype(np.float16).astype(np.float64)


@dataclass(frozen=True)
class Summary:
    """A cluster: means [kv_heads * D] as half precision holds them."""

    k: Array
    v: Array
    count: int
    position: float
    first: int
    last: int

    def joined(self, other: Summary) -> Summary:
        """Means of two clusters, or of a cluster and a token, weighted by what they count."""
        share = other.count / (self.count + other.count)
        return Summary(
            half(self.k + share * (other.k - self.k)),
            half(self.v + share * (other.v - self.v)),
            self.count + other.count,
            self.position + share * (other.position - self.position),
            min(self.first, other.first),
            max(self.last, other.last),
        )


def distances(one: Summary, many: list[Summary], value_weight: float) -> Array:
    """2 - 2 cos, of keys and (weighted) values."""

    def cosines(a: Array, b: Array) -> Array:
        norm = np.linalg.norm(a) * np.linalg.norm(b, axis=1)
        return np.divide(b @ a, norm, out=np.zeros_like(norm), where=norm > 0)

    similar = cosines(one.k, np.stack([m.k for m in many]))
    similar = similar + value_weight * cosines(one.v, np.stack([m.v for m in many]))
    return np.asarray(np.maximum(0, 2 - 2 * similar / (1 + value_weight)))


class Script:
    """Which way each decision goes that is too near to call; walks through all ways there are."""

    def __init__(self) -> None:
        self.ways: list[list[int]] = []  # [taken, there are]
        self.at = 0

    def pick(self, ways: int) -> int:
        if self.at == len(self.ways):
            self.ways.append([0, ways])
        self.at += 1
        return self.ways[self.at - 1][0]

    def next(self) -> bool:
        self.at = 0
        while self.ways and self.ways[-1][0] + 1 == self.ways[-1][1]:
            self.ways.pop()
        if self.ways:
            self.ways[-1][0] += 1
        return bool(self.ways)

    def nearest(
        self, token: Summary, ids: list[int], live: dict[int, Summary], weight: float
    ) -> tuple[int, float]:
        if not ids:
            return -1, np.inf
        apart = distances(token, [live[c] for c in ids], weight)
        near = np.flatnonzero(apart <= apart.min() + MARGIN)
        best = int(near[self.pick(len(near))]) if len(near) > 1 else int(near[0])
        return ids[best], float(apart[best])

    def within(self, apart: float, radius: float) -> bool:
        if np.isfinite(apart) and abs(apart - radius) < MARGIN and not apart == radius == 0:
            return self.pick(2) == 0
        return apart <= radius


def closest_pairs(live: dict[int, Summary], weight: float) -> tuple[list[tuple[int, int]], float]:
    """Pairs that may be the closest one, and their distance."""
    ids = list(live)
    found: list[tuple[float, int, int]] = []
    for i, c in enumerate(ids[1:], 1):
        apart = distances(live[c], [live[other] for other in ids[:i]], weight)
        found += [(float(d), c, other) for d, other in zip(apart, ids[:i], strict=True)]
    least = min(found)[0]
    return [(a, b) for d, a, b in found if d <= 1.002 * least + MARGIN], least


def admitted(
    script: Script, before: list[Summary], frame: list[Summary], radius: float, capacity: int, weight: float
) -> tuple[list[Summary], float]:
    """The clusters after one frame, and the radius."""
    live = dict(enumerate(before))
    made = len(before)
    old = list(live)
    labels = []
    for token in frame:  # all against the clusters there were before the frame
        c, apart = script.nearest(token, old, live, weight)
        labels.append(c if script.within(apart, radius) else -1)
    fresh: list[int] = []
    for i, token in enumerate(frame):
        while True:
            if labels[i] < 0 and fresh:
                c, apart = script.nearest(token, fresh, live, weight)
                labels[i] = c if script.within(apart, radius) else -1
            if labels[i] >= 0:
                live[labels[i]] = live[labels[i]].joined(token)
                break
            if len(live) < capacity:
                live[made] = token
                fresh.append(made)
                made += 1
                break
            pairs, apart = closest_pairs(live, weight)
            a, b = pairs[script.pick(len(pairs))] if len(pairs) > 1 else pairs[0]
            if live[b].count > live[a].count:
                a, b = b, a
            live[a] = live[a].joined(live.pop(b))
            labels = [a if label == b else label for label in labels]
            fresh = list(dict.fromkeys(a if c == b else c for c in fresh))
            radius = max(radius, apart)
    return list(live.values()), radius


def stored(played: PlayedMemory, lane: int) -> list[Summary]:
    store = played.memory.store
    columns, k, v = store.clusters(lane), store.mean_k(lane), store.mean_v(lane)
    return [
        Summary(k[c].astype(np.float64), v[c].astype(np.float64), int(n), float(at), int(first), int(last))
        for c, n, at, first, last in zip(
            *(columns[x] for x in ("id", "count", "position", "first_ms", "last_ms")), strict=True
        )
    ]


def same(ours: list[Summary], theirs: list[Summary]) -> bool:
    """Each of ours is one of theirs, none twice."""

    def alike(a: Summary, b: Summary) -> bool:
        return (
            (a.count, a.first, a.last) == (b.count, b.first, b.last)
            and abs(a.position - b.position) < 1e-6
            and np.allclose(a.k, b.k, rtol=2e-3, atol=2e-3)
            and np.allclose(a.v, b.v, rtol=2e-3, atol=2e-3)
        )

    left = list(theirs)
    for a in ours:
        found = next((i for i, b in enumerate(left) if alike(a, b)), None)
        if found is None:
            return False
        left.pop(found)
    return not left


class PlayedEdge:
    """A stream whose every admission is judged."""

    def __init__(self, settings: dict[str, Any] | None = None, clusters: int = 40, **memory: Any) -> None:
        self.settings = settings or {}
        self.clusters = clusters
        self.played = PlayedMemory(
            "edge", {"unit": "summaries", **self.settings}, clusters=clusters, **memory
        )
        self.radius = [float(self.settings.get("radius", RADIUS))] * self.played.layers
        self.forks = 0
        """Frames in which something was too near to call."""

    def frame(self, tokens: int, qkv: tuple[Any, ...] | None = None) -> None:
        before = [stored(self.played, lane) for lane in range(self.played.layers)]
        old = len(self.played.stored)
        self.played.frame(tokens, 4, qkv)
        for lane in range(self.played.layers):
            leaving = [
                Summary(
                    half(t.k[lane].ravel()),
                    half(t.v[lane].ravel()),
                    1,
                    t.position,
                    t.frame * 1000,
                    t.frame * 1000,
                )
                for frame in self.played.stored[old:]
                for t in frame
            ]
            self.judge(lane, before[lane], leaving)

    def judge(self, lane: int, before: list[Summary], leaving: list[Summary]) -> None:
        after = stored(self.played, lane)
        weight = float(self.settings.get("value_weight", 1))
        script = Script()
        for _ in range(3000):
            ours, radius = admitted(script, before, leaving, self.radius[lane], self.clusters, weight)
            if same(ours, after):
                self.forks += bool(script.ways)
                self.radius[lane] = radius
                return
            if not script.next():
                break
        raise AssertionError(
            f"frame {self.played.frames}, lane {lane}: the store holds what no decision leads to"
        )

    def account(self) -> None:
        self.played.memory.check_invariants()
        tokens = sum(len(frame) for frame in self.played.stored)
        for lane in range(self.played.layers):
            assert sum(s.count for s in stored(self.played, lane)) == tokens
        stats = self.played.memory.stats()["tokens"]
        assert stats["dropped"] == 0
