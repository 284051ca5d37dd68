"""`mosaic-edge eval`: run the measurement, print its table and write JSON, Markdown and plot."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from mosaic_edge.commands.live import progress_bar
from mosaic_edge.config import format_bytes
from mosaic_edge.evaluate import EvalSettings, evaluate
from mosaic_edge.plots import plot_accuracy
from mosaic_edge.scoring import Row


def run_eval(settings: EvalSettings, out: Path, *, jobs: int, force: bool, quiet: bool) -> dict[str, Any]:
    """Measure what `out` lacks; write eval.json, eval.md and accuracy.png there; print the table."""
    with progress_bar(not quiet) as bar:
        task = bar.add_task("evaluating", total=None)

        def step(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)

        rows = evaluate(settings, out, jobs=jobs, force=force, progress=step)
    result = {"settings": {**asdict(settings), "jobs": jobs}, "rows": rows}
    table = markdown(rows, settings, jobs)
    (out / "eval.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "eval.md").write_text(table)
    try:
        plot_accuracy(rows, out / "accuracy.png")
    except ModuleNotFoundError as error:
        print(
            f"mosaic-edge: no plot: {error.name} is not installed: pip install 'mosaic_edge[eval]'",
            file=sys.stderr,
        )
    if not quiet:
        Console().print(table, markup=False, highlight=False, soft_wrap=True)
    return result


def markdown(rows: list[Row], settings: EvalSettings, jobs: int) -> str:
    """The rows as a Markdown table, under a line that says what was measured."""
    disk = f"a disk tier of {settings.disk}" if settings.disk else "no disk tier"
    lines = [
        f"{settings.frames} frames at one a second, seeds {', '.join(map(str, settings.seeds))}, {disk}, "
        f"model {settings.model}. Cap: share of the full 16-bit cache, everything the memory holds included; "
        "`full` gets what it needs.",
        *(
            []
            if jobs == 1
            else [f"\nTimes shared the machine with {jobs} processes: take them from --jobs 1."]
        ),
        "",
        "| world | policy | cap | bytes | taken | accuracy | 95 % interval | questions "
        "| first token p50 / p95 ms | frame p50 / p99 ms | evidence read |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cap = f"{row['cap_share']:.0%} | {format_bytes(row['cap_bytes'])}"
        start = f"| {row['difficulty']} | {row['policy']} | {cap} |"
        if "error" in row:
            lines.append(f"{start} cannot run: {row['error']} | | | | | | |")
            continue
        lines.append(
            f"{start} {format_bytes(row['peak_bytes'])} | {row['accuracy']:.1%} "
            f"| {row['ci_low']:.1%} to {row['ci_high']:.1%} | {row['questions']} "
            f"| {row['ttft_ms_p50']:.1f} / {row['ttft_ms_p95']:.1f} "
            f"| {row['frame_ms_p50']:.1f} / {row['frame_ms_p99']:.1f} | {row['evidence_recall']:.0%} |"
        )
    return "\n".join(lines) + "\n"
