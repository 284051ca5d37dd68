"""One cell of an evaluation: a session of its own over one recorded stream, asked, timed and sampled."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mosaic_edge import _core
from mosaic_edge.config import SessionConfig
from mosaic_edge.engine import Engine, Reply, Session
from mosaic_edge.evaluation.replay import EncodedStream, ReplayVlm, load_stream
from mosaic_edge.evaluation.variants import FULL, Cell, Variant
from mosaic_edge.sampling import SamplingParams
from mosaic_edge.world import Question

Row = dict[str, Any]

SAMPLES = 64
"""Times at which memory is looked at."""
QUANTILES = 1001
"""A cell keeps so many quantiles of its frame times, not one number a frame."""
TURNS = 8
"""Questions in a row of the multi-turn part."""


def full_cache_bytes(engine: Engine, frames: int) -> int:
    """Bytes of keys and values of `frames` frames at 16 bits: what a share of the cap is a share of."""
    return frames * engine.spec.tokens_per_frame * engine.spec.kv_bytes_per_token


def smallest_full_cap(engine: Engine, frames: int, **settings: Any) -> int:
    """The least cap in bytes under which `full` holds `frames` frames, found by planning alone."""
    pages = -(-engine.spec.tokens_per_frame // 16) * engine.spec.layers

    def holds(cap: int) -> bool:
        try:
            plan = engine.plan(memory=cap, policy=FULL, **settings)
        except _core.MemoryCapError:
            return False
        return bool(sum(tier["pages"] for tier in plan["tiers"]) >= pages * frames)

    low, high = 0, full_cache_bytes(engine, frames)
    while not holds(high):
        low, high = high, 2 * high
    while high - low > 4096:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def session_settings(variant: Variant, base: dict[str, Any]) -> dict[str, Any]:
    """Fields of SessionConfig of a variant, over those that all share."""
    return {
        **base,
        **variant.session,
        "policy": variant.policy,
        "policy_settings": dict(variant.policy_settings),
    }


def retrieves(engine: Engine, variant: Variant, base: dict[str, Any]) -> bool:
    """Does the policy read a part of what is stored, so that a disk tier makes sense?

    The core does not say; but only such a policy's plan depends on retrieve_tokens.
    """
    config = {"disk": "1GiB", **session_settings(variant, base), "memory": "1GiB"}
    few, many = (engine.plan(**{**config, "retrieve_tokens": n})["parts"] for n in (64, 4096))
    return bool(few != many)


def run_cell(
    engine: Engine, folder: Path, cell: Cell, base: dict[str, Any]
) -> tuple[Row, NDArray[np.float32] | None]:
    """Stream `folder` through a session; returns what build_row takes, and the first-token logits [Q, vocab].

    A frame's time is what its encoding and decoding took when the stream was recorded plus what appending it
    takes here: begin_frame, attend of every layer, commit. Without a trace (a model that is not windowed, or
    other numerics than recorded) the decoder runs here and is measured here. Where the cap is impossible the
    result holds `error`, and no answers.
    """
    began = time.perf_counter()
    stream = load_stream(folder)
    frames = len(stream.tokens)
    more = session_settings(cell.variant, base)
    full = full_cache_bytes(engine, frames)
    if cell.variant.policy == FULL:
        policy = {name: value for name, value in more.items() if name != "policy"}
        cap = smallest_full_cap(engine, frames, **policy)
    else:
        cap = cell.cap.bytes_of(full)
    if cell.disk:
        more["disk"] = cell.disk
    traced = stream.traced(SessionConfig(**more)) and _window_is_exact(engine, cap, more)
    row: Row = {
        "policy": cell.label, "difficulty": stream.difficulty, "frames": frames, "seed": stream.seed,
        "cap": cell.cap.label, "cap_share": cell.cap.share_of(full), "cap_bytes": cap,
        "disk_bytes": cell.disk, "reference": cell.variant.policy == FULL,
        "selects": retrieves(engine, cell.variant, base), "traced": traced,
    }  # fmt: skip
    run = _Run(engine, stream, traced)
    try:
        with Engine(ReplayVlm(engine.model, stream, decode=not traced)).session(
            memory=cap, **more
        ) as session:
            run.go(session)
    except _core.MemoryCapError as error:
        return {**row, "error": str(error)}, None
    row |= run.found | {"seconds": round(time.perf_counter() - began, 3)}
    return row, np.stack(run.logits) if run.logits else None


def _window_is_exact(engine: Engine, cap: int, settings: dict[str, Any]) -> bool:
    """Do a windowed model's frames see each other as they were, as they did when they were recorded?"""
    try:
        plan = engine.plan(memory=cap, **settings)
    except _core.MemoryCapError:
        return True  # there will be no session
    return bool(plan["window_codec"] == SessionConfig(**settings).exact)


