"""Stream as fast as it goes, ask now and then, and see that memory stays put (`mosaic-edge stress`)."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from mosaic_edge import _core
from mosaic_edge.config import SessionConfig, format_bytes, parse_bytes
from mosaic_edge.engine import Engine
from mosaic_edge.evaluation.settings import StressSettings
from mosaic_edge.output_file import writable_folder
from mosaic_edge.sampling import SamplingParams
from mosaic_edge.session import Session
from mosaic_edge.world import World

COLUMNS = (
    "frame", "rss_bytes", "taken_bytes", "cap_bytes", "dram_used_bytes", "disk_used_bytes",
    "exact", "quantised", "spilled", "collapsed", "dropped", "seen",
    "lost_pages", "failed_spills", "spill_pauses", "read_pauses", "paused_frames", "unread_pages",
)  # fmt: skip
"""Of the memory curve: bytes, tokens by where they are, and what went wrong so far."""

Progress = Callable[[int, str], None]
"""progress(frames, how it goes)"""

SAMPLES = 2000
"""Rows of the curve at most; their room is taken before the first frame, so that they cost no growth."""

FULL = 0.98
"""A tier has been full when its peak reached this share of its slots."""


def run_stress(settings: StressSettings, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Stream, then write memory.csv, memory.png and stress.json to `out`.

    "breach" of the result is one line saying who needs what, what there is and which knob it is, or None;
    "unwritten", where it is there, why not all of it is in `out`: a full disk takes no result with it.
    Raises ValueError for a bad setting and MemoryCapError for a cap that cannot hold the least there must be.
    """
    engine = Engine.load(settings.model, **settings.load)
    config = SessionConfig(
        **{**settings.session, "memory": settings.memory, "policy": settings.policy},
        disk=settings.disk_bytes,
        faults=settings.faults,
    )
    with engine.session(config) as session:
        writable_folder(out, "out")
        stress = _Stress(settings, engine, session)
        stress.stream(progress)
        result = stress.result()
    try:
        _write(result, stress.curve, stress.warm_frame, out)
    except OSError as error:
        why = error.strerror or str(error)
        result["unwritten"] = f"out={str(out)!r}: not all of it was written there ({why})"
    return result


