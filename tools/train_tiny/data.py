"""Training clips: frames of worlds, what was seen in them, and questions whose answer the kept frames still
show.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from layout import EOS, PAD, TOKENS_PER_FRAME, WORD_ID
from numpy.typing import NDArray

from mosaic_edge.world import COLOURS, KINDS, ROOMS, SHAPES, World
from mosaic_edge.world.questions import Now, Question, ask
from mosaic_edge.world.script import FADE, Sighting
from mosaic_edge.world.words import split_words

LENGTH = 10
"""Tokens a question takes with its answer."""


@dataclass(frozen=True)
class Spec:
    """One batch: `clips` clips of `frames` frames with `questions` each. `drop`: share of clips that lose
    frames;
    `jump`: share of clips whose frames stand at scattered positions; `sparse`: share not sampled at 1 fps.
    """

    frames: int
    clips: int
    questions: int
    seed: int
    drop: float = 0.0
    jump: float = 0.0
    sparse: float = 0.5
    merge: float = 0.0
    hard: int = 1
    few: float = 0.5


@dataclass(frozen=True)
class Batch:
    """frames u8 [B, N, 48, 48, 3]; words [B, Q, L]; size [B, Q] words of each question; answer [B, Q];
    positions [B, T]; start [B]; bias [B, T]: 0, -inf for a dropped token, log n for the mean of n;
    group [B, T]: the token that stands for this one after averaging (mostly itself)."""

    frames: NDArray[np.uint8]
    words: NDArray[np.int64]
    size: NDArray[np.int64]
    answer: NDArray[np.int64]
    positions: NDArray[np.int64]
    start: NDArray[np.int64]
    bias: NDArray[np.float32]
    group: NDArray[np.int64]


@dataclass(frozen=True)
class _Seen:
    t0: float
    t1: float
    room: str
    shape: str
    colour: str


def random_world(rng: np.random.Generator) -> World:
    """A fresh world of either difficulty, as long as anybody wants."""
    lively = rng.random() < 0.6
    return World(int(rng.integers(1 << 40)) + (1 << 20), 1e6, "lively" if lively else "plain")


def augment(frames: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """What a codec and a resize do to a clip [N, 48, 48, 3]: a little blur, gain, offset and grain."""
    if rng.random() < 0.35:
        return frames
    x = frames.astype(np.float32)
    blur = rng.uniform(0, 0.6) * (rng.random() < 0.5)
    if blur:
        side = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        near = (side[:, :-2, 1:-1] + side[:, 2:, 1:-1] + side[:, 1:-1, :-2] + side[:, 1:-1, 2:]) / 4
        x += blur * (near - x)
    x *= rng.uniform(0.94, 1.06)
    x += rng.uniform(-4, 4, 3).astype(np.float32)
    x += rng.standard_normal(x.shape, np.float32) * np.float32(rng.uniform(0, 6))
    return np.clip(x + 0.5, 0, 255).astype(np.uint8)


def clip_times(world: World, n: int, sparse: bool, rng: np.random.Generator, few: float = 0.0) -> list[float]:
    """`n` rising times: one a second, or jumping from sighting to sighting so that every frame brings
    something.
    """
    if not sparse:
        begin = float(rng.uniform(0, 40))
        return [begin + i for i in range(n)]
    horizon = 16.0 * n + 30
    sightings = world.script.sightings_until(horizon)
    if rng.random() < few:
        rooms = rng.permutation(sorted({s.room for s in sightings}))[: max(1, round(n / rng.uniform(2, 7)))]
        sightings = [s for s in sightings if s.room in rooms]
    per_frame = rng.uniform(1, 2.5) if rng.random() < 0.4 else 1.0
    chosen = sorted(
        rng.choice(len(sightings), min(len(sightings), max(1, int(n / per_frame))), replace=False)
    )
    times = []
    for i in range(n):
        s = sightings[chosen[i * len(chosen) // n]]
        times.append(float(rng.uniform(s.t0, s.t1)) if rng.random() < 0.9 else float(rng.uniform(0, horizon)))
    return sorted(times)


def objects_at(world: World, t: float) -> list[Sighting]:
    """What counts as seen in the frame at `t`: everything at least two thirds grown."""
    return [s for s in world.script.visit_at(t).sightings if s.t0 - FADE / 3 <= t <= s.t1 + FADE / 3]


def questions_of(
    world: World,
    times: list[float],
    stamps: NDArray[np.float64],
    rng: np.random.Generator,
    n: int,
    hard: int = 1,
) -> list[Question]:
    """Questions over the frames at `times` alone, as if seen at `stamps` (in frames)."""
    seen: list[_Seen] = []
    open_runs: dict[int, tuple[int, float]] = {}
    for i, t in enumerate(times):
        runs: dict[int, tuple[int, float]] = {}
        for s in objects_at(world, t):
            index, begin = open_runs.get(id(s), (len(seen), float(stamps[i])))
            entry = _Seen(begin, float(stamps[i]) + 1.2, s.room, s.shape, s.colour)
            if index == len(seen):
                seen.append(entry)
            else:
                seen[index] = entry
            runs[id(s)] = (index, begin)
        open_runs = runs
    now: Now = (world.room_at(times[-1]), tuple((s.shape, s.colour) for s in objects_at(world, times[-1])))
    kinds = (*KINDS, *(("two_keys", "first", "last") * (hard - 1)))
    return ask(seen, now, float(stamps[-1]) + 1.2, rng, n, kinds)


def encode(question: str, answer: str) -> tuple[list[int], int]:
    """Padded ids of question and answer, and how many of them are the question's."""
    ids = [WORD_ID[w] for w in split_words(question)]
    return (ids + [WORD_ID[answer]] + [PAD] * LENGTH)[:LENGTH], len(ids)