class _Run:
    """What is gathered while a stream goes through one session."""

    def __init__(self, engine: Engine, stream: EncodedStream, traced: bool) -> None:
        self.engine, self.stream, self.traced = engine, stream, traced
        self.found: Row = {}
        self.logits: list[NDArray[np.float32]] = []

    def go(self, session: Session) -> None:
        stream = self.stream
        frames = len(stream.tokens)
        took = np.array(stream.encode_ms, np.float64) + (stream.decode_ms if self.traced else 0.0)
        samples = set(np.linspace(0, frames - 1, min(SAMPLES, frames)).round().astype(int).tolist())
        curve: list[tuple[int, Row]] = []
        answers: list[Row] = []
        for index in range(frames):
            ticket = ReplayVlm.ticket(index)
            began = time.perf_counter()
            session.append(ticket, float(index))
            took[index] += 1e3 * (time.perf_counter() - began)
            answers += [self.ask(session, q, index + 1) for q in stream.questions.get(index, ())]
            if index in samples:
                curve.append((index, session.memory()))
        stats = session.memory()  # before the multi-turn part, which reads more
        last = stream.questions.get(frames - 1, [])[:TURNS]
        self.found = {
            "answers": answers,
            "frame_ms": np.quantile(took, np.linspace(0, 1, min(QUANTILES, frames))).round(4).tolist(),
            "memory": stats,
            "curve": _curve(curve),
            "order_independent": self.turns(session, last),
        }

    def ask(self, session: Session, question: Question, frames: int) -> Row:
        """The question with what was said, which moments were read, and how long that took."""
        reply = self._reply(session, question)
        self.logits.append(np.array(reply.logits, np.float32))
        fps = self.engine.spec.fps
        half = 0.5 / fps
        shown = [(start - half, end + half) for start, end in question.sightings]
        named = reply.evidence
        return {
            **asdict(question),
            "frames": frames,
            "said": reply.text,
            "right": reply.text.split()[:1] == [question.answer],
            "evidence_read": any(r.start <= end and start <= r.end for r in named for start, end in shown),
            "evidence_by_chance": named_by_chance([r.end - r.start for r in named], shown, frames / fps),
            "retrieved": any(_retrieved(reply, start, end) for start, end in shown),
            "moments_full": reply.moments_lost > 0,
            "first_token_ms": round(1e3 * reply.first_token_seconds, 4),
        }

    def turns(self, session: Session, questions: list[Question]) -> Row | None:
        """The same questions in a row, then in another order, then the first again: how many answers stay."""
        if len(questions) < 2:
            return None
        other = np.random.default_rng([self.stream.seed, 11]).permutation(len(questions)).tolist()
        said: dict[int, set[str]] = {i: set() for i in range(len(questions))}
        for i in [*range(len(questions)), *other, other[-1], 0]:
            said[i].add(self._reply(session, questions[i]).text)
        return {"same": sum(len(texts) == 1 for texts in said.values()), "questions": len(said)}

    def _reply(self, session: Session, question: Question) -> Reply:
        words = len(self.engine.model.tokenize(question.answer))
        return session.ask(question.text, sampling=SamplingParams(max_tokens=max(words, 1)))


def named_by_chance(lengths: Sequence[float], shown: Sequence[tuple[float, float]], seconds: float) -> float:
    """The chance that ranges of these lengths, laid anywhere in a stream of `seconds`, meet one that shows
    the answer: what naming evidence is to be compared with.
    """
    missed = 1.0
    for length in lengths:
        met, covered = 0.0, 0.0  # starts of a range that meets one; where the last such stretch ended
        for start, end in sorted((max(0.0, a - length), min(b, seconds - length)) for a, b in shown):
            met += max(0.0, end - max(start, covered))
            covered = max(covered, end)
        missed *= 1.0 - min(1.0, met / max(seconds - length, 1e-9))
    return 1.0 - missed


def _retrieved(reply: Reply, start: float, end: float) -> bool:
    """Was a token of an evidence frame itself read? A summary over several moments does not count."""
    return any(first == last and start <= first <= end for first, last, _ in reply.moments)


def _curve(samples: list[tuple[int, Row]]) -> Row:
    """Bytes used over time: seconds, and per tier the used bytes at each; fixed parts are constant."""
    if not samples:
        return {}
    last = samples[-1][1]
    tiers = {f"{t['medium']} {t['codec']}": i for i, t in enumerate(last["tiers"])}
    dram = sum(t["capacity_bytes"] for t in last["tiers"] if t["medium"] != "disk")
    return {
        "seconds": [second for second, _ in samples],
        "fixed_bytes": last["taken_bytes"] - dram,
        "tiers": {
            name: [stats["tiers"][i]["used_bytes"] for _, stats in samples] for name, i in tiers.items()
        },
    }
