"""`mosaic-edge run`: stream a file under a cap and answer questions about it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from mosaic_edge.cli import command
from mosaic_edge.cli.options import (
    AnswerOptions,
    Json,
    ModelOptions,
    SessionOptions,
    SourceOptions,
    TraceFile,
    traced,
)
from mosaic_edge.cli.output import (
    clock,
    console,
    end_with,
    one_line,
    print_json,
    show_evidence,
    taken,
    visible,
)
from mosaic_edge.cli.progress import StreamView

if TYPE_CHECKING:
    from mosaic_edge.session import Session


@command
def run(
    source: Annotated[Path, typer.Option(help="A video file.")],
    ask: Annotated[list[str], typer.Option(help="A question; may be given several times.")],
    model: ModelOptions,
    session: SessionOptions,
    reading: SourceOptions,
    answers: AnswerOptions,
    trace: TraceFile = None,
    json: Json = False,
) -> None:
    """Stream a file and answer questions about it.

    A file that breaks off is answered from what decoded; then one line says why, and the exit code is 1.
    """
    settings = traced(session.keywords(), trace)
    result = run_file(
        source, ask, model=model, fps=reading.fps, answers=answers, session=settings, quiet=json
    )
    if json:
        print_json(result)
    elif result["frames"]:
        show_run(result, console())
    end_with(result["error"], 1)


def run_file(
    source: Path,
    questions: list[str],
    *,
    model: ModelOptions,
    fps: float | None,
    answers: AnswerOptions,
    session: dict[str, Any],
    quiet: bool = False,
) -> dict[str, Any]:
    """Stream `source` to its end, or as far as it can be read, then answer.

    A source that breaks off raises nothing here: "error" of the result says what was wrong, or is None.
    A question that fails then does not cost the answers of the others. Raises ValueError for an unknown word,
    or a question there is no room for, before any frame is read, MemoryCapError for an impossible cap.
    """
    from mosaic_edge.errors import MemoryCapError
    from mosaic_edge.question import check_arguments, question_tokens
    from mosaic_edge.sources import SourceError, open_source

    if not source.exists():
        raise ValueError(f"source={source}: no such file")
    engine = model.load()
    keywords = answers.keywords(engine)
    for question in questions:
        if not question.strip():
            raise ValueError("ask: expected a question, got an empty text")
        check_arguments(question, None, None)
    lengths = [len(question_tokens(engine.model, question)) for question in questions]
    frames = open_source(source, engine.spec.fps if fps is None else fps)  # refused before memory is taken
    error: str | None = None
    last_pts: float | None = None
    with closing(frames), engine.session(**session) as opened:
        try:
            opened.check_room(max(lengths, default=0))
        except MemoryCapError as long:
            raise ValueError(f"ask: {long}") from None
        with StreamView(opened, source.name, not quiet) as view:

            def tick(pts: float, frames: int) -> None:
                nonlocal last_pts
                last_pts = pts
                view.tick(pts, frames)

            try:
                opened.append_frames(frames, tick)
            except SourceError as broken:
                error = str(broken)
        asked = questions if view.frames else []
        documents = [_answered(opened, question, keywords) for question in asked]
        memory = opened.memory()
    error = error or next((str(d["error"]) for d in documents if "error" in d), None)
    return {
        "source": str(source),
        "frames": view.frames,
        "reached_seconds": last_pts,
        "frames_per_second": view.frames / max(view.seconds, 1e-9),
        "answers": documents,
        "memory": memory,
        "error": error,
    }


def _answered(session: Session, question: str, keywords: dict[str, Any]) -> dict[str, Any]:
    """What the session says, or what was wrong: the answers to others are not lost with it."""
    from mosaic_edge.reply import reply_document

    try:
        return reply_document(question, session.ask(question, **keywords))
    except Exception as error:
        return {"question": question, "error": one_line(error)}


def show_run(result: dict[str, Any], console: Console) -> None:
    """Print the answers with what they were read from, and one line about the stream."""
    for a in result["answers"]:
        if "error" in a:
            continue  # said at the end
        line = Text(visible(a["question"]), style="bold").append(
            f"  {visible(a['answer'])}", style="not bold"
        )
        console.print(line, soft_wrap=True)
        wait = f"first token after {a['first_token_ms']:.1f} ms"
        cut = f"; cut off after {a['tokens']} tokens" if a["finish"] == "length" else ""
        if cut and a["thinking"] and not a["answer"]:
            cut += ", in its thought: raise --max-tokens and --branch-tokens"
        console.print(f"  read from {show_evidence(a['evidence'])}; {wait}{cut}", soft_wrap=True)
    memory = result["memory"]
    stream = f"{result['frames']} frames up to {clock(result['reached_seconds'] or 0)}"
    console.print(f"{stream}, {result['frames_per_second']:.0f} frames/s, {taken(memory)}", soft_wrap=True)
