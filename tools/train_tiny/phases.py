"""The curriculum: what is trained when."""

from __future__ import annotations

from dataclasses import dataclass

from data import Spec


@dataclass(frozen=True)
class Phase:
    """Clips of one length, until the share of right answers reaches `target` (1.01: never) or `steps` are done.

    `rate` is the decoder's learning rate; the tower takes TOWER_SHARE of it. `decay` brings it to 3 % at the last step.
    `noise` is the grain of the cache in every second step, `int4` rounds the decoder's weights. The rest is
    explained in data.Spec.
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
    noise: float = 0.0
    int4: bool = False
    decay: bool = False

    def batch(self, seed: int) -> Spec:
        """The order for one batch of this phase."""
        sizes = (self.frames, self.clips, self.questions)
        return Spec(*sizes, seed, self.drop, self.jump, self.sparse, self.merge)


TOWER_STEPS, TOWER_BATCH = 2200, 128
TOWER_SHARE = 0.3

_LONG = {"drop": 0.4, "merge": 0.25, "noise": 0.1}

PHASES = (
    Phase("2 frames", 2, 32, 16, 900),
    Phase("3 frames", 3, 24, 20, 700),
    Phase("4 frames", 4, 24, 20, 500, jump=0.1),
    Phase("6 frames", 6, 16, 24, 400, jump=0.2, sparse=0.9),
    Phase("8 frames", 8, 16, 24, 400, drop=0.2, jump=0.3, sparse=0.8),
    Phase("12 frames", 12, 12, 24, 300, drop=0.3, jump=0.3, sparse=0.8),
    Phase("16 frames", 16, 10, 24, 300, drop=0.3, jump=0.4, sparse=0.7),
    Phase("32 frames", 32, 6, 24, 400, rate=1.2e-3, drop=0.4, jump=0.4, sparse=0.6, target=0.96),
    Phase("64 frames", 64, 4, 32, 500, rate=1e-3, target=0.97, jump=0.4, sparse=0.5, **_LONG),
    Phase("128 frames", 128, 3, 40, 500, rate=8e-4, target=0.98, jump=0.3, sparse=0.4, **_LONG),
    Phase("256 frames", 256, 2, 48, 400, rate=6e-4, target=1.01, jump=0.2, sparse=0.3, **_LONG),
    Phase("512 frames", 512, 1, 64, 500, rate=5e-4, target=1.01, jump=0.1, sparse=0.25, decay=True, **_LONG),
    Phase("int4", 512, 1, 64, 300, 2e-4, 1.01, jump=0.1, sparse=0.25, int4=True, decay=True, **_LONG),
)
