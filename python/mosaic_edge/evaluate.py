"""Accuracy under a cap: every policy answers the same questions about the same streams with the same bytes.

A stream goes through the vision tower once (replay.py); then each (policy, cap, stream) is one cell: a
session of its own, all frames in, questions at four moments. Cells of one policy, cap and difficulty make
one row (scoring.py). Finished cells stay in the output folder under a key of settings, model and core: a
run can be taken up again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from mosaic_edge import _core
from mosaic_edge.config import parse_bytes
from mosaic_edge.engine import Engine, Session
from mosaic_edge.models import TINY
from mosaic_edge.replay import ReplayVlm, encode_stream, load_stream, save_stream
from mosaic_edge.sampling import SamplingParams
from mosaic_edge.scoring import Row, build_row

Progress = Callable[[int, int, str], None]
"""progress(done, total, what)"""


def parse_caps(text: str) -> tuple[float, ...]:
    """Shares of the full cache: "100%,25%,10%" -> (1.0, 0.25, 0.1). Raises ValueError naming the part."""
    shares = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", part)
        if match is None or not 0 < float(match[1]) <= 1000:
            raise ValueError(f"caps={part.strip()!r}: expected shares of the full cache such as 10%")
        shares.append(float(match[1]) / 100)
    return tuple(dict.fromkeys(shares))


@dataclass(frozen=True)
class EvalSettings:
    """What is measured. Every field is part of the key under which a finished cell is kept."""

    policies: tuple[str, ...] = ("full", "mosaic", "window", "uniform")
    caps: tuple[float, ...] = (1.0, 0.25, 0.1, 0.05, 0.02)
    """Shares of the full cache: frames x tokens per frame x 16-bit keys and values of all layers."""
    frames: int = 512
    seeds: tuple[int, ...] = (7, 8)
    difficulties: tuple[str, ...] = ("plain", "lively")
    questions: int = 96
    """Per stream."""
    disk: str | None = None
    """Disk quota of the policies that retrieve; None: what does not fit is gone."""
    model: str = TINY
    settings: dict[str, Any] = field(default_factory=dict)
    """More fields of SessionConfig, the same for every policy."""

    def __post_init__(self) -> None:
        known = list(_core.policies())
        for policy in self.policies:
            if policy not in known:
                raise ValueError(f"policy={policy!r} is unknown; there are {', '.join(known)}")
        for difficulty in self.difficulties:
            if difficulty not in ("plain", "lively"):
                raise ValueError(f"difficulty={difficulty!r} is unknown; expected plain or lively")
        for name in ("policies", "caps", "seeds", "difficulties"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected at least one")
        for name, least in (("frames", 16), ("questions", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least {least}")
        if self.disk is not None:
            parse_bytes(self.disk, "disk")

    @property
    def cells(self) -> list[tuple[str, str, float]]:
        """(difficulty, policy, cap share) of every row; `full` is the reference: one row, all it needs."""
        return [
            (difficulty, policy, cap)
            for difficulty in self.difficulties
            for policy in self.policies
            for cap in ((1.0,) if policy == "full" else self.caps)
        ]


def full_cache_bytes(engine: Engine, frames: int) -> int:
    """Bytes of keys and values of `frames` frames at 16 bits: what a share of the cap is a share of."""
    return frames * engine.spec.tokens_per_frame * engine.spec.kv_bytes_per_token


def smallest_full_cap(engine: Engine, frames: int, **settings: Any) -> int:
    """The least cap in bytes under which `full` holds `frames` frames, found by planning alone."""
    pages = -(-engine.spec.tokens_per_frame // 16) * engine.spec.layers

    def holds(cap: int) -> bool:
        try:
            plan = engine.plan(memory=cap, policy="full", **settings)
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


def run_cell(engine: Engine, place: Path, policy: str, share: float, settings: EvalSettings) -> Row:
    """One session over one stream: what it answered, how long that took, what it held at the end."""
    stream = load_stream(place)
    replay = Engine(ReplayVlm(engine.model, stream))
    frames = len(stream.tokens)
    more: dict[str, Any] = dict(settings.settings)
    if policy == "full":
        cap = smallest_full_cap(engine, frames, **more)
    else:
        cap = int(share * full_cache_bytes(engine, frames))
        if settings.disk is not None:
            more["disk"] = settings.disk
    cell: Row = {"policy": policy, "difficulty": stream.difficulty, "seed": stream.seed}
    cell |= {"cap_share": share, "cap_bytes": cap}
    answers: list[Row] = []
    frame_ms = np.zeros(frames)
    try:
        with replay.session(memory=cap, policy=policy, **more) as session:
            for index in range(frames):
                began = time.perf_counter()
                session.append(ReplayVlm.ticket(index), float(index))
                frame_ms[index] = 1e3 * (time.perf_counter() - began) + stream.encode_ms[index]
                answers += [_ask(session, engine, asdict(q)) for q in stream.questions.get(index, ())]
            stats = session.memory()
    except _core.MemoryCapError as error:
        return {**cell, "error": str(error)}
    return {**cell, "answers": answers, "frame_ms": [round(float(ms), 3) for ms in frame_ms], "memory": stats}


def _ask(session: Session, engine: Engine, question: Row) -> Row:
    """The question with what was said and which moments were read."""
    words = len(engine.model.tokenize(question["answer"]))
    reply = session.ask(question["text"], sampling=SamplingParams(max_tokens=max(words, 1)))
    start, end = question["evidence"]
    half = 0.5 / engine.spec.fps
    return {
        **question,
        "said": reply.text,
        "right": reply.text.split()[:1] == [question["answer"]],
        "evidence_read": any(r.start - half <= end and start <= r.end + half for r in reply.evidence),
        "ttft_ms": 1e3 * reply.first_token_seconds,
    }


def evaluate(
    settings: EvalSettings, out: Path, *, jobs: int = 1, force: bool = False, progress: Progress | None = None
) -> list[Row]:
    """Measure what is not yet in `out`, write cells.jsonl there, and return the rows.

    jobs: processes. More than one shortens the run, but then the times (ttft_ms, frame_ms) share the machine.
    Raises ValueError for a bad setting, ModelError for a bad model.
    """
    if jobs < 1:
        raise ValueError(f"jobs={jobs}: expected at least 1")
    engine = Engine.load(settings.model, threads=1)
    out.mkdir(parents=True, exist_ok=True)
    book = out / "cells.jsonl"
    code = fingerprint(settings.model)
    finished = {} if force else _read_cells(book)
    if force:
        book.unlink(missing_ok=True)
    cells = [(cell, seed) for cell in settings.cells for seed in settings.seeds]
    wanted = {_key(settings, code, *cell): cell for cell in cells}
    missing = {key: what for key, what in wanted.items() if key not in finished}
    streams = sorted({(cell[0], seed) for cell, seed in missing.values()})
    total, done = len(streams) + len(missing), 0
    with tempfile.TemporaryDirectory(prefix="mosaic-eval-") as folder, book.open("a") as log:
        _start(settings.model, engine)
        places = {what: Path(folder) / f"{what[0]}-{what[1]}" for what in streams}
        encode = {what: (_encode_task, settings, *what, Path(folder)) for what in streams}
        answer = {
            key: (_cell_task, settings, places[difficulty, seed], policy, cap)
            for key, ((difficulty, policy, cap), seed) in missing.items()
        }
        for tasks in (encode, answer):
            for key, result in _run_all(tasks, jobs, settings.model):
                done += 1
                if result is not None:
                    finished[key] = result
                    log.write(json.dumps({"key": key, "cell": result}) + "\n")
                    log.flush()
                if progress is not None:
                    what = "streams" if result is None else f"{result['policy']} {result['cap_share']:.0%}"
                    progress(done, total, what)
    return [
        build_row([finished[_key(settings, code, cell, s)] for s in settings.seeds], settings.frames)
        for cell in settings.cells
    ]


def fingerprint(model: str) -> str:
    """A short hash of the compiled core and the model: results of another build are not reused."""
    folder = Path(__file__).parent / "models" / "tiny" if model == TINY else Path(model)
    digest = hashlib.sha256(Path(_core.__file__).read_bytes())
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{file.name} {file.stat().st_size}".encode())
        if file.stat().st_size < 1 << 26:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _key(settings: EvalSettings, code: str, cell: tuple[str, str, float], seed: int) -> str:
    difficulty, policy, cap = cell
    same = [settings.frames, settings.questions, settings.disk, settings.model, settings.settings]
    return json.dumps([policy, difficulty, seed, cap, *same, code], sort_keys=True, default=str)


def _read_cells(book: Path) -> dict[str, Row]:
    """Finished cells; a last line cut short by an interruption is taken off the file."""
    text = book.read_text() if book.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        book.write_text(whole)
    entries = [json.loads(line) for line in whole.splitlines()]
    return {entry["key"]: entry["cell"] for entry in entries}


# What a worker process keeps between its tasks: the model is loaded once.
_engine: Engine | None = None


def _start(model: str, engine: Engine | None = None) -> None:
    global _engine
    _engine = engine or Engine.load(model, threads=1)


def _encode_task(settings: EvalSettings, difficulty: Any, seed: int, folder: Path) -> None:
    assert _engine is not None
    save_stream(encode_stream(_engine.model, difficulty, seed, settings.frames, settings.questions), folder)


def _cell_task(settings: EvalSettings, place: Path, policy: str, cap: float) -> Row:
    assert _engine is not None
    return run_cell(_engine, place, policy, cap, settings)


def _run_all(tasks: dict[Any, Any], jobs: int, model: str) -> Iterator[tuple[Any, Any]]:
    """(key, result) of every task (function, *arguments), as they end."""
    if jobs == 1 or len(tasks) < 2:
        for key, (function, *arguments) in tasks.items():
            yield key, function(*arguments)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(min(jobs, len(tasks)), get_context("spawn"), _start, (model,)) as pool:
        futures: dict[Future[Any], Any] = {pool.submit(f, *rest): key for key, (f, *rest) in tasks.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()
