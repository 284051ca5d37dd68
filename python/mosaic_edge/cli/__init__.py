"""`mosaic-edge`: demo, run, live, plan, doctor, eval, stress.

Results go to stdout, progress and errors to stderr. --json prints one JSON document and nothing else.
Exit codes: 0 done, 1 it failed, 2 bad usage, 3 a cap that is impossible or was breached.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mosaic_edge import DEFAULT_POLICY

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Streaming video memory for vision-language models under a hard memory cap.",
)

Model = Annotated[
    str,
    typer.Option(help="mosaic-tiny, a directory of ONNX graphs or as transformers saves it, or a hub id."),
]
Memory = Annotated[str, typer.Option(help="The cap: everything that grows with the stream, such as 64MiB.")]
Policy = Annotated[str, typer.Option(help="What is kept under the cap; `doctor` lists the names.")]
Backend = Annotated[str, typer.Option(help="Where the memory's kernels run: cpu, or cuda.")]
Disk = Annotated[str | None, typer.Option(help="Quota of the spill file, such as 2GiB. Default: none.")]
Profile = Annotated[
    str | None,
    typer.Option(help="A board's settings, by name or as a .toml: `doctor` lists them; options win."),
]
TraceFile = Annotated[
    Path | None,
    typer.Option("--trace", help="Write a trace for Perfetto (ui.perfetto.dev) or chrome://tracing."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else.")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Errors of the user, files and caps are one line on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = app(args=arguments, standalone_mode=False, prog_name="mosaic-edge")
        return (_interrupted() if code == 130 else code) if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except Exception as error:
        if hasattr(
            error, "format_message"
        ):  # typer's own: click's classes are private in newer versions of it
            return _fail(error.format_message(), 2, arguments)
        code = exit_code(error)
        if code is None:
            raise
        return _fail(_line(error), code, arguments)


def _interrupted() -> int:
    print("mosaic-edge: interrupted", file=sys.stderr)
    return 130


def exit_code(error: BaseException) -> int | None:
    """2 for bad usage, 3 for a cap, 1 for a file, the machine or the core; None for a defect here."""
    kinds = {cls.__name__ for cls in type(error).__mro__}
    if "MemoryCapError" in kinds:
        return 3
    if "SourceError" in kinds:
        return 1
    if "ValueError" in kinds:  # InvalidInput and ModelError among them
        return 2
    if kinds & {"OSError", "ImportError", "InvariantError", "DeviceError", "MemoryError"}:
        return 1
    return None


def _line(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == "onnxruntime":
        return "onnxruntime is not installed: pip install 'mosaic_edge[cpu]', or 'mosaic_edge[gpu]' on a GPU"
    return " ".join(str(error).split()) or type(error).__name__


def _fail(message: str, code: int, arguments: Sequence[str]) -> int:
    print(f"mosaic-edge: {message}", file=sys.stderr)
    if "--json" in arguments:
        print_json({"error": message, "exit_code": code})
    return code


def _console() -> Console:
    """Results on stdout: as wide as the terminal, or wide enough for every table in a pipe."""
    width = None if sys.stdout.isatty() else 160
    return Console(width=width, highlight=False)


def print_json(document: dict[str, Any]) -> None:
    """One document on stdout; a number JSON does not know becomes null."""
    print(json.dumps(_plain(document), indent=1, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@app.command()
def demo(
    seconds: Annotated[float, typer.Option(help="Length of the video.")] = 600.0,
    difficulty: Annotated[str, typer.Option(help="plain or lively.")] = "plain",
    memory: Memory = "1MiB",
    policy: Policy = DEFAULT_POLICY,
    against: Annotated[str, typer.Option(help="The policy to compare with, under the same cap.")] = "window",
    seed: Annotated[int, typer.Option(help="Which world.")] = 7,
    questions: Annotated[int, typer.Option(min=1, max=100, help="How many to ask.")] = 12,
    model: Model = "mosaic-tiny",
    out: Annotated[Path | None, typer.Option(help="Keep the video in this folder.")] = None,
    json: Json = False,
) -> None:
    """Write a video, stream it under a cap, ask about moments long gone, and compare with `window`."""
    from mosaic_edge.cli.demo import DemoSettings, run_demo, show_demo

    if difficulty not in ("plain", "lively"):
        raise ValueError(f"difficulty={difficulty!r}: expected plain or lively")
    settings = DemoSettings(seconds, difficulty, memory, policy, against, seed, questions, model)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory(prefix="mosaic-demo-") as scratch:
        result = run_demo(settings, out or Path(scratch), quiet=json)
        result["video_kept"] = out is not None
        if json:
            print_json(result)
        else:
            show_demo(result, _console())


def _settings(context: typer.Context, profile: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """What `given` options were typed, then the profile, then the options' defaults; "fps" is one of them."""
    from mosaic_edge.profiles import read_profile

    if profile is None:
        return given
    read = read_profile(profile)
    settings = {**given, **read.session, "fps": read.fps}
    for name, value in given.items():
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            settings[name] = value
    return settings


