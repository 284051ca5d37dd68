"""A policy in Python that does anything it may, and now and then what it may not."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from mosaic_edge import Eviction, Policy


class RaisedError(Exception):
    """What the policy raises on purpose."""


class RandomPolicy(Policy):
    """Choices by chance; `wrong` of a hundred are none at all."""

    def __init__(self, rng: random.Random, wrong: int = 3) -> None:
        by_token, means = rng.random() < 0.7, rng.random() < 0.6
        scenes = rng.random() < 0.3
        self.asks = {
            "by_token": by_token,
            "per_head": rng.random() < 0.3,
            "means": means,
            "summaries": means and rng.random() < 0.6,
            "scenes": scenes,
            "selects": rng.random() < 0.7,
            "attention_received": rng.random() < 0.3,
            "unbounded": by_token and rng.random() < 0.3,
            "frames": rng.choice([1, 1, 2, 4]) if by_token and not scenes else 1,
            "clusters": rng.choice([0, 0, 3, 20]),
            "value_weight": rng.choice([0.0, 0.5]),
        }
        super().__init__(**self.asks)
        self.rng, self.wrong = rng, wrong
        self.memory: Any = None

    def state(self) -> bytes:
        """Nothing but chance, as long as it likes."""
        return self.rng.randbytes(self.rng.choice([0, 1, 1000]))

    def set_state(self, state: bytes) -> None:
        """Of `state`."""
        if len(state) not in (0, 1, 1000):
            raise ValueError(f"{len(state)} bytes are no state of this policy")

    def _maybe_wrong(self) -> bool:
        """Raise, or call the memory that is asking; True: give back what is no answer."""
        if self.rng.randrange(100) >= self.wrong:
            return False
        kind = self.rng.randrange(3)
        if kind == 0:
            raise RaisedError
        if kind == 1 and self.memory is not None:
            calls = [
                self.memory.abort,
                self.memory.close_question,
                self.memory.commit,
                lambda: self.memory.begin_text(1),
                self.memory.check_invariants,
                self.memory.evidence,
                self.memory.stats,
            ]
            self.rng.choice(calls)()
        return kind == 2

    def admit(self, store: Any, batch: Any) -> Any:
        rng = self.rng
        if self._maybe_wrong():
            return rng.choice([[999_999] * 3, "no", np.zeros(999, int), {"tag": [1 << 40]}, object()])
        if not self.asks["by_token"]:
            return rng.choice([None, True, False, Policy.OPEN])
        n = len(batch.k)
        kind = rng.randrange(4)
        if kind == 0:
            return None
        if kind == 1:
            return np.array([rng.random() < 0.6 for _ in range(n)])
        live = [int(c) for c in store.clusters(batch.lane)["id"]]
        labels = [rng.choice([*live, Policy.OPEN, Policy.DROP]) for _ in range(n)]
        if kind == 2:
            return labels
        columns: dict[str, list[int]] = {
            "cluster": labels,
            "tag": [rng.randrange(256) for _ in range(n)],
            "together": [rng.choice([-1, 0, 1, 7]) for _ in range(n)],
        }
        if self.asks["means"]:
            columns["keep"] = [rng.random() < 0.5 for _ in range(n)]
        return columns

    def evict(self, store: Any, need: Any) -> Any:
        rng = self.rng
        if self._maybe_wrong():
            return rng.choice([3, ["x"], [Eviction.drop(9999, 0)], [Eviction.drop(0, -1)]])
        found, named = [], set()
        for _ in range(rng.randrange(6)):
            lane = need.lane if rng.random() < 0.7 else rng.randrange(store.lanes)
            columns = store.clusters(lane)
            if len(columns["id"]) == 0:
                continue
            at = rng.randrange(len(columns["id"]))
            one, other = int(columns["id"][at]), int(rng.choice(list(columns["id"])))
            kind = rng.choice(["drop", "collapse", "merge", "demote", "thin"])
            if (lane, one) in named or (kind == "merge" and (one == other or (lane, other) in named)):
                continue
            named.add((lane, one))
            if kind == "merge":
                named.add((lane, other))
                found.append(Eviction.merge(lane, one, other))
            elif kind == "demote":
                found.append(Eviction.demote(lane, one, 0))
            elif kind == "thin":
                keep = [rng.random() < 0.5 for _ in range(int(columns["members"][at]))]
                found.append(Eviction.thin(lane, one, keep))
            elif kind == "collapse" and self.asks["means"]:
                found.append(Eviction.collapse(lane, one))
            else:
                found.append(Eviction.drop(lane, one))
        return found

    def select(self, store: Any, query: Any) -> Any:
        rng = self.rng
        if self._maybe_wrong():
            return rng.choice([[12_345_678], [0, 0, 0], "x", np.zeros((2, 2))])
        live = list(store.clusters(query.lane)["id"])
        rng.shuffle(live)
        if self.asks["means"] and rng.random() < 0.1:
            query.scores(rng.choice(["mass", "dot"]))
        return live[: rng.randrange(len(live) + 1)]

    def scene(self, store: Any, embedding: Any) -> int | None:
        known = store.scenes()["id"]
        return int(self.rng.choice(list(known))) if len(known) and self.rng.random() < 0.5 else None
