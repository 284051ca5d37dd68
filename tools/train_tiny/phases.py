"""The curriculum: what is trained when."""

from __future__ import annotations

from dataclasses import dataclass

from data import Spec


@dataclass(frozen=True)
class Phase:
    """Clips of one length, until the share of right answers reaches `target` (1.01: never) or `steps` are
    done.

    `rate` is the decoder's learning rate; the tower takes TOWER_SHARE of it. `decay` brings it to 3 % at the
    last step. `order_weight` is what a question of first or last weighs in the loss. `noise` is the
    grain of the cache in every second step, `int4` rounds the decoder's weights. The rest: data.Spec.
    """

    name: str
    frames: int
    clips: int
    questions: int
    steps: int
    rate: float = 1.5e-3
    target: float = 0.90
    drop: float = 0.0
    jump: float = 0.0
    sparse: float = 1.0
    merge: float = 0.0
    hard: int = 2
    few: float = 0.5
    order_weight: float = 4.0
    noise: float = 0.0
    int4: bool = False
    decay: bool = False

    def batch(self, seed: int) -> Spec:
        """The order for one batch; in a long phase every third one reviews short, scattered clips."""
        if self.frames > 32 and seed % 3 == 2:
            frames = (4, 6, 8, 12)[seed // 3 % 4]
            return Spec(frames, 96 // frames, 16, seed, jump=0.9, sparse=1.0, hard=3, few=0.9)
        sizes = (self.frames, self.clips, self.questions)
        return Spec(*sizes, seed, self.drop, self.jump, self.sparse, self.merge, self.hard, self.few)


TOWER_STEPS, TOWER_BATCH = 2200, 128
TOWER_SHARE = 0.3
GRADIENT_FRAMES = 128
"""Longer clips train the questions' side alone, over a cache that is computed without gradient."""

_LONG = {"drop": 0.4, "merge": 0.25, "noise": 0.1, "order_weight": 2.5}

PHASES = (
    Phase("2 frames", 2, 32, 16, 900),
    Phase("3 frames", 3, 24, 20, 500, few=0.3),
    Phase("4 frames", 4, 24, 16, 400, target=0.92, hard=3, few=0.8),
    Phase("6 frames", 6, 16, 20, 300, target=0.92, hard=3, few=0.8),
    Phase("8 frames", 8, 12, 20, 300, target=0.92, jump=0.1, hard=3, few=0.7),
    Phase("12 frames", 12, 8, 24, 250, target=0.92, drop=0.1, jump=0.1, sparse=0.9, hard=2, few=0.6),
    Phase("order of 3", 3, 32, 6, 120, target=0.97, jump=1.0, few=1.0),
    Phase("order of 4", 4, 24, 8, 110, target=0.97, jump=1.0, few=1.0),
    Phase("order of 6", 6, 16, 12, 250, target=0.97, jump=0.9, few=1.0, hard=3),
    Phase("order of 10", 10, 12, 16, 300, target=0.97, jump=0.9, few=0.9, hard=3),
    Phase("16 frames", 16, 8, 24, 300, target=0.97, jump=0.8, sparse=0.9, hard=3, few=0.9),
    Phase("32 frames", 32, 5, 24, 300, target=0.97, drop=0.1, jump=0.6, sparse=0.8, hard=3),
    Phase("64 frames", 64, 3, 32, 200, rate=1.2e-3, target=0.98, jump=0.4, sparse=0.6, hard=3, **_LONG),
    Phase("128 frames", 128, 2, 40, 300, 1.2e-3, 0.99, jump=0.3, sparse=0.4, hard=3, int4=True, **_LONG),
    Phase("256 frames", 256, 1, 48, 350, 1e-3, 1.01, jump=0.2, sparse=0.3, int4=True, **_LONG),
    Phase("512 frames", 512, 1, 36, 400, 1e-3, 1.01, jump=0.1, sparse=0.25, int4=True, decay=True, **_LONG),
)