def _kept_frames(n: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    keep = rng.random(n) < np.exp(rng.uniform(np.log(0.1), 0))
    keep[n - int(rng.integers(1, 5)) :] = True
    return keep


def _merged_frames(
    world: World, times: list[float], keep: NDArray[np.bool_], rng: np.random.Generator
) -> NDArray[np.int64]:
    """For each frame the first frame of its run: kept frames alike, at most 4 of an object."""
    first = np.arange(len(times))
    longest, shorter = int(rng.integers(2, 24)), int(rng.integers(1, 5))
    last, run, state = 0, 0, ""
    for i, t in enumerate(times):
        objects = objects_at(world, t)
        here = world.room_at(t) + " ".join(f"{s.t0} {s.shape}" for s in objects)
        limit = shorter if objects else longest
        if not keep[i]:
            continue
        if here == state and run < limit:
            first[i], run = last, run + 1
        else:
            last, run, state = i, 1, here
    return first


def make_batch(spec: Spec) -> Batch:
    """Everything of one batch, the same for the same spec."""
    rng = np.random.default_rng([spec.seed, spec.frames, 77])
    b, n, q, p = spec.clips, spec.frames, spec.questions, TOKENS_PER_FRAME
    frames = np.zeros((b, n, 48, 48, 3), np.uint8)
    words = np.full((b, q, LENGTH), PAD, np.int64)
    size, answer = np.ones((b, q), np.int64), np.full((b, q), -100, np.int64)
    positions, start = np.zeros((b, n * p), np.int64), np.zeros(b, np.int64)
    bias, group = np.zeros((b, n * p), np.float32), np.tile(np.arange(n * p), (b, 1))
    for i in range(b):
        world = random_world(rng)
        times = clip_times(world, n, rng.random() < spec.sparse, rng, spec.few)
        frames[i] = augment(np.stack([world.render(t) for t in times]), rng)
        keep = np.ones(n, bool)
        if rng.random() < spec.drop and n > 2:
            keep = _kept_frames(n, rng)
        gaps = np.zeros(n, np.int64)
        if rng.random() < spec.jump:
            hit = rng.random(n) < rng.uniform(0, 1)
            gaps = (hit * np.exp(rng.uniform(0, np.log(max(32, 16000 / n)), n))).astype(np.int64)
        stamps = np.cumsum(keep + gaps / p)
        seen_times = [t for t, k in zip(times, keep, strict=True) if k]
        asked = questions_of(world, seen_times, stamps[keep], rng, 4 * q, spec.hard)
        if not keep.all():
            truth = {x.text: x.answer for x in questions_of(world, times, stamps, rng, 10_000)}
            asked = [x for x in asked if truth.get(x.text) == x.answer]
        for j in range(q if asked else 0):
            x = asked[j] if j < len(asked) else asked[int(rng.integers(len(asked)))]
            words[i, j], size[i, j] = encode(x.text, x.answer)
            answer[i, j] = WORD_ID[x.answer]
        token = np.repeat(keep, p)
        if not keep.all() and rng.random() < 0.4:
            token &= (rng.random(n * p) > rng.uniform(0, 0.25)) | (np.arange(n * p) >= (n - 1) * p)
        stands = token
        if rng.random() < spec.merge:
            first = _merged_frames(world, times, keep, rng)
            group[i] = (first[:, None] * p + np.arange(p)).ravel()
            token &= token[group[i]]
            stands = token & (group[i] == np.arange(n * p))
        count = np.bincount(group[i][token], minlength=n * p)
        step = stands.astype(np.int64)
        step.reshape(n, p)[:, 0] += gaps
        after = np.cumsum(step)
        positions[i], start[i] = after - 1, after[-1]
        group[i][~token] = np.arange(n * p)[~token]
        bias[i] = np.where(stands, np.log(np.maximum(count, 1)), -np.inf)
    return Batch(frames, words, size, answer, positions, start, bias, group)


def labelled_frames(seed: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """For the tower alone: frames [F, 48, 48, 3], rooms [F], and per token [F, 16, 2] its shape and colour
    (0 none).
    """
    rng = np.random.default_rng([seed, 99])
    frames, rooms, labels = [], [], []
    while len(frames) < count:
        world = random_world(rng)
        times = clip_times(world, 8, True, rng)
        shots = augment(np.stack([world.render(t) for t in times]), rng)
        for shot, t in zip(shots, times, strict=True):
            frames.append(shot)
            rooms.append(ROOMS.index(world.room_at(t)))
            labels.append(_token_labels(world, t))
    return np.stack(frames[:count]), np.array(rooms[:count]), np.stack(labels[:count])


def _token_labels(world: World, t: float) -> NDArray[np.int64]:
    out = np.zeros((TOKENS_PER_FRAME, 2), np.int64)
    centre = (np.arange(4) + 0.5) / 4
    pan_x, pan_y = world._pan(t)
    for s in objects_at(world, t):
        way = (t - s.t0) / (s.t1 - s.t0)
        x = s.start[0] + way * (s.end[0] - s.start[0]) + 0.5 * pan_x
        y = s.start[1] + way * (s.end[1] - s.start[1]) + 0.5 * pan_y
        reach_x, reach_y = np.abs(centre - x)[None, :] - 0.125, np.abs(centre - y)[:, None] - 0.125
        near = np.hypot(np.maximum(reach_x, 0), np.maximum(reach_y, 0)) < 0.7 * s.radius
        out[near.ravel()] = (SHAPES.index(s.shape) + 1, COLOURS.index(s.colour) + 1)
    return out


__all__ = ["EOS", "LENGTH", "Batch", "Spec", "encode", "labelled_frames", "make_batch"]
