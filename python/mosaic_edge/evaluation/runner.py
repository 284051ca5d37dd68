"""Accuracy under a cap: every policy answers the same questions about the same streams with the same bytes.

A stream is encoded once (recording.py); then each (policy, cap, disk, stream) is one cell: a session of its
own, all frames in, questions at four moments (cells.py). Cells that differ in the seed only make one row
(scoring.py). Finished cells stay in the output folder under a key of settings, model and core: a run can be
taken up again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mosaic_edge import _core
from mosaic_edge.config import parse_bytes
from mosaic_edge.engine import Engine
from mosaic_edge.evaluation.cells import retrieves, run_cell
from mosaic_edge.evaluation.recording import record_stream
from mosaic_edge.evaluation.scoring import Row, build_row
from mosaic_edge.evaluation.variants import FULL, Cap, Cell, Variant, parse_caps, parse_policies
from mosaic_edge.models import TINY

Progress = Callable[[int, int, str], None]
"""progress(done, total, what)"""

FORMAT = 2
"""Of a finished cell; another one's are measured again."""


@dataclass(frozen=True)
class EvalSettings:
    """What is measured. Every field is part of the key under which a finished cell is kept."""

    policies: tuple[Variant, ...] = field(default_factory=lambda: parse_policies(",".join(_core.policies())))
    caps: tuple[Cap, ...] = parse_caps("100%,25%,10%,5%,2%")
    """Of the full cache: frames x tokens per frame x 16-bit keys and values of all layers; or bytes."""
    lengths: tuple[int, ...] = (512,)
    """Frames of a stream, one a second."""
    seeds: tuple[int, ...] = (7, 8)
    difficulties: tuple[str, ...] = ("plain", "lively")
    questions: int = 96
    """Per stream."""
    disk: str | None = None
    """Quota with which the policies that retrieve get a second row; None: what does not fit is gone."""
    model: str = TINY
    settings: dict[str, Any] = field(default_factory=dict)
    """More fields of SessionConfig, the same for every policy."""

    def __post_init__(self) -> None:
        for difficulty in self.difficulties:
            if difficulty not in ("plain", "lively"):
                raise ValueError(f"difficulty={difficulty!r} is unknown; expected plain or lively")
        for name in ("policies", "caps", "lengths", "seeds", "difficulties"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected at least one")
        for length in self.lengths:
            if not 16 <= length < 1 << 24:
                raise ValueError(f"lengths={length}: expected 16 to {(1 << 24) - 1} frames")
        if self.questions < 1:
            raise ValueError(f"questions={self.questions}: expected at least 1")
        if self.disk is not None:
            parse_bytes(self.disk, "disk")

    def cells(self, engine: Engine) -> list[Cell]:
        """Every row; `full` is the reference: one row, all it needs. ValueError for a bad policy setting."""
        quota = parse_bytes(self.disk, "disk") if self.disk is not None else 0
        reads = {variant.label: _selects(engine, variant, self.settings) for variant in self.policies}
        return [
            Cell(difficulty, frames, variant, cap, disk)
            for frames in self.lengths
            for difficulty in self.difficulties
            for variant in self.policies
            for disk in ((0, quota) if quota and reads[variant.label] else (0,))
            for cap in ((Cap(share=1.0),) if variant.policy == FULL else self.caps)
        ]


def evaluate(
    settings: EvalSettings, out: Path, *, jobs: int = 1, force: bool = False, progress: Progress | None = None
) -> list[Row]:
    """Measure what is not yet in `out`, keep finished cells there (cells.jsonl, logits/), return the rows.

    jobs: processes. More than one shortens the run, but then the times (ttft_ms, frame_ms) share the machine.
    Streams are recorded `jobs` at a time and deleted when their cells are done. Raises ValueError for a bad
    setting, ModelError for a bad model; an impossible cap is a row with `error`.
    """
    if jobs < 1:
        raise ValueError(f"jobs={jobs}: expected at least 1")
    engine = Engine.load(settings.model, threads=1)
    cells = settings.cells(engine)
    book = _Book(out, settings, fingerprint(settings.model), force)
    wanted = {book.key(cell, seed): (cell, seed) for cell in cells for seed in settings.seeds}
    missing = {key: what for key, what in wanted.items() if key not in book.finished}
    streams: dict[tuple[str, int, int], dict[str, Cell]] = {}
    for key, (cell, seed) in missing.items():
        streams.setdefault((cell.difficulty, cell.frames, seed), {})[key] = cell
    total, done = len(streams) + len(missing), 0

    def step(what: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total, what)

    todo = list(streams.items())
    with (
        tempfile.TemporaryDirectory(prefix="mosaic-eval-") as folder,
        _workers(settings.model, engine, jobs) as run,
    ):
        for wave in (todo[i : i + jobs] for i in range(0, len(todo), jobs)):
            places: dict[Any, Path] = {}
            for stream, place in run({s: (_record_task, settings, *s, Path(folder)) for s, _ in wave}):
                places[stream] = place
                step(f"stream {stream[0]} {stream[1]} frames")
            tasks = {
                key: (_cell_task, places[stream], cell, settings.settings)
                for stream, mine in wave
                for key, cell in mine.items()
            }
            for key, (row, logits) in run(tasks):
                book.add(key, row, logits)
                step(f"{row['frames']} frames {row['policy']} {row['cap']}")
            for place in places.values():
                shutil.rmtree(place)
    return [_row(book, settings, cell) for cell in cells]


def _selects(engine: Engine, variant: Variant, base: dict[str, Any]) -> bool:
    """Does the variant retrieve? Its settings are tried here, before anything runs."""
    try:
        return retrieves(engine, variant, base)
    except _core.MemoryCapError:
        return False
    except (ValueError, TypeError) as error:
        raise ValueError(f"policies={variant.label!r}: {error}") from None


def _row(book: _Book, settings: EvalSettings, cell: Cell) -> Row:
    """One row, its logits against those of `full` on the same streams where it is among the policies."""
    mine = [book.key(cell, seed) for seed in settings.seeds]
    full = next((v for v in settings.policies if v.policy == FULL), None)
    pairs = None
    if full is not None:
        twin = Cell(cell.difficulty, cell.frames, full, Cap(share=1.0))
        theirs = [book.key(twin, seed) for seed in settings.seeds]
        loaded = [(book.logits(a), book.logits(b)) for a, b in zip(theirs, mine, strict=True)]
        pairs = [(a, b) for a, b in loaded if a is not None and b is not None]
    return build_row([book.finished[key] for key in mine], pairs)


class _Book:
    """The finished cells of a folder; a last line cut short by an interruption is taken off the file."""

    def __init__(self, out: Path, settings: EvalSettings, code: str, force: bool) -> None:
        self._same = [settings.questions, settings.model, settings.settings, code, FORMAT]
        self._file, self._arrays = out / "cells.jsonl", out / "logits"
        self._arrays.mkdir(parents=True, exist_ok=True)
        self.finished: dict[str, Row] = {}
        if force:
            self._file.unlink(missing_ok=True)
            return
        text = self._file.read_text() if self._file.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self._file.write_text(whole)
        for entry in map(json.loads, whole.splitlines()):
            if "error" in entry["cell"] or self._place(entry["key"]).exists():
                self.finished[entry["key"]] = entry["cell"]

    def key(self, cell: Cell, seed: int) -> str:
        cap = cell.cap.share if cell.cap.size is None else f"{cell.cap.size} bytes"
        what = [cell.variant.label, cell.difficulty, cell.frames, seed, cap, cell.disk]
        return json.dumps([*what, *self._same], sort_keys=True, default=str)

    def add(self, key: str, row: Row, logits: NDArray[np.float32] | None) -> None:
        if logits is not None:
            np.save(self._place(key), logits)
        self.finished[key] = row
        with self._file.open("a") as log:
            log.write(json.dumps({"key": key, "cell": row}) + "\n")

    def logits(self, key: str) -> NDArray[np.float32] | None:
        """[questions, vocab], or None for a cell that could not run."""
        return None if "error" in self.finished[key] else np.load(self._place(key))

    def _place(self, key: str) -> Path:
        return self._arrays / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.npy"


def fingerprint(model: str) -> str:
    """A short hash of the core, the package and the model: results of another build are not reused."""
    package = Path(__file__).resolve().parents[1]
    folder = package / "models" / "tiny" if model == TINY else Path(model)
    digest = hashlib.sha256(Path(_core.__file__).read_bytes())
    for source in sorted(package.rglob("*.py")):
        if source.stem != "report" and source.parent.name != "plots":
            digest.update(source.read_bytes())
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{file.name} {file.stat().st_size}".encode())
        if file.stat().st_size < 1 << 26:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


# What a worker process keeps between its tasks: the model is loaded once.
_engine: Engine | None = None


def _start(model: str, engine: Engine | None = None) -> None:
    global _engine
    _engine = engine or Engine.load(model, threads=1)


def _record_task(settings: EvalSettings, difficulty: Any, frames: int, seed: int, folder: Path) -> Path:
    assert _engine is not None
    return record_stream(_engine, difficulty, seed, frames, settings.questions, folder, settings.settings)


def _cell_task(place: Path, cell: Cell, base: dict[str, Any]) -> tuple[Row, NDArray[np.float32] | None]:
    assert _engine is not None
    return run_cell(_engine, place, cell, base)


@contextmanager
def _workers(
    model: str, engine: Engine, jobs: int
) -> Iterator[Callable[[dict[Any, Any]], Iterator[tuple[Any, Any]]]]:
    """Gives run(tasks), which yields (key, result) of every task (function, *arguments) as they end."""
    _start(model, engine)
    if jobs == 1:
        yield lambda tasks: ((key, function(*rest)) for key, (function, *rest) in tasks.items())
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(jobs, get_context("spawn"), _start, (model,)) as pool:

        def run(tasks: dict[Any, Any]) -> Iterator[tuple[Any, Any]]:
            futures: dict[Future[Any], Any] = {
                pool.submit(function, *rest): key for key, (function, *rest) in tasks.items()
            }
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            except BaseException:  # what was not begun is not begun any more
                pool.shutdown(wait=False, cancel_futures=True)
                raise

        yield run
