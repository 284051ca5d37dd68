"""`mosaic-edge demo`: a world video goes by under a cap, and questions are asked about moments long gone."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import psutil
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mosaic_edge.cli import command
from mosaic_edge.cli.options import Json, ModelOptions, Seed, SessionOptions
from mosaic_edge.cli.output import clock, console, print_json, show_evidence, taken
from mosaic_edge.cli.progress import StreamView, progress_bar
from mosaic_edge.output_file import writable_folder

if TYPE_CHECKING:
    from mosaic_edge.engine import Engine
    from mosaic_edge.world import Question, World
    from mosaic_edge.world.world import Difficulty

VIDEO_FPS = 8
_MOST_SECONDS = 7 * 24 * 3600
KINDS = ("colour", "shape", "room", "two_keys", "first", "last")
"""Every kind but `now`: the demo is about the past."""


SESSION = SessionOptions(memory="1MiB")


@command
def demo(
    model: ModelOptions,
    seconds: Annotated[float, typer.Option(help="Length of the video.")] = 600.0,
    difficulty: Annotated[str, typer.Option(help="plain or lively.")] = "plain",
    session: SessionOptions = SESSION,
    against: Annotated[str, typer.Option(help="The policy to compare with, under the same cap.")] = "window",
    seed: Seed = 7,
    questions: Annotated[int, typer.Option(min=1, max=100, help="How many to ask.")] = 12,
    out: Annotated[Path | None, typer.Option(help="Keep the video in this folder.")] = None,
    json: Json = False,
) -> None:
    """Write a video, stream it under a cap, ask about moments long gone, and compare with `window`."""
    if difficulty not in ("plain", "lively"):
        raise ValueError(f"difficulty={difficulty!r}: expected plain or lively")
    settings = DemoSettings(seconds, difficulty, against, seed, questions)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory(prefix="mosaic-demo-") as scratch:
        result = run_demo(settings, out or Path(scratch), model, session, quiet=json)
        result["video_kept"] = out is not None
        if json:
            print_json(result)
        else:
            show_demo(result, console())


@dataclass(frozen=True)
class DemoSettings:
    """What is shown: `seconds` of a world, streamed at one frame a second."""

    seconds: float = 600.0
    difficulty: Difficulty = "plain"
    against: str = "window"
    seed: int = 7
    questions: int = 12


def past_questions(world: World, at: float, count: int) -> list[Question]:
    """`count` questions of mixed kinds about moments a minute (in short streams a fifth) before `at`."""
    pool = world.questions(at, np.random.default_rng([world.seed, 6]), 40 * count, KINDS)
    least = min(60.0, at / 5)
    chosen = [q for q in pool if q.delay >= least]
    if len(chosen) < count:
        chosen = sorted(pool, key=lambda q: -q.delay)
    return chosen[:count]


def run_demo(
    settings: DemoSettings,
    folder: Path,
    model: ModelOptions,
    session: SessionOptions,
    quiet: bool = False,
) -> dict[str, Any]:
    """Write the video into `folder`, stream it under each policy, ask; everything as plain data."""
    if not 8 <= settings.seconds <= _MOST_SECONDS:
        raise ValueError(f"seconds={settings.seconds:g}: expected 8 to {_MOST_SECONDS:,}")
    from mosaic_edge.world import World, write_mp4

    world = World(settings.seed, settings.seconds, settings.difficulty)
    engine = model.load()
    policies = dict.fromkeys((session.policy, settings.against))
    keywords = {policy: {**session.keywords(), "policy": policy} for policy in policies}
    for chosen in keywords.values():
        engine.plan(**chosen)  # refuse before the video is written
    writable_folder(folder, "out")
    video = folder / f"world-{settings.difficulty}-{settings.seed}-{settings.seconds:g}s.mp4"
    with progress_bar(not quiet) as bar:
        task = bar.add_task("writing the video", total=int(settings.seconds * VIDEO_FPS))
        write_mp4(video, world, VIDEO_FPS, progress=lambda done, total: bar.update(task, completed=done))
    questions = past_questions(world, float(int(settings.seconds) - 1), settings.questions)
    runs = [_run(engine, chosen, settings, video, questions, quiet) for chosen in keywords.values()]
    return {
        **asdict(settings),
        "memory": session.memory,
        "policy": session.policy,
        "model": model.model,
        "video": str(video),
        "runs": runs,
        "summary": summary(runs),
    }


def _run(
    engine: Engine,
    keywords: dict[str, Any],
    settings: DemoSettings,
    video: Path,
    questions: list[Question],
    quiet: bool,
) -> dict[str, Any]:
    from mosaic_edge.reply import reply_document

    process = psutil.Process()
    early: list[int] = []

    def tick(pts: float, frames: int) -> None:
        view.tick(pts, frames)
        if not early and pts >= settings.seconds / 4:
            early.append(process.memory_info().rss)

    policy = keywords["policy"]
    with engine.session(**keywords) as session:
        with StreamView(session, policy, not quiet) as view:
            session.append_video(video, fps=1.0, progress=tick)
        growth = process.memory_info().rss - early[0] if early else 0
        answers = []
        for question in questions:
            reply = session.ask(question.text)
            answers.append(
                {
                    **reply_document(question.text, reply),
                    "truth": question.answer,
                    "right": reply.text.split()[:1] == [question.answer],
                    "kind": question.kind,
                    "seen": list(question.evidence),
                    "ago": question.delay,
                }
            )
        memory = session.memory()
    return {
        "policy": policy,
        "cap_bytes": memory["cap_bytes"],
        "taken_bytes": memory["taken_bytes"],
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
    pace = f"{first['frames']} frames at {first['frames_per_second']:.0f} frames/s"
    return f"{scores}, memory flat at {taken(first)}, {pace}"


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
            mark = Text("right", "green") if a["right"] else Text("wrong", "red")
            seen = f"{clock(a['seen'][0])}-{clock(a['seen'][1])}, {clock(a['ago'])} ago"
            table.add_row(
                a["question"], a["answer"], a["truth"], mark, seen, show_evidence(a["evidence"], most)
            )
        console.print(table)
    console.print(result["summary"], soft_wrap=True)
