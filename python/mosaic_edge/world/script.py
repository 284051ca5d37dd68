"""The script of a world: which room is visited when, and which object is seen from when to when.

A world has its own table of facts (room, shape, colour), drawn once; visits and sightings are drawn from it
one after
the other, as far as somebody asks, so a world may last for hours and costs nothing until it is looked at.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from .words import COLOURS, ROOMS, SHAPES

FADE = 0.3
"""Seconds an object takes to grow before a sighting and to shrink after it."""

SHAPES_PER_ROOM = 4
SOLO = 2


@dataclass(frozen=True)
class Sighting:
    """One object fully visible from t0 to t1 seconds, moving straight from `start` to `end` (x, y, share of
    frame).
    """

    t0: float
    t1: float
    room: str
    shape: str
    colour: str
    start: tuple[float, float]
    end: tuple[float, float]
    radius: float


@dataclass(frozen=True)
class Visit:
    """The camera is in `room` from t0 to t1 seconds."""

    t0: float
    t1: float
    room: str
    sightings: tuple[Sighting, ...]


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(math.exp(rng.uniform(math.log(low), math.log(high))))


def draw_facts(rng: np.random.Generator) -> dict[str, list[tuple[str, str]]]:
    """Room -> [(shape, colour)]: shapes differ within a room; SOLO shapes and SOLO colours live in one fact
    only.
    """
    shapes = [SHAPES[i] for i in rng.permutation(len(SHAPES))]
    colours = [COLOURS[i] for i in rng.permutation(len(COLOURS))]
    common_shapes, common_colours = shapes[SOLO:], colours[SOLO:]
    pairs = [(s, c) for s in common_shapes for c in common_colours]
    facts: dict[str, list[tuple[str, str]]] = {room: [] for room in ROOMS}
    left: list[tuple[str, str]] = []
    for r in rng.permutation(len(ROOMS)):
        room = ROOMS[r]
        while len(facts[room]) < SHAPES_PER_ROOM:
            if not left:
                left = [pairs[i] for i in rng.permutation(len(pairs))]
            taken = {s for s, _ in facts[room]}
            pick = next((i for i, (s, _) in enumerate(left) if s not in taken), None)
            if pick is None:
                left = []
            else:
                facts[room].append(left.pop(pick))
    for i in range(SOLO):
        home = ROOMS[int(rng.integers(len(ROOMS)))]
        facts[home].append((shapes[i], common_colours[int(rng.integers(len(common_colours)))]))
        home = ROOMS[int(rng.integers(len(ROOMS)))]
        free = [s for s in common_shapes if s not in {s for s, _ in facts[home]}]
        if free:
            facts[home].append((free[int(rng.integers(len(free)))], colours[i]))
    return facts


class Script:
    """Visits one after the other, drawn on demand and always the same for one seed."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng([seed, 1])
        self.facts = draw_facts(self._rng)
        self._unseen = {room: list(facts) for room, facts in self.facts.items()}
        self._starts: list[float] = []
        self._visits: list[Visit] = []
        self._end = 0.0

    def visit_at(self, t: float) -> Visit:
        """The visit that covers second `t`."""
        while self._end <= t:
            self._add_visit()
        return self._visits[bisect_right(self._starts, t) - 1]

    def visits_until(self, t: float) -> list[Visit]:
        """All visits that began at or before `t`."""
        self.visit_at(t)
        return self._visits[: bisect_right(self._starts, t)]

    def sightings_until(self, t: float) -> list[Sighting]:
        """All sightings of which anything could be seen at or before `t`, by t0."""
        return [s for v in self.visits_until(t) for s in v.sightings if s.t0 - FADE < t]

    def _draw_fact(self, room: str) -> tuple[str, str]:
        rng, unseen = self._rng, self._unseen[room]
        if unseen and rng.random() < 0.6:
            return unseen[int(rng.integers(len(unseen)))]
        return self.facts[room][int(rng.integers(len(self.facts[room])))]

    def _add_visit(self) -> None:
        rng = self._rng
        others = [r for r in ROOMS if not self._visits or r != self._visits[-1].room]
        room = others[int(rng.integers(len(others)))]
        begin = cursor = self._end
        sightings: list[Sighting] = []
        for _ in range(int(rng.choice([0, 1, 2, 3], p=[0.1, 0.4, 0.35, 0.15]))):
            shape, colour = self._draw_fact(room)
            previous = sightings[-1] if sightings else None
            overlap = (
                previous is not None
                and cursor == previous.t1
                and (len(sightings) < 2 or sightings[-2].t1 < previous.t0)
                and previous.shape != shape
                and abs(previous.start[0] - 0.5) > 0.12
                and rng.random() < 0.5
            )
            if overlap and previous is not None:
                t0 = float(rng.uniform(previous.t0 + 1.0, previous.t1))
                left = previous.start[0] > 0.5
            else:
                t0 = cursor + FADE * 2 + _log_uniform(rng, 0.5, 6.0)
                left = bool(rng.random() < 0.5)
            near, far = (0.22, 0.34) if left else (0.66, 0.78)
            x0, x1 = rng.uniform(near, far, 2)
            y0, y1 = rng.uniform(0.27, 0.73, 2)
            t1 = t0 + _log_uniform(rng, 2.0, 16.0)
            radius = float(rng.uniform(0.14, 0.19))
            ends = (float(x0), float(y0)), (float(x1), float(y1))
            sightings.append(Sighting(t0, t1, room, shape, colour, *ends, radius))
            if (shape, colour) in self._unseen[room]:
                self._unseen[room].remove((shape, colour))
            cursor = max(cursor, t1)
        self._end = cursor + FADE * 2 + _log_uniform(rng, 1.0, 6.0)
        self._starts.append(begin)
        self._visits.append(Visit(begin, self._end, room, tuple(sightings)))
