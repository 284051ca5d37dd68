"""`mosaic-edge eval`: run the measurement, print its tables and write JSON, Markdown and plots."""

from __future__ import annotations

import json as documents
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mosaic_edge import DEFAULT_POLICY
from mosaic_edge.cli import command
from mosaic_edge.cli.options import Backend, Json, ModelOptions
from mosaic_edge.cli.output import DataConsole, complain, print_json
from mosaic_edge.cli.progress import progress_bar

if TYPE_CHECKING:
    from mosaic_edge.evaluation.settings import EvalSettings
    from mosaic_edge.profiles import Profile


@dataclass(frozen=True)
class CellOptions:
    """Fields of SessionConfig that all cells share; caps, policies and disks are what is measured."""

    backend: Backend = "cpu"
    more: dict[str, Any] = field(default_factory=dict)
    """Of a profile: fields that have no option."""

    @staticmethod
    def of_profile(profile: Profile) -> dict[str, Any]:
        """What a profile says of these."""
        from mosaic_edge.evaluation.variants import GIVEN

        return {name: value for name, value in profile.session.items() if name not in GIVEN}


@command
def eval_(
    model: ModelOptions,
    cells: CellOptions,
    policies: Annotated[
        str | None, typer.Option(help="Comma-separated, with settings as name[key=value;...]. Default: all.")
    ] = None,
    caps: Annotated[
        str | None, typer.Option(help="Of the full cache, or sizes: 2%,512KiB. Default: 100%,25%,10%,5%,2%.")
    ] = None,
    lengths: Annotated[str, typer.Option(help="Frames a stream, one a second: 512,16384.")] = "512",
    seeds: Annotated[str, typer.Option(help="Worlds: one stream each per difficulty.")] = "7,8",
    difficulty: Annotated[str, typer.Option(help="plain, lively or both.")] = "plain,lively",
    questions: Annotated[int | None, typer.Option(help="Per stream. Default: 96.")] = None,
    disk: Annotated[
        str | None,
        typer.Option(help="Policies that retrieve get a second row with such a spill file: 64MiB."),
    ] = None,
    jobs: Annotated[int, typer.Option(help="Processes. Times mean something with 1 only.")] = 1,
    ray: Annotated[
        str | None,
        typer.Option(help="Address of a Ray cluster; its CPUs instead of --jobs. auto: the one here."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of results; finished parts are kept.")] = Path("eval"),
    force: Annotated[bool, typer.Option("--force", help="Do finished parts again.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Four policies, caps 10%,5% and 48 questions.")
    ] = False,
    json: Json = False,
) -> None:
    """Measure every policy at equal bytes: JSON, Markdown tables and PNG plots in --out."""
    from mosaic_edge import _core
    from mosaic_edge.evaluation.settings import EvalSettings
    from mosaic_edge.evaluation.variants import parse_caps, parse_policies

    settings = EvalSettings(
        policies=parse_policies(policies or default_policies(_core.policies(), quick)),
        caps=parse_caps(caps or ("10%,5%" if quick else "100%,25%,10%,5%,2%")),
        lengths=parse_numbers(lengths, "lengths"),
        seeds=parse_numbers(seeds, "seeds"),
        difficulties=parse_names(difficulty, "difficulty"),
        questions=questions if questions is not None else (48 if quick else 96),
        disk=disk,
        model=model.model,
        load=model.keywords(),
        session={**cells.more, "backend": cells.backend},
    )
    result = run_eval(settings, out, jobs=jobs, ray=ray, force=force, quiet=json)
    if json:
        print_json(result)


def run_eval(
    settings: EvalSettings, out: Path, *, jobs: int, force: bool, quiet: bool, ray: str | None = None
) -> dict[str, Any]:
    """Measure what `out` lacks; write eval.json, eval.md and the plots there; print the tables."""
    from mosaic_edge.evaluation.plots import PLOTS, draw
    from mosaic_edge.evaluation.report import markdown
    from mosaic_edge.evaluation.runner import evaluate

    with progress_bar(not quiet) as bar:
        task = bar.add_task("evaluating", total=None)

        def step(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)

        rows = evaluate(settings, out, jobs=jobs, ray=ray, force=force, progress=step)
    result = {"settings": {**asdict(settings), "jobs": jobs}, "rows": rows}
    table = markdown(rows, settings, jobs)
    (out / "eval.json").write_text(documents.dumps(result, indent=1) + "\n")
    (out / "eval.md").write_text(table)
    try:
        for name, plot in PLOTS.items():
            draw(plot(rows), out / f"{name}.png")
    except ModuleNotFoundError as error:
        complain(f"no plot: {error.name} is not installed: pip install 'mosaic_edge[eval]'")
    if not quiet:
        DataConsole().print(table, soft_wrap=True)
    return result


def default_policies(known: list[str], quick: bool) -> str:
    """What --policies is when it is not given: all there are, `full` first; with --quick four of them."""
    wanted = ["full", DEFAULT_POLICY, "window", "uniform"] if quick else ["full", *known]
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
