"""Cases, each in a forked child with limits of time and memory, and the tally of what they came to."""

from __future__ import annotations

import faulthandler
import json
import os
import random
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

Play = Callable[[int, Path], Counter[str]]
"""play(seed, folder of its own): what was done, by name; "operations" among them. Raises what is wrong."""

CPU_SECONDS = 120
"""A case takes about one."""
CASE_SECONDS = 900.0
"""Without an end by then it hangs, however busy the machine is."""
MEMORY_BYTES = 8 << 30
KEPT = 50


class WrongError(Exception):
    """Something that must hold does not."""


def must(holds: bool, what: object) -> None:
    if not holds:
        raise WrongError(str(what))


def small_files(rng: random.Random) -> None:
    """The disk is full, for files longer than so much, or it is free again."""
    most = rng.choice([0, 5000, 70_000, *5 * [resource.RLIM_INFINITY]])
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


@dataclass
class Tally:
    """What was done so far, and what was found, by seed."""

    kind: str
    next_seed: int
    cases: int = 0
    done: dict[str, int] = field(default_factory=dict)
    found: list[tuple[int, str]] = field(default_factory=list)
    path: Path | None = None

    @classmethod
    def read(cls, path: Path | None, kind: str, seed: int) -> Tally:
        if path is None or not path.exists():
            return cls(kind, seed, path=path)
        kept = json.loads(path.read_text())
        if kept["kind"] != kind:
            raise SystemExit(f"{path} is of {kept['kind']!r}, not of {kind!r}")
        return cls(**{**kept, "path": path})

    def add(self, seed: int, done: dict[str, int], wrong: str | None) -> None:
        self.cases += 1
        self.next_seed = max(self.next_seed, seed + 1)
        for name, times in done.items():
            self.done[name] = self.done.get(name, 0) + times
        if wrong is not None:
            print(f"{self.kind} --seed {seed} --cases 1: {wrong}", flush=True)
            if len(self.found) < KEPT:
                self.found.append((seed, wrong))

    def write(self) -> None:
        if self.path is None:
            return
        kept = asdict(self)
        del kept["path"]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_suffix(".part")
        aside.write_text(json.dumps(kept, indent=1))
        aside.replace(self.path)

    def line(self) -> str:
        done = ", ".join(f"{name} {times:,}" for name, times in sorted(self.done.items()))
        last, wrong = self.next_seed - 1, len(self.found)
        return f"{self.kind}: {self.cases:,} cases up to seed {last}: {done}; {wrong} wrong"


@dataclass
class _Child:
    seed: int
    pid: int
    reads: int
    due: float
    folder: tempfile.TemporaryDirectory[str]
    said: bytes = b""


def run(play: Play, tally: Tally, seconds: float, cases: int, workers: int) -> None:
    """Begin cases for `seconds`, `cases` at most, and wait for the last ones."""
    end, begun = time.monotonic() + seconds, 0
    seed = tally.next_seed
    children: dict[int, _Child] = {}
    try:
        while children or (time.monotonic() < end and begun < cases):
            while len(children) < workers and time.monotonic() < end and begun < cases:
                child = _begin(play, seed)
                children[child.reads] = child
                seed, begun = seed + 1, begun + 1
            for reads in select.select(list(children), [], [], 1.0)[0]:
                piece = os.read(reads, 1 << 16)
                children[reads].said += piece
                if not piece:
                    _end(children.pop(reads), tally)
            for child in [c for c in children.values() if time.monotonic() > c.due]:
                os.kill(child.pid, signal.SIGKILL)
                _end(children.pop(child.reads), tally, f"hangs: no end after {CASE_SECONDS:.0f} s")
            if begun % 100 == 0:
                tally.write()
    finally:
        for child in children.values():
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)
            child.folder.cleanup()
        tally.write()


def _begin(play: Play, seed: int) -> _Child:
    folder = tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True)
    reads, writes = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reads)
        try:
            _in_child(play, seed, Path(folder.name), writes)
        finally:
            os._exit(1)
    os.close(writes)
    return _Child(seed, pid, reads, time.monotonic() + CASE_SECONDS, folder)


def _in_child(play: Play, seed: int, folder: Path, writes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable((folder / "fault").open("w"))
    try:
        said: dict[str, object] = {"done": dict(play(seed, folder))}
    except BaseException as error:
        where = " <- ".join(
            f"{f.name}:{f.lineno}" for f in reversed(traceback.extract_tb(error.__traceback__))
        )
        said = {"wrong": f"{type(error).__name__}: {' '.join(str(error).split())[:600]} ({where[:300]})"}
    os.write(writes, json.dumps(said).encode())
    os._exit(0)


def _end(child: _Child, tally: Tally, wrong: str | None = None) -> None:
    os.close(child.reads)
    status = os.waitpid(child.pid, 0)[1]
    done: dict[str, int] = {}
    if wrong is None and status != 0:
        fault = Path(child.folder.name) / "fault"
        told = fault.read_text(errors="replace") if fault.exists() else ""
        wrong = f"crashes: status {status}; {' | '.join(told.split(chr(10)))[:700]}"
    elif wrong is None:
        said = json.loads(child.said)
        done, wrong = said.get("done", {}), said.get("wrong")
    child.folder.cleanup()
    tally.add(child.seed, done, wrong)
