"""Policies in Python for the tests: two of the C++ ones again, one that uses everything, one that breaks."""

from __future__ import annotations

from typing import Any

import numpy as np

from mosaic_edge import Eviction, Policy
from played import ROW, Array


class Window(Policy):
    """cpp/policy/window.cc, again."""

    def admit(self, store: Any, batch: Any) -> bool:
        return True

    def evict(self, store: Any, need: Any) -> list[Eviction]:
        columns = [store.clusters(lane) for lane in range(store.lanes)]
        born = [b for c in columns for b in c["born"]]
        return [
            Eviction.drop(lane, c["id"][i])
            for lane, c in enumerate(columns)
            for i in np.flatnonzero(c["born"] == min(born, default=-1))
        ]


class Uniform(Policy):
    """cpp/policy/uniform.cc, again."""

    def __init__(self) -> None:
        super().__init__()
        self.stride = 1

    def admit(self, store: Any, batch: Any) -> int:
        return Policy.OPEN if batch.frame % self.stride == 0 else Policy.DROP

    def evict(self, store: Any, need: Any) -> list[Eviction]:
        while len(store.clusters(0)["id"]):
            born = store.clusters(0)["born"]
            gone = [b for b in born if b % self.stride] or ([born[0]] if self.stride > need.frame else [])
            if gone:
                return [
                    Eviction.drop(lane, c["id"][i])
                    for b in gone
                    for lane in range(store.lanes)
                    for c in [store.clusters(lane)]
                    for i in np.flatnonzero(c["born"] == b)
                ]
            self.stride *= 2
        return []


class Nearest(Policy):
    """By token, scenes, means, summaries, retrieval, every kind of eviction: all that the interface has."""

    def __init__(self) -> None:
        super().__init__(
            by_token=True,
            means=True,
            summaries=True,
            scenes=True,
            selects=True,
            attention_received=True,
            value_weight=1,
        )
        self.random = np.random.default_rng(3)
        self.calls: list[str] = []

    def scene(self, store: Any, embedding: Array) -> int | None:
        self.calls.append("scene")
        scenes = store.scenes()
        if not len(scenes["id"]) or self.random.random() < 0.1:
            return None
        return int(scenes["id"][np.argmin(((scenes["mean"] - embedding) ** 2).sum(1))])

    def admit(self, store: Any, batch: Any) -> Any:
        self.calls.append("admit")
        columns = store.clusters(batch.lane)
        assert batch.k.shape == batch.v.shape == (len(batch.attention_received), ROW)
        assert not batch.k.flags.writeable
        same = columns["id"][columns["scene"] == batch.scene]
        if not len(same):
            return None
        means = store.mean_k(batch.lane)[same].astype(np.float32)
        apart = ((batch.k[:, None] - means[None]) ** 2).sum(-1)
        near = apart.min(1) < 4
        return {
            "cluster": np.where(near, same[apart.argmin(1)], Policy.OPEN),
            "keep": ~near | (self.random.random(len(near)) < 0.8),
            "tag": np.full(len(near), 7),
        }

    def select(self, store: Any, query: Any) -> Array:
        self.calls.append("select")
        ids, scores = query.scores("mass")
        assert len(ids) == len(scores)
        return ids[np.argsort(-scores)]

    def evict(self, store: Any, need: Any) -> list[Eviction]:
        self.calls.append("evict " + need.kind)
        columns = store.clusters(need.lane)
        if need.kind == "clusters":
            return [Eviction.merge(need.lane, *columns["id"][:2])]
        tiers = store.tiers()
        for lane in [need.lane, *range(store.lanes)]:
            columns = store.clusters(lane)
            full = columns["id"][columns["members"] > 0]
            if len(full):
                c = int(full[self.random.integers(len(full))])
                members = int(columns["members"][columns["id"] == c][0])
                kind = self.random.integers(4)
                if kind == 0 and len(tiers) > 1:
                    return [Eviction.demote(lane, c, len(tiers) - 2)]
                if kind == 1:
                    return [Eviction.thin(lane, c, self.random.random(members) < 0.3)]
                return [Eviction.collapse(lane, c) if kind == 2 else Eviction.drop(lane, c)]
        return []


class Broken(Policy):
    """Does as told: raises, or returns something, from one method on one call."""

    def __init__(self, method: str, what: Any, after: int = 0, **needs: Any) -> None:
        super().__init__(**{"by_token": True, "means": True, "summaries": True, "selects": True, **needs})
        self.method, self.what, self.after = method, what, after

    def play(self, method: str, well: Any) -> Any:
        if method != self.method:
            return well()
        self.after -= 1
        if self.after >= 0:
            return well()
        if isinstance(self.what, BaseException):
            raise self.what
        return self.what(self) if callable(self.what) else self.what

    def admit(self, store: Any, batch: Any) -> Any:
        return self.play("admit", lambda: [Policy.OPEN] * len(batch.k) if len(batch.k) else True)

    def select(self, store: Any, query: Any) -> Any:
        return self.play("select", lambda: query.scores()[0])

    def evict(self, store: Any, need: Any) -> Any:
        if need.kind == "clusters":
            ids = store.clusters(need.lane)["id"]
            return self.play("evict", lambda: [Eviction.merge(need.lane, ids[0], ids[1])])
        return self.play("evict", list)
