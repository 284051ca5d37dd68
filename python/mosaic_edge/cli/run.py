"""`mosaic-edge run`: stream a file under a cap and answer questions about it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from mosaic_edge.cli.demo import show_evidence
from mosaic_edge.cli.progress import StreamView, clock
from mosaic_edge.config import format_bytes
from mosaic_edge.engine import Engine
from mosaic_edge.sources import SourceError, VideoSource


def run_file(
    source: Path,
    questions: list[str],
    *,
    model: str,
    fps: float | None,
    since: float | None,
    session: dict[str, Any],
    quiet: bool = False,
) -> dict[str, Any]:
    """Stream `source` to its end, or as far as it can be read, then answer.

    A source that breaks off raises nothing here: "error" of the result says what was wrong, or is None.
    Raises ValueError for an unknown word before any frame is read, MemoryCapError for an impossible cap.
    """
    if not source.exists():
        raise ValueError(f"source={source}: no such file")
    if since is not None and since < 0:
        raise ValueError(f"since={since:g}: expected seconds from 0 on")
    engine = Engine.load(model)
    for question in questions:
        if not question.strip():
            raise ValueError("ask: expected a question, got an empty text")
        engine.model.tokenize(engine.spec.template.replace("{question}", question))
    VideoSource(source, fps=engine.spec.fps if fps is None else fps)
    error: str | None = None
    reached: float | None = None
    with engine.session(**session) as opened:
        with StreamView(opened, source.name, not quiet) as view:

            def tick(pts: float, frames: int) -> None:
                nonlocal reached
                reached = pts
                view.tick(pts, frames)

            try:
                opened.append_video(source, fps, progress=tick)
            except SourceError as broken:
                error = str(broken)
        answers = []
        for question in questions if view.frames else ():
            reply = opened.ask(question, since=since)
            answers.append(
                {
                    "question": question,
                    "answer": reply.text,
                    "evidence": [asdict(moment) for moment in reply.evidence],
                    "first_token_ms": 1e3 * reply.first_token_seconds,
                    "seconds": reply.seconds,
                }
            )
        memory = opened.memory()
    return {
        "source": str(source),
        "frames": view.frames,
        "reached_seconds": reached,
        "frames_per_second": view.frames / max(view.seconds, 1e-9),
        "answers": answers,
        "memory": memory,
        "error": error,
    }


def show_run(result: dict[str, Any], console: Console) -> None:
    """Print the answers with what they were read from, and one line about the stream."""
    for a in result["answers"]:
        console.print(f"[bold]{a['question']}[/bold]  {a['answer']}", soft_wrap=True)
        wait = f"first token after {a['first_token_ms']:.1f} ms"
        console.print(f"  read from {show_evidence(a['evidence'])}; {wait}", soft_wrap=True)
    memory = result["memory"]
    stream = f"{result['frames']} frames up to {clock(result['reached_seconds'] or 0)}"
    held = f"{format_bytes(memory['peak_bytes'])} of a cap of {format_bytes(memory['cap_bytes'])}"
    console.print(f"{stream}, {result['frames_per_second']:.0f} frames/s, {held}", soft_wrap=True)