@app.command()
def run(
    context: typer.Context,
    source: Annotated[Path, typer.Option("--source", "--video", help="A video file.")],
    ask: Annotated[list[str], typer.Option(help="A question; may be given several times.")],
    model: Model = "mosaic-tiny",
    memory: Memory = "64MiB",
    policy: Policy = DEFAULT_POLICY,
    fps: Annotated[float | None, typer.Option(help="Frames a second. Default: the model's.")] = None,
    since: Annotated[float | None, typer.Option(help="Read only what was seen from this second on.")] = None,
    disk: Disk = None,
    backend: Backend = "cpu",
    profile: Profile = None,
    trace: TraceFile = None,
    json: Json = False,
) -> None:
    """Stream a file and answer questions about it.

    A file that breaks off is answered from what decoded; then one line says why, and the exit code is 1.
    """
    from mosaic_edge.cli.run import run_file, show_run

    session = _settings(
        context, profile, {"memory": memory, "policy": policy, "disk": disk, "backend": backend, "fps": fps}
    )
    fps = session.pop("fps")
    session["trace"] = None if trace is None else str(trace)
    result = run_file(source, ask, model=model, fps=fps, since=since, session=session, quiet=json)
    if json:
        print_json(result)
    elif result["frames"]:
        show_run(result, _console())
    if result["error"] is not None:
        print(f"mosaic-edge: {result['error']}", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def live(
    context: typer.Context,
    source: Annotated[str, typer.Option(help="A camera (/dev/video0), a stream (rtsp://...) or a file.")],
    model: Model = "mosaic-tiny",
    memory: Memory = "64MiB",
    policy: Policy = DEFAULT_POLICY,
    fps: Annotated[float | None, typer.Option(help="Frames a second. Default: the model's.")] = None,
    disk: Disk = None,
    backend: Backend = "cpu",
    profile: Profile = None,
    socket: Annotated[
        Path | None, typer.Option(help="Unix socket: a question a line in, a JSON answer a line out.")
    ] = None,
    account: Annotated[Path | None, typer.Option(help="CSV of the memory account over time.")] = None,
    every: Annotated[float, typer.Option(help="Seconds between rows of --account.")] = 10.0,
    trace: TraceFile = None,
    json: Json = False,
) -> None:
    """Stream a camera until it ends or SIGTERM, answering over a socket.

    A source that breaks off ends with one line that says why, and the exit code 1.
    """
    from mosaic_edge.cli.live import LiveSettings, run_live, show_live

    session = _settings(
        context, profile, {"memory": memory, "policy": policy, "disk": disk, "backend": backend, "fps": fps}
    )
    session["trace"] = None if trace is None else str(trace)
    settings = LiveSettings(source, session.pop("fps"), model, socket, account, every)
    result = run_live(settings, session, quiet=json)
    if json:
        print_json(result)
    else:
        show_live(result, _console())
    if result["error"] is not None:
        print(f"mosaic-edge: {result['error']}", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def plan(
    context: typer.Context,
    memory: Memory = "64MiB",
    policy: Policy = DEFAULT_POLICY,
    model: Model = "mosaic-tiny",
    disk: Disk = None,
    backend: Backend = "cpu",
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Show how a cap would be split, without allocating it."""
    from mosaic_edge.cli.plan import make_plan, show_plan

    session = _settings(
        context, profile, {"memory": memory, "policy": policy, "disk": disk, "backend": backend}
    )
    session.pop("fps", None)
    result = make_plan(model, session)
    if json:
        print_json(result)
    else:
        show_plan(result, _console())


@app.command()
def doctor(
    spill_dir: Annotated[str | None, typer.Option(help="Folder of spill files to test.")] = None,
    json: Json = False,
) -> None:
    """Show versions, backends, what is missing and how to get it. Always ends with 0."""
    from mosaic_edge.cli.doctor import examine, show_doctor

    found = examine(spill_dir)
    if json:
        print_json(found)
    else:
        show_doctor(found, _console())


@app.command("eval")
def evaluate(
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
    model: Model = "mosaic-tiny",
    jobs: Annotated[int, typer.Option(help="Processes. Times mean something with 1 only.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder of results; finished parts are kept.")] = Path("eval"),
    force: Annotated[bool, typer.Option("--force", help="Do finished parts again.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Four policies, caps 10%,5% and 48 questions.")
    ] = False,
    json: Json = False,
) -> None:
    """Measure every policy at equal bytes: JSON, Markdown tables and PNG plots in --out."""
    from mosaic_edge import _core
    from mosaic_edge.cli.eval import default_policies, parse_names, parse_numbers, run_eval
    from mosaic_edge.evaluation.runner import EvalSettings
    from mosaic_edge.evaluation.variants import parse_caps, parse_policies

    settings = EvalSettings(
        policies=parse_policies(policies or default_policies(_core.policies(), quick)),
        caps=parse_caps(caps or ("10%,5%" if quick else "100%,25%,10%,5%,2%")),
        lengths=parse_numbers(lengths, "lengths"),
        seeds=parse_numbers(seeds, "seeds"),
        difficulties=parse_names(difficulty, "difficulty"),
        questions=questions if questions is not None else (48 if quick else 96),
        disk=disk,
        model=model,
    )
    result = run_eval(settings, out, jobs=jobs, force=force, quiet=json)
    if json:
        print_json(result)


@app.command()
def stress(
    memory: Memory = "32MiB",
    frames: Annotated[int, typer.Option(help="Frames to stream, as fast as it goes.")] = 100_000,
    policy: Policy = DEFAULT_POLICY,
    disk: Annotated[
        str | None, typer.Option(help="Quota of the spill file, or none. Default: four times --memory.")
    ] = None,
    faults: Annotated[
        bool, typer.Option("--faults", help="Let every 97th read, write and allocation on disk fail.")
    ] = False,
    faults_every: Annotated[int | None, typer.Option(min=1, help="--faults, with another number.")] = None,
    difficulty: Annotated[str, typer.Option(help="plain or lively.")] = "plain",
    seed: Annotated[int, typer.Option(help="Which world.")] = 7,
    ask_every: Annotated[int, typer.Option(help="Frames between questions.")] = 50,
    check_every: Annotated[int, typer.Option(help="Frames between recounts of the invariants.")] = 1000,
    warm_up: Annotated[float, typer.Option(help="Share of the frames after which RSS may not grow.")] = 0.25,
    allow: Annotated[str, typer.Option(help="Growth of RSS after warm-up that is still noise.")] = "8MiB",
    model: Model = "mosaic-tiny",
    out: Annotated[Path, typer.Option(help="Folder of the memory curve and results.")] = Path("stress"),
    trace: TraceFile = None,
    json: Json = False,
) -> None:
    """Stream a world under a cap with questions mixed in; ends with 3 on a breach of cap, account or RSS."""
    from mosaic_edge.cli.stress import show_stress
    from mosaic_edge.evaluation.stress import StressSettings, run_stress

    settings = StressSettings(
        memory=memory, frames=frames, policy=policy, disk=disk, faults=faults_every or (97 if faults else 0),
        difficulty=difficulty,  # type: ignore[arg-type]
        seed=seed, ask_every=ask_every, check_every=check_every, warm_up=warm_up,
        allow=allow, model=model, trace=None if trace is None else str(trace),
    )  # fmt: skip
    result = run_stress(settings, out, quiet=json)
    if json:
        print_json(result)
    else:
        show_stress(result, out, _console())
    if result["breach"] is not None:
        print(f"mosaic-edge: {result['breach']}", file=sys.stderr)
        raise typer.Exit(3)
