"""World: a procedural video, deterministic by seed, of any length, rendered at any second and size.

world = World(seed=7, seconds=600, difficulty="lively")
frame = world.render(12.0)                     # uint8 [48, 48, 3]
questions = world.questions(at_seconds=600, rng=np.random.default_rng(0), n=12)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .paint import PAD, Image, draw_object, panorama
from .questions import Question, ask
from .script import FADE, Script, Sighting

Difficulty = Literal["plain", "lively"]
SEEDS = 1 << 63


def checked_seed(seed: int, knob: str = "seed") -> int:
    """`seed`, if a world has it. ValueError names the knob."""
    if not 0 <= seed < SEEDS:
        raise ValueError(f"{knob}={str(seed)[:40]}: expected 0 to {SEEDS - 1}")
    return int(seed)


class World:
    """A camera walks through rooms where objects appear, move and leave.

    `plain` has flat rooms and steady light; `lively` adds textures, clutter, camera pan, changing light and
    noise.
    """

    def __init__(self, seed: int, seconds: float, difficulty: Difficulty = "plain") -> None:
        if difficulty not in ("plain", "lively"):
            raise ValueError(f"difficulty={difficulty!r} is unknown; expected 'plain' or 'lively'")
        if not seconds > 0:
            raise ValueError(f"seconds={seconds!r} must be positive")
        self.seed, self.seconds, self.difficulty = checked_seed(seed), float(seconds), difficulty
        self.script = Script(self.seed)
        self._lively = difficulty == "lively"
        self._rooms: dict[tuple[str, int], Image] = {}
        drift = np.random.default_rng([self.seed, 2])
        self._phase = drift.uniform(0, 2 * math.pi, 8)
        self._rate = 2 * math.pi / np.exp(drift.uniform(math.log(5), math.log(40), 8))  # radians a second

    def room_at(self, t: float) -> str:
        """The room the camera is in at second `t`."""
        return self.script.visit_at(t).room

    def visible_at(self, t: float) -> list[Sighting]:
        """The sightings that are fully visible at second `t`."""
        return [s for s in self.script.visit_at(t).sightings if s.t0 <= t <= s.t1]

    def render(self, t_seconds: float, size: int = 48) -> NDArray[np.uint8]:
        """The frame at `t_seconds`, uint8 [size, size, 3]; the same call gives the same bytes."""
        if not 0 <= t_seconds <= self.seconds:
            raise ValueError(f"t_seconds={t_seconds!r} is outside this world of {self.seconds} s")
        t = float(t_seconds)
        visit = self.script.visit_at(t)
        pan_x, pan_y = self._pan(t)
        image = self._background(visit.room, size, pan_x, pan_y)
        for s in visit.sightings:
            grown = min((t - s.t0) / FADE + 1, (s.t1 - t) / FADE + 1, 1.0)
            if grown <= 0:
                continue
            way = min(max((t - s.t0) / (s.t1 - s.t0), 0.0), 1.0)
            x = s.start[0] + way * (s.end[0] - s.start[0]) + 0.5 * pan_x
            y = s.start[1] + way * (s.end[1] - s.start[1]) + 0.5 * pan_y
            draw_object(image, s.shape, s.colour, x, y, s.radius * grown)
        if self._lively:
            image *= self._light(t)
            grain = np.random.default_rng([self.seed, 3, round(t * 1000)])
            image += grain.standard_normal(image.shape, np.float32) * 7.0
        return np.clip(image + 0.5, 0, 255).astype(np.uint8)

    def questions(
        self, at_seconds: float, rng: np.random.Generator, n: int, kinds: Sequence[str] | None = None
    ) -> list[Question]:
        """At most `n` questions about [0, at_seconds], each with one right answer; fewer where fewer
        exist.
        """
        at = float(at_seconds)
        if not 0 <= at <= self.seconds:
            raise ValueError(f"at_seconds={at_seconds!r} is outside this world of {self.seconds} s")
        visit = self.script.visit_at(at)
        shown = [s for s in visit.sightings if s.t0 - FADE < at and s.t1 + FADE > at]
        steady = visit.t0 <= at - 1 and all(
            not (at - 1 < edge <= at + FADE)
            for s in visit.sightings
            for edge in (s.t0 - FADE, s.t0, s.t1, s.t1 + FADE)
        )
        now = (visit.room, tuple((s.shape, s.colour) for s in shown)) if steady else None
        return ask(self.script.sightings_until(at), now, at, rng, n, kinds)

    def _background(self, room: str, size: int, pan_x: float, pan_y: float) -> Image:
        key = (room, size)
        if key not in self._rooms:
            rng = np.random.default_rng([self.seed, 4, sum(map(ord, room))])
            self._rooms[key] = panorama(room, size, self._lively, rng)
        whole = self._rooms[key]
        margin = (whole.shape[0] - size) // 2
        x, y = margin - round(pan_x * size), margin - round(pan_y * size)
        return whole[y : y + size, x : x + size].copy()

    def _pan(self, t: float) -> tuple[float, float]:
        if not self._lively:
            return 0.0, 0.0
        a = np.sin(self._rate[:4] * t + self._phase[:4])
        return 0.5 * PAD * float(a[0] + a[1]) * 0.95, 0.25 * PAD * float(a[2] + a[3])

    def _light(self, t: float) -> NDArray[np.float32]:
        a = np.sin(self._rate[4:] * t + self._phase[4:])
        tint = np.array([1 + 0.05 * a[2], 1.0, 1 - 0.05 * a[2]])
        return ((0.92 + 0.13 * a[0] + 0.06 * a[1]) * tint).astype(np.float32)
