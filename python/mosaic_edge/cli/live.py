"""`mosaic-edge live`: a camera without end; questions come over a Unix socket, the account goes to a CSV."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mosaic_edge.cli import command
from mosaic_edge.cli.options import (
    AnswerOptions,
    Json,
    ModelOptions,
    SessionOptions,
    SourceOptions,
    StateDir,
    StateEvery,
    TraceFile,
    traced,
)
from mosaic_edge.cli.output import clock, complain, console, end_with, print_json, taken
from mosaic_edge.cli.progress import StreamView

if TYPE_CHECKING:
    from mosaic_edge.engine import Engine, Session
    from mosaic_edge.serve.state import StateFolder
    from mosaic_edge.sources import Frame, FrameSource, SourceError

_NAME = "live"
"""Of the one session there is, in --state."""


@command
def live(
    source: Annotated[str, typer.Option(help="A camera (/dev/video0), a stream (rtsp://...) or a file.")],
    model: ModelOptions,
    session: SessionOptions,
    reading: SourceOptions,
    answers: AnswerOptions,
    socket: Annotated[
        Path | None, typer.Option(help="Unix socket: a question a line in, a JSON answer a line out.")
    ] = None,
    account: Annotated[Path | None, typer.Option(help="CSV of the memory account over time.")] = None,
    every: Annotated[float, typer.Option(help="Seconds between rows of --account.")] = 10.0,
    give_up: Annotated[
        float, typer.Option(help="Seconds of trying in vain after which a camera is given up; inf: never.")
    ] = 30.0,
    state: StateDir = None,
    state_every: StateEvery = 5.0,
    power_aware: Annotated[
        bool, typer.Option("--power-aware", help="Fewer frames while the board is hot, or behind.")
    ] = False,
    trace: TraceFile = None,
    json: Json = False,
) -> None:
    """Stream a camera until it ends or SIGTERM, answering over a socket.

    A camera that breaks off is opened again until --give-up; then one line says why, and the exit code is 1.
    Frames that come while the model is busy are dropped: the newest is looked at. With --state the session
    goes on where the last one ended, however it ended.
    """
    from mosaic_edge.serve import stream_live
    from mosaic_edge.serve.rate import RateGovernor
    from mosaic_edge.serve.state import SavedStream, StateFolder
    from mosaic_edge.sources import LiveSource, SourceError, open_live

    if trace is not None and account is not None and trace.resolve() == account.resolve():
        raise ValueError(f"trace={str(trace)!r} and account= are one path")
    folder = None if state is None else StateFolder(state, 60.0 * state_every, complain)
    engine = model.load()
    asking = answers.keywords(engine)
    fps = engine.spec.fps if reading.fps is None else reading.fps
    frames: FrameSource
    try:
        frames = open_live(source, fps, give_up_s=give_up, notify=complain)
    except SourceError as error:
        frames = _broken_off(error)
    settings = traced(session.keywords(), trace)
    with closing(frames), _begun(engine, folder, settings) as opened:
        health = frames.stats if isinstance(frames, LiveSource) else None
        with StreamView(opened, "live", not json, health) as view:
            ended = stream_live(
                opened,
                frames,
                socket=socket,
                account=account,
                every=every,
                progress=view.tick,
                asking=asking,
                state=None if folder is None else SavedStream(folder, _NAME, opened),
                rate=RateGovernor(fps, say=complain) if power_aware else None,
            )
        memory = opened.memory()
    result: dict[str, Any] = {"source": source, **asdict(ended), "seconds": view.seconds, "memory": memory}
    if json:
        print_json(result)
    else:
        line = f"{ended.frames} frames in {clock(view.seconds)}, {taken(memory)}"
        if ended.dropped or ended.reconnects:
            line += f", {ended.dropped} dropped, {ended.reconnects} reconnects"
        console().print(line, soft_wrap=True)
    end_with(ended.error, 1)


def _begun(engine: Engine, folder: StateFolder | None, settings: dict[str, Any]) -> Session:
    """The session that was saved, or a new one."""
    if folder is not None:
        saved = folder.restore(_NAME, lambda file: engine.restore(file, **settings))
        if saved is not None:
            return saved
    return engine.session(**settings)


def _broken_off(error: SourceError) -> Generator[Frame, None, None]:
    """A source that is not there: that is as if it broke off before its first frame."""
    yield from ()
    raise error
