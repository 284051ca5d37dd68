"""A policy of one's own, asked the same questions under the same cap as others: python examples/own_policy.py

It keeps half the tokens of a frame, those whose values are long: they move an answer most.
"""

import sys

import numpy as np

from mosaic_edge import Engine, Eviction, Policy
from mosaic_edge.world import KINDS, World


class LongValues(Policy):
    def __init__(self, keep=0.5):
        super().__init__(by_token=True)
        self.keep = keep

    def admit(self, store, batch):
        lengths = np.linalg.norm(batch.v, axis=1)
        return lengths >= np.quantile(lengths, 1 - self.keep)

    def evict(self, store, need):
        columns = [store.clusters(lane) for lane in range(store.lanes)]
        oldest = min(c["born"].min() for c in columns if len(c["id"]))
        return [
            Eviction.drop(lane, c["id"][i])
            for lane, c in enumerate(columns)
            for i in np.flatnonzero(c["born"] == oldest)
        ]


def right(engine, policy, seconds=300, memory="512KiB", seed=7):
    """How many of 24 questions about what is long gone are answered right."""
    world = World(seed, seconds, "plain")
    asked = world.questions(seconds - 1, np.random.default_rng(seed), 24, KINDS)
    with engine.session(memory=memory, policy=policy) as session:
        for second in range(seconds):
            session.append(world.render(second), float(second))
        return sum(session.ask(q.text).text.split()[:1] == [q.answer] for q in asked)


def main(seconds=300):
    engine = Engine.load("mosaic-tiny")
    for policy in ("edge", "window", LongValues()):
        name = policy if isinstance(policy, str) else type(policy).__name__
        print(f"{name:12s} {right(engine, policy, int(seconds))} of 24 right")


if __name__ == "__main__":
    main(*sys.argv[1:])