def _write(result: dict[str, Any], curve: NDArray[np.float64], warm: int | None, out: Path) -> None:
    with (out / "memory.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(curve.astype(np.int64).tolist())
    (out / "stress.json").write_text(json.dumps(result, indent=1) + "\n")
    try:
        from mosaic_edge.evaluation.plots.stress import plot_stress

        plot_stress({name: curve[:, i] for i, name in enumerate(COLUMNS)}, warm, out / "memory.png")
    except ModuleNotFoundError as error:
        print(
            f"mosaic-edge: no plot: {error.name} is not installed: pip install 'mosaic_edge[eval]'",
            file=sys.stderr,
        )


class _Stress:
    """One run: the stream, its samples and the first breach."""

    def __init__(self, settings: StressSettings, engine: Engine, session: Session) -> None:
        self._s = settings
        self._session = session
        self._fps = engine.spec.fps
        self._tokenize = engine.model.tokenize
        self._process = psutil.Process()
        self._world = World(settings.seed, settings.frames / self._fps, settings.difficulty)
        self._world.script.visit_at(
            self._world.seconds
        )  # the whole script now: it would grow with the stream
        self._every = -(-settings.frames // SAMPLES)
        self._rows: NDArray[np.float64] = np.full((settings.frames // self._every + 2, len(COLUMNS)), -1.0)
        self._sampled = 0
        self._allowed = parse_bytes(settings.allow, "allow")
        self.warm_frame: int | None = None
        self.breach: str | None = None
        self.frames = self.asked = self.answered = self.right = 0
        self.seconds = 0.0

    @property
    def curve(self) -> NDArray[np.float64]:
        """The samples so far [n, COLUMNS]."""
        return self._rows[: self._sampled]

    def stream(self, progress: Progress | None) -> None:
        """All frames, or those up to the first breach."""
        s, random = self._s, np.random.default_rng([self._s.seed, 6])
        began = time.perf_counter()
        for frame in range(1, s.frames + 1):
            second = (frame - 1) / self._fps
            self._session.append(self._world.render(second), second)
            self.frames = frame
            last = frame == s.frames
            if frame % s.ask_every == 0 or last:
                self._ask(second, random)
            if frame % s.check_every == 0 or last:
                self._recount()
            if frame % self._every == 0 or last:
                row = self._sample(frame)
                took = max(time.perf_counter() - began, 1e-9)
                used = f"{format_bytes(row['taken_bytes'])} of {format_bytes(row['cap_bytes'])}"
                if progress is not None:
                    rss = format_bytes(row["rss_bytes"])
                    progress(frame, f"{frame / took:.0f} frames/s, RSS {rss}, {used}")
            if self.breach is not None:
                break
        self.seconds = time.perf_counter() - began
        if self.breach is None:
            self.breach = self._growth_breach()

    def _ask(self, second: float, random: np.random.Generator) -> None:
        """A question about anything so far; the world knows the truth."""
        for question in self._world.questions(second, random, 1):
            self.asked += 1
            words = max(len(self._tokenize(question.answer)), 1)
            reply = self._session.ask(question.text, sampling=SamplingParams(max_tokens=words))
            self.answered += reply.text.strip() != ""
            self.right += reply.text.split()[:1] == [question.answer]

    def _recount(self) -> None:
        try:
            self._session.check_invariants()
        except _core.InvariantError as error:
            self._breached(f"{error} This is a defect of the core, no knob helps")

    def _sample(self, frame: int) -> dict[str, Any]:
        memory = self._session.memory()
        tiers, tokens, events = memory["tiers"], memory["tokens"], memory["events"]
        dram = [tier for tier in tiers if tier["medium"] != "disk"]
        disk = [tier for tier in tiers if tier["medium"] == "disk"]
        row: dict[str, Any] = {
            "frame": frame,
            "rss_bytes": self._process.memory_info().rss,
            "taken_bytes": memory["taken_bytes"],
            "cap_bytes": memory["cap_bytes"],
            "dram_used_bytes": sum(tier["used_bytes"] for tier in dram),
            "disk_used_bytes": sum(tier["used_bytes"] for tier in disk),
            **tokens,
            **events,
        }
        self._rows[self._sampled] = [row[name] for name in COLUMNS]
        self._sampled += 1
        if self.warm_frame is None and frame >= self._s.warm_up * self._s.frames:
            used = [tier for tier in dram if tier["peak_bytes"] > 0]
            full = all(tier["peak_bytes"] >= FULL * tier["capacity_bytes"] for tier in used)
            full = full if used else memory["events"]["merges"] > 0  # summaries alone: the index is full
            self.warm_frame = frame if full else None
        self._judge(memory)
        return row

    def _judge(self, memory: dict[str, Any]) -> None:
        what = breach_of(memory)
        if what is not None:
            self._breached(what)

    def _breached(self, what: str) -> None:
        if self.breach is None:
            self.breach = f"stress: frame {self.frames}: {what}."

    def growth(self) -> dict[str, Any]:
        """RSS after warm-up: the most it grew, and the slope of Theil and Sen in bytes per 1,000 frames."""
        rss = self.curve[:, 1]
        facts: dict[str, Any] = {
            "judged": False,
            "end_bytes": _last(rss),
            "peak_bytes": int(rss.max(initial=0)),
        }
        if self.warm_frame is None:
            return facts
        after = self.curve[self.curve[:, 0] >= self.warm_frame]
        return facts | {
            "judged": True,
            "warm_frame": self.warm_frame,
            "warm_bytes": int(after[0, 1]),
            "growth_bytes": int(after[:, 1].max() - after[0, 1]),
            "slope_bytes_per_1000_frames": 1000 * robust_slope(after[:, 0], after[:, 1]),
        }

    def _growth_breach(self) -> str | None:
        rss = self.growth()
        if not rss["judged"] or rss["growth_bytes"] <= self._allowed:
            return None
        grew = f"RSS grew by {format_bytes(rss['growth_bytes'])} after warm-up (frame {rss['warm_frame']:,}, "
        grew += f"{format_bytes(rss['warm_bytes'])}); it may by {format_bytes(self._allowed)}"
        return f"stress: {grew}. Find the leak, or raise --allow or --warm-up where it is none."

    def result(self) -> dict[str, Any]:
        """Everything, as plain data."""
        memory = self._session.memory()
        return {
            "settings": asdict(self._s),
            "disk_bytes": self._s.disk_bytes,
            "frames": self.frames,
            "seconds": self.seconds,
            "frames_per_second": self.frames / max(self.seconds, 1e-9),
            "questions": self.asked,
            "answers": self.answered,
            "right": self.right,
            "rss": self.growth(),
            "memory": memory,
            "breach": self.breach,
        }


def breach_of(memory: dict[str, Any]) -> str | None:
    """What is wrong in `Session.memory()`: the cap, a tier, or the account of every token ever seen; None if
    nothing is.
    """
    if memory["taken_bytes"] > memory["cap_bytes"]:
        return (
            f"the core took {format_bytes(memory['taken_bytes'])}; "
            f"the cap is {format_bytes(memory['cap_bytes'])} (--memory)"
        )
    for tier in memory["tiers"]:
        if max(tier["used_bytes"], tier["peak_bytes"]) > tier["capacity_bytes"]:
            knob = "--disk" if tier["medium"] == "disk" else "--memory"
            return (
                f"tier {tier['medium']} {tier['codec']} held {format_bytes(tier['peak_bytes'])}; "
                f"it has {format_bytes(tier['capacity_bytes'])} ({knob})"
            )
    tokens = memory["tokens"]
    held = sum(count for where, count in tokens.items() if where != "seen")
    if held != tokens["seen"]:
        return (
            f"the account holds {held:,} tokens; {tokens['seen']:,} were seen. "
            "This is a defect of the core, no knob helps"
        )
    return None


def _last(values: NDArray[np.float64]) -> int:
    return int(values[-1]) if len(values) else 0


def robust_slope(x: NDArray[np.float64], y: NDArray[np.float64], most: int = 400) -> float:
    """Median of the slopes between all pairs of points (Theil and Sen), at most `most` of them; 0 for one."""
    pick = np.unique(np.linspace(0, len(x) - 1, min(len(x), most)).round().astype(int))
    first, second = np.triu_indices(len(pick), 1)
    if len(first) == 0:
        return 0.0
    x, y = x[pick], y[pick]
    return float(np.median((y[second] - y[first]) / (x[second] - x[first])))
