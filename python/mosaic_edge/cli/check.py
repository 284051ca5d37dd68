"""`mosaic-edge check`: whether a checkpoint answers here as its own script would."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mosaic_edge.cli import command
from mosaic_edge.cli.options import Json, ModelOptions
from mosaic_edge.cli.output import console, end_with, print_json

if TYPE_CHECKING:
    from mosaic_edge.evaluation.check.row import Row


@command
def check(
    model: ModelOptions,
    video: Annotated[Path | None, typer.Option(help="A clip of your own. Default: a drawn one.")] = None,
    fps: Annotated[float, typer.Option(help="Frames a second of it.")] = 2.0,
    frames: Annotated[int, typer.Option(min=1, max=64, help="At most so many of it.")] = 6,
    ask: Annotated[str | None, typer.Option(help="The question.")] = None,
    steps: Annotated[int, typer.Option(min=1, max=256, help="Greedy tokens to compare.")] = 32,
    json: Json = False,
) -> None:
    """Compare a session whose cap holds everything with the plain script of the model's library.

    Both are shown the same frames. Prompt, pixels, tokens a frame, features, positions, logits of the first
    token, greedy tokens: exit code 1 when one differs, or nothing could be compared. --dtype fp32 compares to
    the rounding of float32.
    """
    result = check_model(model, video, fps=fps, frames=frames, question=ask, steps=steps)
    if json:
        print_json(result)
    else:
        show_check(result, console())
    end_with(result["error"], 1)


def check_model(
    model: ModelOptions, video: Path | None, *, fps: float, frames: int, question: str | None, steps: int
) -> dict[str, Any]:
    """Load, compare; "equal" of the result is the verdict, "error" says in one line what is wrong, or is
    None."""
    from mosaic_edge.evaluation.check.clip import QUESTION, Clip, drawn, fitting, of_file
    from mosaic_edge.evaluation.check.row import passed
    from mosaic_edge.models import TINY

    if not 0 < fps <= 1000:
        raise ValueError(f"fps={fps:g}: expected more than 0, at most 1000")
    if question is not None and not question.strip():
        raise ValueError("ask: expected a question, got an empty text")
    shown = drawn(frames, fps=fps) if video is None else of_file(video, frames, fps)
    engine = model.load()
    if model.model == TINY:
        raise ValueError(f"model={TINY}: no library has a script of it to compare with; give --model")
    clip = fitting(Clip(shown.frames, fps, question or QUESTION), engine.spec, 256 + steps)
    rows = _rows(engine, clip, steps)
    wrong = [row.what for row in rows if row.equal is False]
    differs = f"{engine.spec.name}: {', '.join(wrong)} not as in the script of its library"
    nothing = f"{engine.spec.name}: nothing could be compared"
    return {
        "model": engine.spec.name,
        "layout": engine.spec.layout,
        "frames": list(clip.frames.shape[:3]),
        "fps": fps,
        "question": clip.question,
        "left_out": engine.spec.left_out,
        "rows": [asdict(row) for row in rows],
        "equal": passed(rows),
        "error": None if passed(rows) else differs if wrong else nothing,
    }


def _rows(engine: Any, clip: Any, steps: int) -> list[Row]:
    if engine.spec.layout == "onnx":
        from mosaic_edge.evaluation.check.graphs import check_graphs

        return check_graphs(engine, clip, steps)
    from mosaic_edge.evaluation.check.checkpoint import check_checkpoint

    return check_checkpoint(engine, clip, steps)


def show_check(result: dict[str, Any], console: Console) -> None:
    """Print a table, a row for each thing compared."""
    count, height, width = result["frames"]
    title = f"{result['model']} ({result['layout']}), {count} frames of {height} x {width}"
    table = Table(title=title, title_justify="left")
    for name in ("what", "as the script's", "how"):
        table.add_column(name)
    words = {True: ("equal", "green"), False: ("DIFFERS", "red"), None: ("-", "yellow")}
    for row in result["rows"]:
        table.add_row(row["what"], Text(*words[row["equal"]]), row["detail"])
    console.print(table)
    if result["left_out"]:
        console.print(f"left out of the prompt: {result['left_out']}", soft_wrap=True)
