"""Questions with one right answer, drawn from what has been seen so far."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .words import NOTHING

KINDS = ("colour", "shape", "room", "two_keys", "first", "last", "now")
"""colour of a shape; shape of a colour; room of an object; colour of the shape in a room; first and last
object in a
room; what is seen now."""

CLEAR = 1.0
"""Seconds an object must be fully visible before anything is asked about it: one frame a second cannot miss
it."""

APART, APART_SHARE = 1.5, 0.15
"""First and last are apart from the next object by so many seconds, and by this share of the older's age."""


class Seen(Protocol):
    """What the questions need to know of a sighting."""

    @property
    def t0(self) -> float:
        """Seconds at which it is first fully visible."""

    @property
    def t1(self) -> float:
        """Seconds at which it is last fully visible."""

    @property
    def room(self) -> str:
        """Where."""

    @property
    def shape(self) -> str:
        """Its shape."""

    @property
    def colour(self) -> str:
        """Its colour."""


Now = tuple[str, tuple[tuple[str, str], ...]]
"""The room and the (shape, colour) pairs in sight."""


@dataclass(frozen=True)
class Question:
    """`evidence` is the last time range (s) that shows the answer; `delay` the seconds from its end to the
    asking; `sightings` every range that shows it, in order: on a long stream a thing comes again.
    """

    text: str
    answer: str
    kind: str
    evidence: tuple[float, float]
    delay: float
    sightings: tuple[tuple[float, float], ...] = ()


def ask(
    seen: Sequence[Seen],
    now: Now | None,
    at: float,
    rng: np.random.Generator,
    n: int,
    kinds: Sequence[str] | None = None,
) -> list[Question]:
    """At most `n` different questions at second `at`, kinds in turn, answers true and unique over all of
    `seen`.
    """
    wanted = tuple(kinds) if kinds is not None else KINDS
    unknown = [k for k in wanted if k not in KINDS]
    if unknown:
        raise ValueError(f"kinds={unknown} unknown; known: {' '.join(KINDS)}")
    pools = {kind: _pool(kind, seen, now, at) for kind in wanted}
    for pool in pools.values():
        order = rng.permutation(len(pool))
        pool[:] = [pool[i] for i in order]
    out: list[Question] = []
    while len(out) < n and any(pools.values()):
        for kind in wanted:
            if pools[kind] and len(out) < n:
                out.append(pools[kind].pop())
    return out


def _pool(kind: str, seen: Sequence[Seen], now: Now | None, at: float) -> list[Question]:
    """Every question of `kind` that has one answer."""
    if kind == "now":
        return _about_now(now, at)
    if kind in ("first", "last"):
        return _about_order(kind, seen, at)
    groups: dict[tuple[str, ...], list[Seen]] = defaultdict(list)
    for s in seen:
        if kind == "colour":
            groups[s.shape,].append(s)
        elif kind == "shape":
            groups[s.colour,].append(s)
        elif kind == "room":
            groups[s.colour, s.shape].append(s)
        else:
            groups[s.shape, s.room].append(s)
    out = []
    for key, members in groups.items():
        if kind == "colour":
            text, answers = f"what colour was the {key[0]} ?", {s.colour for s in members}
        elif kind == "shape":
            text, answers = f"what shape was the {key[0]} object ?", {s.shape for s in members}
        elif kind == "room":
            text, answers = f"where was the {key[0]} {key[1]} ?", {s.room for s in members}
        else:
            text, answers = f"what colour was the {key[0]} in the {key[1]} ?", {s.colour for s in members}
        clear = [s for s in members if _clear(s, at)]
        if len(answers) == 1 and clear:
            out.append(_question(text, answers.pop(), kind, clear, at))
    return out


def _clear(s: Seen, at: float) -> bool:
    return min(s.t1, at) - s.t0 >= CLEAR


def _question(text: str, answer: str, kind: str, shown: Sequence[Seen], at: float) -> Question:
    sightings = tuple((s.t0, min(s.t1, at)) for s in shown)
    return Question(text, answer, kind, sightings[-1], max(0.0, at - sightings[-1][1]), sightings)


def _about_order(kind: str, seen: Iterable[Seen], at: float) -> list[Question]:
    rooms: dict[str, list[Seen]] = defaultdict(list)
    for s in seen:
        rooms[s.room].append(s)
    out = []
    for room, members in rooms.items():
        ages = [at - s.t0 if kind == "first" else at - min(s.t1, at) for s in members]
        k = int(np.argmax(ages) if kind == "first" else np.argmin(ages))
        best = members[k]
        alone = all(i == k or abs(a - ages[k]) >= _margin(max(a, ages[k])) for i, a in enumerate(ages))
        if alone and _clear(best, at) and len({s.shape for s in members}) > 1:
            text = f"what was the {kind} object in the {room} ?"
            out.append(_question(text, best.shape, kind, [best], at))
    return out


def _margin(age: float) -> float:
    return max(APART, APART_SHARE * age)


def _about_now(now: Now | None, at: float) -> list[Question]:
    if now is None:
        return []
    room, objects = now
    evidence, out = (max(0.0, at - 1), at), []
    out.append(Question("which room is seen now ?", room, "now", evidence, 0.0, (evidence,)))
    if not objects:
        out.append(Question("what is seen now ?", NOTHING, "now", evidence, 0.0, (evidence,)))
    if len(objects) == 1:
        out.append(Question("what is seen now ?", objects[0][0], "now", evidence, 0.0, (evidence,)))
        out.append(Question("what colour is seen now ?", objects[0][1], "now", evidence, 0.0, (evidence,)))
    return out
