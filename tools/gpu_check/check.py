"""What the stages share: where things lie, the time left, commands under a limit, results on disk.

OUT gets few files, each whole at any moment: results.jsonl (a line the moment it is known), logs.tar.gz (anew
after every stage), summary.txt, and built.tar.gz, what was built, for a second call.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tarfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESERVE = 3.0  # seconds kept for the summary


class StageError(Exception):
    """A stage went wrong: what, and the end of its log."""

    def __init__(self, what: str, tail: str = "") -> None:
        super().__init__(what)
        self.what, self.tail = what, tail


@dataclass(frozen=True)
class Done:
    """A command that ended, or was ended when its time was over."""

    code: int
    seconds: float
    timed_out: bool
    log: Path

    def tail(self, lines: int = 25) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def ended(self, limit: float) -> str:
        return f"no end after {limit:.0f} s" if self.timed_out else f"ended with {self.code}"


@dataclass
class Check:
    """One run of all stages on one machine."""

    tree: Path  # build tree, or the folder of what was built elsewhere
    out: Path
    python: str
    cpu: bool  # a rehearsal: the CPU and the shim in the GPU's place
    budget: float | None
    parts: set[str] = field(default_factory=set)  # what there is: bench, tests, module
    lines: list[dict[str, Any]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    stage: str = ""

    @property
    def target(self) -> str:
        """The backend that is checked."""
        return "cpu" if self.cpu else "cuda"

    @property
    def kernels(self) -> str:
        """The kernels that are checked: on the CPU they are the shim's."""
        return "shim" if self.cpu else "cuda"

    @property
    def work(self) -> Path:
        """Logs and what commands write, before it is packed for OUT."""
        return self.tree / "gpu_check"

    @property
    def site(self) -> Path:
        """The package as it would be installed: the Python files and the module that was built."""
        return self.work / "site"

    def left(self) -> float:
        """Seconds of the budget; an hour where there is none."""
        return 3600.0 if self.budget is None else self.budget - (time.monotonic() - self.began) - RESERVE

    def write(self, kind: str, **fields: Any) -> None:
        """A line of results.jsonl, on disk when this returns."""
        line = {"line": kind, "stage": self.stage} | fields
        self.lines.append(line)
        with (self.out / "results.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def rows(self, **wanted: Any) -> list[dict[str, Any]]:
        return [line for line in self.lines if all(line.get(key) == value for key, value in wanted.items())]

    def environment(self) -> dict[str, str]:
        paths = [str(self.site), str(ROOT / "tests" / "material"), os.environ.get("PYTHONPATH", "")]
        made = os.environ | {
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "PYTHONUNBUFFERED": "1",
            "MOSAIC_DEVICE": self.target,
            "MOSAIC_ONLY": self.kernels,
        }
        return made if self.cpu else made | {"MOSAIC_NEEDS_CUDA": "1"}

    def run(self, name: str, command: list[Any], limit: float, **environment: str) -> Done:
        """Run it and all that it starts, for `limit` seconds or what is left; its output is NAME.log."""
        log = self.work / f"{name}.log"
        limit = max(min(limit, self.left()), 1.0)
        began = time.monotonic()
        with log.open("w") as file:
            file.write("$ " + " ".join(map(str, command)) + "\n")
            file.flush()
            child = subprocess.Popen(
                list(map(str, command)), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                env=self.environment() | environment, start_new_session=True,
            )  # fmt: skip
            timed_out = False
            try:
                child.wait(limit)
            except subprocess.TimeoutExpired:
                timed_out = True
            finally:  # whoever ends this run ends what it started
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait()
        return Done(child.returncode, time.monotonic() - began, timed_out, log)

    def must(self, name: str, command: list[Any], limit: float, **environment: str) -> Done:
        """run(), where anything but success fails the stage."""
        done = self.run(name, command, limit, **environment)
        if done.code != 0:
            raise StageError(f"{name}: {done.ended(limit)}", done.tail())
        return done

    def pack_logs(self) -> None:
        """The logs so far as one file; the old one stays until the new one is whole."""
        beside = self.out / "logs.tar.gz.part"
        with tarfile.open(beside, "w:gz") as tar:
            for log in sorted([*self.work.glob("*.log"), *self.work.glob("*.xml"), *self.work.glob("*.csv")]):
                tar.add(log, f"logs/{log.name}")
        beside.replace(self.out / "logs.tar.gz")


def cases_of(report: Path) -> tuple[int, list[str]]:
    """Of a JUnit file: how many cases ran, and those that failed. (0, []) if it was never finished."""
    try:
        cases = [*ElementTree.parse(report).iter("testcase")]
    except (OSError, ElementTree.ParseError):
        return 0, []
    ran = [case for case in cases if case.find("skipped") is None]
    bad = [case for case in ran if case.find("failure") is not None or case.find("error") is not None]
    return len(ran), [str(case.get("name")) for case in bad]
