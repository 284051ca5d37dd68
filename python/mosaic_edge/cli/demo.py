"""`mosaic-edge demo`: a world video goes by under a cap, and questions are asked about moments long gone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from mosaic_edge import DEFAULT_POLICY
from mosaic_edge.cli.progress import StreamView, clock, progress_bar
from mosaic_edge.config import format_bytes
from mosaic_edge.engine import Engine
from mosaic_edge.world import Question, World, write_mp4
from mosaic_edge.world.world import Difficulty

VIDEO_FPS = 8
KINDS = ("colour", "shape", "room", "two_keys", "first", "last")
"""Every kind but `now`: the demo is about the past."""


@dataclass(frozen=True)
class DemoSettings:
    """What is shown: `seconds` of a world, streamed at one frame a second under `memory`."""

    seconds: float = 600.0
    difficulty: Difficulty = "plain"
    memory: str = "1MiB"
    policy: str = DEFAULT_POLICY
    against: str = "window"
    seed: int = 7
    questions: int = 12
    model: str = "mosaic-tiny"


def past_questions(world: World, at: float, count: int) -> list[Question]:
    """`count` questions of mixed kinds about moments a minute (in short streams a fifth) before `at`."""
    pool = world.questions(at, np.random.default_rng([world.seed, 6]), 40 * count, KINDS)
    least = min(60.0, at / 5)
    chosen = [q for q in pool if q.delay >= least]
    if len(chosen) < count:
        chosen = sorted(pool, key=lambda q: -q.delay)
    return chosen[:count]


def run_demo(settings: DemoSettings, folder: Path, quiet: bool = False) -> dict[str, Any]:
    """Write the video into `folder`, stream it under each policy, ask; everything as plain data."""
    if settings.seconds < 8:
        raise ValueError(f"seconds={settings.seconds:g}: expected at least 8")
    engine = Engine.load(settings.model)
    for policy in (settings.policy, settings.against):
        engine.plan(memory=settings.memory, policy=policy)  # refuse before the video is written
    folder.mkdir(parents=True, exist_ok=True)
    world = World(settings.seed, settings.seconds, settings.difficulty)
    video = folder / f"world-{settings.difficulty}-{settings.seed}-{settings.seconds:g}s.mp4"
    with progress_bar(not quiet) as bar:
        task = bar.add_task("writing the video", total=int(settings.seconds * VIDEO_FPS))
        write_mp4(video, world, VIDEO_FPS, progress=lambda done, total: bar.update(task, completed=done))
    questions = past_questions(world, float(int(settings.seconds) - 1), settings.questions)
    policies = dict.fromkeys((settings.policy, settings.against))
    runs = [_run(engine, policy, settings, video, questions, quiet) for policy in policies]
    return {**asdict(settings), "video": str(video), "runs": runs, "summary": summary(runs)}


def _run(
    engine: Engine, policy: str, settings: DemoSettings, video: Path, questions: list[Question], quiet: bool
) -> dict[str, Any]:
    process = psutil.Process()
    early: list[int] = []

    def tick(pts: float, frames: int) -> None:
        view.tick(pts, frames)
        if not early and pts >= settings.seconds / 4:
            early.append(process.memory_info().rss)

    with engine.session(memory=settings.memory, policy=policy) as session:
        with StreamView(session, policy, not quiet) as view:
            session.append_video(video, fps=1.0, progress=tick)
        growth = process.memory_info().rss - early[0] if early else 0
        answers = []
        for question in questions:
            reply = session.ask(question.text)
            answers.append(
                {
                    "question": question.text,
                    "answer": reply.text,
                    "truth": question.answer,
                    "right": reply.text.split()[:1] == [question.answer],
                    "kind": question.kind,
                    "seen": list(question.evidence),
                    "ago": question.delay,
                    "evidence": [asdict(moment) for moment in reply.evidence],
                    "first_token_ms": 1e3 * reply.first_token_seconds,
                }
            )
        memory = session.memory()
    return {
        "policy": policy,
        "cap_bytes": memory["cap_bytes"],
        "peak_bytes": memory["peak_bytes"],
        "process_growth_bytes": growth,
        "frames": view.frames,
        "frames_per_second": view.frames / view.seconds,
        "right": sum(bool(a["right"]) for a in answers),
        "asked": len(answers),
        "answers": answers,
        "memory": memory,
    }


def summary(runs: list[dict[str, Any]]) -> str:
    """One line: mosaic 11/12, window 3/12, memory flat at X of a cap of Y."""
    scores = ", ".join(f"{run['policy']} {run['right']}/{run['asked']}" for run in runs)
    first = runs[0]
    held = (
        f"memory flat at {format_bytes(first['peak_bytes'])} of a cap of {format_bytes(first['cap_bytes'])}"
    )
    return f"{scores}, {held}, {first['frames']} frames at {first['frames_per_second']:.0f} frames/s"


def show_demo(result: dict[str, Any], console: Console) -> None:
    """Print a table per policy and the summary."""
    kept = result["video"] if result["video_kept"] else f"{Path(result['video']).name} (--out DIR keeps it)"
    console.print(f"{clock(result['seconds'])} of {result['difficulty']} video in {kept}", soft_wrap=True)
    most = 3 if console.width >= 140 else 1
    for run in result["runs"]:
        table = Table(title=f"{run['policy']}: {run['right']} of {run['asked']} right", title_justify="left")
        for name in ("question", "answer", "truth", "", "asked about", "read (share)"):
            table.add_column(name)
        for a in run["answers"]:
            mark = "[green]right[/green]" if a["right"] else "[red]wrong[/red]"
            seen = f"{clock(a['seen'][0])}-{clock(a['seen'][1])}, {clock(a['ago'])} ago"
            table.add_row(
                a["question"], a["answer"], a["truth"], mark, seen, show_evidence(a["evidence"], most)
            )
        console.print(table)
    console.print(result["summary"], soft_wrap=True)


def show_evidence(evidence: list[dict[str, float]], most: int = 3) -> str:
    """Time ranges with their share of the attention: 0:41-0:52 (63 %)."""
    ranges = [f"{clock(e['start'])}-{clock(e['end'])} ({e['score']:.0%})" for e in evidence[:most]]
    return ", ".join(ranges) or "spread over everything"
