"""`mosaic-edge eval`: run the measurement, print its tables and write JSON, Markdown and plots."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from mosaic_edge.cli.progress import progress_bar
from mosaic_edge.config import SessionConfig
from mosaic_edge.evaluation.plots import PLOTS, draw
from mosaic_edge.evaluation.report import markdown
from mosaic_edge.evaluation.runner import EvalSettings, evaluate
from mosaic_edge.evaluation.variants import FULL


def run_eval(settings: EvalSettings, out: Path, *, jobs: int, force: bool, quiet: bool) -> dict[str, Any]:
    """Measure what `out` lacks; write eval.json, eval.md and the plots there; print the tables."""
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
        for name, plot in PLOTS.items():
            draw(plot(rows), out / f"{name}.png")
    except ModuleNotFoundError as error:
        print(
            f"mosaic-edge: no plot: {error.name} is not installed: pip install 'mosaic_edge[eval]'",
            file=sys.stderr,
        )
    if not quiet:
        Console().print(table, markup=False, highlight=False, soft_wrap=True)
    return result


def default_policies(known: list[str], quick: bool) -> str:
    """What --policies is when it is not given: all there are, `full` first; with --quick four of them."""
    wanted = [FULL, SessionConfig().policy, "window", "uniform"] if quick else [FULL, *known]
    return ",".join(name for name in dict.fromkeys(wanted) if name in known)


def parse_numbers(text: str, knob: str) -> tuple[int, ...]:
    """Whole numbers separated by commas. ValueError names the knob."""
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise ValueError(f"{knob}={text!r}: expected whole numbers separated by commas") from None


def parse_names(text: str, knob: str) -> tuple[str, ...]:
    """Names separated by commas. ValueError names the knob."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if "" in names:
        raise ValueError(f"{knob}={text!r}: expected names separated by commas")
    return names
