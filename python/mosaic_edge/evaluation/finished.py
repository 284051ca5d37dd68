"""Finished cells of an evaluation, kept under what they depend on: a run can be taken up again."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mosaic_edge import _core
from mosaic_edge.evaluation.scoring import Row
from mosaic_edge.evaluation.settings import EvalSettings
from mosaic_edge.evaluation.variants import Cell
from mosaic_edge.models import TINY
from mosaic_edge.output_file import writable_folder

FORMAT = 4
"""Of a finished cell; another one's are measured again."""

_PACKAGE = Path(__file__).resolve().parents[1]
_MEASURED_BY = ("mosaic_edge.evaluation.cells", "mosaic_edge.evaluation.recording")


class FinishedCells:
    """The finished cells of a folder; a last line cut short by an interruption is taken off the file."""

    def __init__(self, out: Path, settings: EvalSettings, code: str, force: bool) -> None:
        self._same = [settings.questions, settings.load, settings.session, code, FORMAT]
        self._file = writable_folder(out, "out") / "cells.jsonl"
        self._arrays = writable_folder(out / "logits", "out")
        self.finished: dict[str, Row] = {}
        if force:
            self._file.unlink(missing_ok=True)
            return
        text = self._file.read_text("utf-8", "replace") if self._file.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self._file.write_text(whole)
        for number, line in enumerate(whole.splitlines(), 1):
            key, cell = self._entry(line, number)
            if "error" in cell or self._logits_file(key).exists():
                self.finished[key] = cell

    def _entry(self, line: str, number: int) -> tuple[str, Row]:
        try:
            entry = json.loads(line)
            key, cell = entry["key"], entry["cell"]
            if isinstance(key, str) and isinstance(cell, dict):
                return key, cell
        except (ValueError, LookupError, TypeError, RecursionError):
            pass
        raise ValueError(
            f"out=: line {number} of {self._file} is no finished cell; remove it, or measure anew: --force"
        )

    def key(self, cell: Cell, seed: int) -> str:
        """What a cell is kept under: everything its numbers depend on."""
        cap = cell.cap.share if cell.cap.size is None else f"{cell.cap.size} bytes"
        what = [cell.variant.label, cell.difficulty, cell.frames, seed, cap, cell.disk]
        return json.dumps([*what, *self._same], sort_keys=True, default=str)

    def add(self, key: str, row: Row, logits: NDArray[np.float32] | None) -> None:
        """Keep a cell that is done."""
        if logits is not None:
            np.save(self._logits_file(key), logits)
        self.finished[key] = row
        with self._file.open("a") as log:
            log.write(json.dumps({"key": key, "cell": row}) + "\n")

    def logits(self, key: str) -> NDArray[np.float32] | None:
        """[questions, vocab], or None for a cell that could not run."""
        return None if "error" in self.finished[key] else np.load(self._logits_file(key))

    def _logits_file(self, key: str) -> Path:
        return self._arrays / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.npy"


def fingerprint(model: str) -> str:
    """A short hash of the core, the model and the code that a cell's numbers come from: results of another
    build are not reused. It is of contents, whatever the files are called."""
    folder = _PACKAGE / "models" / "tiny" if model == TINY else Path(model)
    files = [path for path in folder.rglob("*") if path.is_file()]
    digest = hashlib.sha256(b"" if files else model.encode())  # a hub id
    for group in ([Path(_core.__file__)], sources_of(*_MEASURED_BY), files):
        for one in sorted(map(_digest, group)):
            digest.update(one)
    return digest.hexdigest()[:16]


def _digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.digest()


def sources_of(*modules: str) -> list[Path]:
    """The package's files that `modules` are made of: their own, those they import, and so on."""
    found: dict[str, Path] = {}
    todo = list(modules)
    while todo:
        name = todo.pop()
        base = _PACKAGE.joinpath(*name.split(".")[1:])
        path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        if name not in found and name.split(".")[0] == _PACKAGE.name and path.is_file():
            found[name] = path
            package = name if base.is_dir() else name.rpartition(".")[0]
            todo += _imports(ast.parse(path.read_bytes()), package)
    return list(found.values())


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    """Modules that are named in `tree`, a file of `package`, and names that may be modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
