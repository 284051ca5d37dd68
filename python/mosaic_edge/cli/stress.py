"""`mosaic-edge stress`: a stream that goes on as fast as it can, and what was found, as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mosaic_edge.cli import command
from mosaic_edge.cli.options import Json, ModelOptions, Seed, SessionOptions, TraceFile, traced
from mosaic_edge.cli.output import console, end_with, print_json
from mosaic_edge.cli.progress import progress_bar
from mosaic_edge.config import format_bytes

SESSION = SessionOptions(memory="32MiB")


@command
def stress(
    model: ModelOptions,
    session: SessionOptions = SESSION,
    frames: Annotated[int, typer.Option(help="Frames to stream, as fast as it goes.")] = 100_000,
    faults: Annotated[
        bool, typer.Option("--faults", help="Let every 97th read, write and allocation on disk fail.")
    ] = False,
    faults_every: Annotated[int | None, typer.Option(min=1, help="--faults, with another number.")] = None,
    difficulty: Annotated[str, typer.Option(help="plain or lively.")] = "plain",
    seed: Seed = 7,
    ask_every: Annotated[int, typer.Option(help="Frames between questions.")] = 50,
    check_every: Annotated[int, typer.Option(help="Frames between recounts of the invariants.")] = 1000,
    warm_up: Annotated[float, typer.Option(help="Share of the frames after which RSS may not grow.")] = 0.25,
    allow: Annotated[str, typer.Option(help="Growth of RSS after warm-up that is still noise.")] = "8MiB",
    out: Annotated[Path, typer.Option(help="Folder of the memory curve and results.")] = Path("stress"),
    trace: TraceFile = None,
    json: Json = False,
) -> None:
    """Stream a world under a cap with questions mixed in; ends with 3 on a breach of cap, account or RSS.

    Without --disk the spill file may have four times --memory; with --disk none there is none.
    """
    from mosaic_edge.evaluation.settings import StressSettings
    from mosaic_edge.evaluation.stress import run_stress

    settings = StressSettings(
        memory=session.memory, frames=frames, policy=session.policy, disk=session.disk,
        faults=faults_every or (97 if faults else 0), difficulty=difficulty,  # type: ignore[arg-type]
        seed=seed, ask_every=ask_every, check_every=check_every, warm_up=warm_up, allow=allow,
        model=model.model, load=model.keywords(),
        session=traced(session.keywords("memory", "policy", "disk"), trace),
    )  # fmt: skip
    with progress_bar(not json) as bar:
        task = bar.add_task("streaming", total=frames)
        result = run_stress(
            settings, out, lambda done, line: bar.update(task, completed=done, description=line)
        )
    if json:
        print_json(result)
    else:
        show_stress(result, out, console())
    end_with(result["breach"], 3)
    end_with(result.get("unwritten"), 1)


def show_stress(result: dict[str, Any], out: Path, console: Console) -> None:
    """Print what was streamed, answered, kept and lost, and how RSS behaved."""
    memory, rss = result["memory"], result["rss"]
    tokens, events, disk = memory["tokens"], memory["events"], memory["disk"]
    settings = result["settings"]
    faults = f"every {settings['faults']}th page on disk fails" if settings["faults"] else "no faults"
    table = Table(
        title=f"{settings['policy']}, {settings['memory']}, {faults}", title_justify="left", show_header=False
    )
    table.add_column()
    table.add_column(justify="right")
    share = f" ({result['right'] / result['questions']:.0%} right)" if result["questions"] else ""
    table.add_row("frames", f"{result['frames']:,} at {result['frames_per_second']:.0f} a second")
    table.add_row("answers given", f"{result['answers']:,} of {result['questions']:,}{share}")
    table.add_section()
    for name in ("seen", "exact", "quantised", "spilled", "collapsed", "dropped"):
        table.add_row(f"tokens {name}", f"{tokens[name]:,}")
    table.add_section()
    table.add_row("pages lost", f"{events['lost_pages']:,}")
    table.add_row("spills failed", f"{events['failed_spills']:,}")
    table.add_row(
        "pauses of the disk (writes / reads)",
        f"{events['spill_pauses']:,} / {events['read_pauses']:,} of {events['paused_frames']:,} frames",
    )
    table.add_row("pages not read", f"{events['unread_pages']:,}")
    errors = f"{disk['io_errors']:,} / {disk['no_space']:,} / {disk['bad_checksums']:,}"
    table.add_row("disk errors / refusals / bad checksums", errors)
    table.add_section()
    table.add_row(
        "taken of the cap", f"{format_bytes(memory['taken_bytes'])} of {format_bytes(memory['cap_bytes'])}"
    )
    if rss["judged"]:
        table.add_row(
            "RSS after warm-up", f"{format_bytes(rss['warm_bytes'])} at frame {rss['warm_frame']:,}"
        )
    table.add_row(
        "RSS at the end / peak", f"{format_bytes(rss['end_bytes'])} / {format_bytes(rss['peak_bytes'])}"
    )
    if rss["judged"]:
        slope = format_bytes(rss["slope_bytes_per_1000_frames"])
        table.add_row(
            "RSS growth after warm-up", f"{format_bytes(rss['growth_bytes'])}, {slope} per 1,000 frames"
        )
    console.print(table)
    if not rss["judged"]:
        console.print(
            "RSS was not judged: the cap was never full. Raise --frames, or lower --memory.", soft_wrap=True
        )
    console.print(f"memory curve: {out / 'memory.csv'}, {out / 'memory.png'}", soft_wrap=True)
