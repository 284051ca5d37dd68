"""`mosaic-edge live`: a camera without end; questions come over a Unix socket, the account goes to a CSV."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mosaic_edge.cli import command
from mosaic_edge.cli.options import Json, ModelOptions, SessionOptions, SourceOptions, TraceFile, traced
from mosaic_edge.cli.output import clock, console, end_with, print_json, taken
from mosaic_edge.cli.progress import StreamView

if TYPE_CHECKING:
    from mosaic_edge.sources import Frame


@command
def live(
    source: Annotated[str, typer.Option(help="A camera (/dev/video0), a stream (rtsp://...) or a file.")],
    model: ModelOptions,
    session: SessionOptions,
    reading: SourceOptions,
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
    from mosaic_edge.serve import stream_live

    if trace is not None and account is not None and trace.resolve() == account.resolve():
        raise ValueError(f"trace={str(trace)!r} and account= are one path")
    engine = model.load()
    frames = _frames(source, engine.spec.fps if reading.fps is None else reading.fps)
    with engine.session(**traced(session.keywords(), trace)) as opened:
        with StreamView(opened, "live", not json) as view:
            ended = stream_live(
                opened, frames, socket=socket, account=account, every=every, progress=view.tick
            )
        memory = opened.memory()
    result: dict[str, Any] = {"source": source, **asdict(ended), "seconds": view.seconds, "memory": memory}
    if json:
        print_json(result)
    else:
        line = f"{result['frames']} frames in {clock(result['seconds'])}, {taken(memory)}"
        console().print(line, soft_wrap=True)
    end_with(ended.error, 1)


def _frames(source: str, fps: float) -> Generator[Frame, None, None]:
    """The source, opened with its first frame: if it is not there, that is as if it broke off."""
    from mosaic_edge.sources import open_source

    with closing(open_source(source, fps)) as opened:
        yield from opened
