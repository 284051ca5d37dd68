"""Accuracy under a cap: every policy answers the same questions about the same streams with the same bytes.

A stream is encoded once (recording.py); then each (policy, cap, disk, stream) is one cell: a session of its
own, all frames in, questions at four times (cells.py). Cells that differ in the seed only make one row
(scoring.py). Finished cells stay in the output folder under a key of settings, model and core: a run can be
taken up again.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mosaic_edge import _core
from mosaic_edge.config import parse_bytes
from mosaic_edge.engine import Engine
from mosaic_edge.evaluation.cells import retrieves, run_cell
from mosaic_edge.evaluation.finished import FinishedCells, fingerprint
from mosaic_edge.evaluation.recording import record_stream
from mosaic_edge.evaluation.scoring import Row, build_row
from mosaic_edge.evaluation.settings import EvalSettings
from mosaic_edge.evaluation.variants import FULL, Cap, Cell, Variant
from mosaic_edge.evaluation.workers import Run, workers

Progress = Callable[[int, int, str], None]
"""progress(done, total, what)"""


def evaluate(
    settings: EvalSettings,
    out: Path,
    *,
    jobs: int = 1,
    ray: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> list[Row]:
    """Measure what is not yet in `out`, keep finished cells there (cells.jsonl, logits/), return the rows.

    jobs: processes. More than one shortens the run, but then the times (first_token_ms, frame_ms) share the
    machine. ray: the address of a Ray cluster whose CPUs are the processes instead (ray_cluster.py). Streams
    are recorded as many at a time as there are processes, and deleted when their cells are done. Raises
    ValueError for a bad setting, ModelError for a bad model; an impossible cap is a row with `error`.
    """
    if ray is not None and jobs != 1:
        raise ValueError(f"jobs={jobs}: with ray= the processes are the cluster's CPUs")
    if jobs < 1:
        raise ValueError(f"jobs={jobs}: expected at least 1")
    engine = _load(settings)
    cells = _cells(settings, engine)
    book = FinishedCells(out, settings, fingerprint(settings.model), force)
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
        _processes(settings, engine, jobs, ray) as (run, wide),
    ):
        for wave in (todo[i : i + wide] for i in range(0, len(todo), wide)):
            recorded: dict[Any, Path] = {}
            for stream, made in run({s: (_record_task, settings, *s, Path(folder)) for s, _ in wave}):
                recorded[stream] = made
                step(f"stream {stream[0]} {stream[1]} frames")
            tasks = {
                key: (_cell_task, recorded[stream], cell, settings.session)
                for stream, mine in wave
                for key, cell in mine.items()
            }
            for key, (row, logits) in run(tasks):
                book.add(key, row, logits)
                step(f"{row['frames']} frames {row['policy']} {row['cap']}")
            for made in recorded.values():
                shutil.rmtree(made)
    return [_row(book, settings, cell) for cell in cells]


def _cells(settings: EvalSettings, engine: Engine) -> list[Cell]:
    """Every row; `full` is the reference: one row, all it needs. ValueError for a bad policy setting."""
    quota = parse_bytes(settings.disk, "disk") if settings.disk is not None else 0
    reads = {variant.label: _selects(engine, variant, settings.session) for variant in settings.policies}
    return [
        Cell(difficulty, frames, variant, cap, disk)
        for frames in settings.lengths
        for difficulty in settings.difficulties
        for variant in settings.policies
        for disk in ((0, quota) if quota and reads[variant.label] else (0,))
        for cap in ((Cap(share=1.0),) if variant.policy == FULL else settings.caps)
    ]


def _selects(engine: Engine, variant: Variant, base: dict[str, Any]) -> bool:
    """Does the variant retrieve? Its settings are tried here, before anything runs."""
    try:
        return retrieves(engine, variant, base)
    except _core.MemoryCapError:
        return False
    except (ValueError, TypeError) as error:
        raise ValueError(f"policies={variant.label!r}: {error}") from None


def _row(book: FinishedCells, settings: EvalSettings, cell: Cell) -> Row:
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


# What a worker process keeps between its tasks: the model is loaded once.
_engine: Engine | None = None


def _start(settings: EvalSettings, engine: Engine | None = None) -> None:
    global _engine
    _engine = engine or _load(settings)


def _load(settings: EvalSettings) -> Engine:
    return Engine.load(settings.model, **{"threads": 1, **settings.load})


def _record_task(settings: EvalSettings, difficulty: Any, frames: int, seed: int, folder: Path) -> Path:
    assert _engine is not None
    return record_stream(_engine, difficulty, seed, frames, settings.questions, folder, settings.session)


def _cell_task(recorded: Path, cell: Cell, base: dict[str, Any]) -> tuple[Row, NDArray[np.float32] | None]:
    assert _engine is not None
    return run_cell(_engine, recorded, cell, base)


@contextmanager
def _processes(
    settings: EvalSettings, engine: Engine, jobs: int, ray: str | None
) -> Iterator[tuple[Run, int]]:
    """What runs tasks, and how many at a time."""
    if ray is not None:
        from mosaic_edge.evaluation.ray_cluster import cluster

        with cluster(ray, partial(_start, settings)) as (run, wide):
            yield run, wide
        return
    _start(settings, engine)
    if jobs == 1:
        yield lambda tasks: ((key, function(*rest)) for key, (function, *rest) in tasks.items()), 1
        return
    with workers(jobs, partial(_start, settings)) as run:
        yield run, jobs
