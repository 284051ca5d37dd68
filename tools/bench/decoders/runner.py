"""Cells over streams: what is done is on file, what is left is run, several sessions to a forward pass."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .cells import Row, StreamRun, branch_tokens, full_bytes
from .decoder import Decoder, Floats
from .gguf_file import cache_folder, digest
from .judge import judged
from .narrated_vlm import NarratedVlm, asked, prompt_of
from .product import CORE_FILE, Engine, MemoryCapError, Variant
from .rungs import FULL, Cell, session_settings
from .streams import Stream
from .together import Together, run_together

REFERENCE = Cell("full at 32 bits", Variant(FULL, FULL), rung="exact")
EVIDENCE = ("evidence_named", "evidence_read")


def content(decoder: Decoder, stream: Stream) -> str:
    """Hash of all that is said and asked."""
    said = json.dumps([asdict(stream), prompt_of(decoder), [asked(decoder, q) for q in stream.questions]])
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def cached_file(decoder: Decoder, stream: Stream) -> Path:
    """Where the full cache's logits of a stream are kept: under all that they depend on."""
    name = f"{decoder.digest}-{decoder.dtype}-{content(decoder, stream)}.npy"
    return cache_folder() / "full" / name


def keep(file: Path, logits: Floats) -> None:
    """Write logits whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".npy", delete=False) as part:
        np.save(part, logits)
    Path(part.name).rename(file)


@dataclass
class Runner:
    """Runs cells of one model and appends a JSON line for each to `log`."""

    decoder: Decoder
    log: Path
    base: dict[str, Any]
    """Fields of SessionConfig that all cells share."""
    together: int = 1
    with_full: bool = True
    """Measure KL, and what `full` says where that is not in the cache."""
    command: str = ""
    """What cells are run by, as tables say it."""
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.build = digest(Path(CORE_FILE))
        if self.log.exists():
            self.rows = [json.loads(line) for line in self.log.read_text().splitlines() if line.strip()]

    def key(self, stream: Stream, cell: Cell) -> Row:
        """What names a finished cell: another core, model or setting is another cell."""
        return {
            "model": self.decoder.name, "weights": self.decoder.digest, "dtype": self.decoder.dtype,
            "core": self.build, "base": json.dumps(self.base, sort_keys=True), "form": stream.form,
            "sentences": len(stream.sentences), "content": content(self.decoder, stream), "seed": stream.seed,
            "policy": cell.label, "rung": cell.rung, "cap_share": cell.cap_share, "disk": cell.disk,
            "frames_read": cell.frames_read, "kl_known": self.with_full,
        }  # fmt: skip

    def found(self, stream: Stream, cell: Cell) -> Row | None:
        """The row of a finished cell."""
        key = self.key(stream, cell)
        return next((row for row in self.rows if all(row.get(k) == v for k, v in key.items())), None)

    def finished(self) -> list[Row]:
        """Cells of this core on file, of every model and command; the newest where one was run twice."""
        same = ("weights", "dtype", "base", "form", "sentences", "seed", "policy", "rung", "cap_share")
        newest = {
            tuple(row[name] for name in (*same, "disk", "frames_read")): row
            for row in self.rows
            if row["core"] == self.build
        }
        return list(newest.values())

    def run(self, streams: Sequence[Stream], cells: Sequence[Cell]) -> None:
        """Every cell on every stream; what is on file is skipped."""
        groups = [(stream, group) for stream in streams for group in self._groups(stream, cells)]
        total = sum(len(stream.sentences) for stream, _ in groups)
        began, done = time.perf_counter(), 0
        for index, (stream, group) in enumerate(groups):
            self._run_group(
                stream, group, _progress(f"{index + 1}/{len(groups)}", stream, done, total, began)
            )
            done += len(stream.sentences)

    def _groups(self, stream: Stream, cells: Sequence[Cell]) -> Iterator[list[Cell]]:
        """Cells that are not on file, as many as go together; those with read_like come last."""
        left = [cell for cell in cells if self.found(stream, cell) is None]
        for follows in (False, True):
            part = [c for c in left if bool(c.read_like) == follows and not self._refused(stream, c)]
            for at in range(0, len(part), self.together):
                yield part[at : at + self.together]

    def _run_group(self, stream: Stream, cells: Sequence[Cell], tick: Callable[[int], None]) -> None:
        file = cached_file(self.decoder, stream)
        full = np.load(file) if self.with_full and file.exists() else None
        joined = [*([] if full is not None or not self.with_full else [REFERENCE]), *cells]
        tasks = [partial(self._cell, stream, cell, tick if i == 0 else None) for i, cell in enumerate(joined)]
        if len(joined) == 1:
            results = [tasks[0](None)]
        elif self.together == 1:
            results = [task(None) for task in tasks]
        else:
            results = run_together(self.decoder, tasks)
        if joined[0] is REFERENCE:
            row, full = results.pop(0)
            if "error" in row:
                raise MemoryCapError(f"full at 32 bits: {row['error']}")
            keep(file, full)
        for cell, (row, logits) in zip(cells, results, strict=True):
            self._file(stream, cell, row, logits, full)

    def _refused(self, stream: Stream, cell: Cell) -> bool:
        """A cell whose cap its plan refuses is finished before it begins. ValueError for bad settings."""
        if cell.read_like:
            return False
        try:
            Engine(NarratedVlm(self.decoder, stream, cell.frames_read)).plan(**self.settings(stream, cell))
        except MemoryCapError as error:
            self._file(stream, cell, {"error": str(error)}, np.zeros((0, 0), np.float32), None)
            return True
        return False

    def _cell(
        self, stream: Stream, cell: Cell, tick: Callable[[int], None] | None, shared: Together | None
    ) -> tuple[Row, Floats]:
        try:
            run = StreamRun(self.decoder, stream, self.settings(stream, cell), cell.frames_read)
            return run.go(shared.forward if shared else None, tick)
        except MemoryCapError as error:
            return {"error": str(error)}, np.zeros((0, 0), np.float32)

    def settings(self, stream: Stream, cell: Cell) -> dict[str, Any]:
        """Settings of the session of a cell."""
        engine = Engine(NarratedVlm(self.decoder, stream, cell.frames_read))
        base = {"kernel_threads": 1, "branch_tokens": branch_tokens(self.decoder, stream), **self.base}
        tokens = self._most_read(stream, cell) if cell.read_like else None
        whole = full_bytes(self.decoder, stream)
        return session_settings(engine, cell, base, whole, len(stream.sentences), tokens)

    def _most_read(self, stream: Stream, cell: Cell) -> float:
        """Tokens a layer that a question reads of those that this cell follows; the most of them."""
        same = self.key(stream, cell)
        read = [
            row["tokens_read"]["questions"]
            for row in self.rows
            if row["policy"] in cell.read_like
            and "tokens_read" in row
            and all(row.get(k) == v for k, v in same.items() if k != "policy")
        ]
        if not read:
            raise MemoryCapError(f"{cell.label}: none of {', '.join(cell.read_like)} ran at this cap")
        return float(max(read))

    def _file(self, stream: Stream, cell: Cell, row: Row, logits: Floats, full: Floats | None) -> None:
        """Judge a cell and append it to the log."""
        answers = row.pop("answers", [])
        if answers:
            verdicts = judged(self.decoder, stream, logits, full)
            answers = [a | b for a, b in zip(answers, verdicts, strict=True)]
        for kind in ("recall", "perception"):
            of_kind = [a for a in answers if a["kind"] == kind]
            if of_kind:
                row[kind] = {
                    "questions": len(of_kind),
                    **{x: [a[x] for a in of_kind] for x in ("right", "nll", "kl", *EVIDENCE)},
                }
        line = self.key(stream, cell) | row | {"command": self.command}
        self.rows.append(line)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as log:
            log.write(json.dumps(line) + "\n")
        print(_short(line), file=sys.stderr, flush=True)


def _short(row: Row) -> str:
    """A finished cell in one line."""
    share = "" if row["cap_share"] is None else f" {100 * row['cap_share']:g}%"
    disk = " + disk" if row["disk"] else ""
    name = f"{row['sentences']} sentences, seed {row['seed']}: {row['policy']}{share}{disk} ({row['rung']})"
    if "error" in row:
        return f"{name}: {row['error']}"
    said = row.get("recall") or {}
    kl = [x for x in said.get("kl", []) if x is not None]
    return (
        f"{name}: {100 * np.mean(said.get('right') or [0]):.0f} % of {said.get('questions', 0)}, "
        f"nll {np.mean(said.get('nll') or [0]):.3f}, KL {np.mean(kl or [0]):.3f}, "
        f"kept {row['tokens_kept']['total']:.0f} of {row['stream_tokens']} tokens, "
        f"{row['bytes'] / 1e6:.2f} MB, {row['seconds']:.0f} s"
    )


def _progress(part: str, stream: Stream, done: int, total: int, began: float) -> Callable[[int], None]:
    """Prints, on a terminal, how far the stream is and how long the rest will take."""
    shown = sys.stderr.isatty()

    def tick(frames: int) -> None:
        if shown:
            past = time.perf_counter() - began
            left = past / (done + frames) * (total - done - frames)
            end = "\r" if frames < len(stream.sentences) else "\n"
            text = f"[{part}] sentence {frames} of {len(stream.sentences)}, {left / 60:.1f} min left"
            print(text, end=end, file=sys.stderr, flush=True)

    return tick
