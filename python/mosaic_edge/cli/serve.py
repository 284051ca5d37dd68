"""`mosaic-edge serve`: sessions over HTTP, OpenAI's chat completions among it, and a page to look at them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mosaic_edge.cli import command
from mosaic_edge.cli.options import Json, ModelOptions, SessionOptions, StateDir, StateEvery
from mosaic_edge.cli.output import complain, console, print_json


@command
def serve(
    model: ModelOptions,
    session: SessionOptions,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0: all of this machine's.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen at; 0: any that is free.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token clients need. Default: one is made and printed.")
    ] = None,
    session_memory: Annotated[
        str | None, typer.Option(help="Of a session that names none. Default: an eighth of --memory.")
    ] = None,
    session_disk: Annotated[
        str | None, typer.Option(help="Quota of one that names none. Default: an eighth of --disk.")
    ] = None,
    thumbnails: Annotated[str, typer.Option(help="Of a session's memory, for pictures of what it saw.")] = (
        "256KiB"
    ),
    idle: Annotated[
        float | None, typer.Option(help="End sessions after so many seconds without frame or question.")
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option(help="NAME=WHERE: a camera or stream that sessions may watch.")
    ] = None,
    media: Annotated[Path | None, typer.Option(help="Folder of files that clients may name.")] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Host that pictures and videos may be fetched from.")
    ] = None,
    state: StateDir = None,
    state_every: StateEvery = 5.0,
    json: Json = False,
) -> None:
    """Serve sessions over HTTP until SIGTERM; --memory and --disk are caps over all of them.

    With --state sessions that clients opened go on when the server is started anew.

    Clients need the token, in the header "Authorization: Bearer TOKEN". docs/serve.md has the routes.
    """
    try:
        from mosaic_edge.serve.app import make_app
        from mosaic_edge.serve.auth import new_token, read_token
        from mosaic_edge.serve.metrics import Metrics
        from mosaic_edge.serve.server import listen, run
        from mosaic_edge.serve.sessions import ServeSettings, Sessions
        from mosaic_edge.serve.state import StateFolder
    except ModuleNotFoundError as error:
        raise ImportError(f"{error.name} is not installed: pip install 'mosaic_edge[serve]'") from None

    token = new_token() if token_file is None else read_token(token_file)
    settings = ServeSettings(
        memory=session.memory,
        disk=session.disk,
        session=session.keywords("memory", "disk"),
        session_memory=session_memory,
        session_disk=session_disk,
        thumbnails=thumbnails,
        idle=idle,
        media=media,
        sources=_named(source or []),
        hosts=tuple(allow_host or ()),
        state=None if state is None else StateFolder(state, 60.0 * state_every, complain),
    )
    metrics = Metrics()
    sessions = Sessions(model.load(), settings, metrics.first_token)
    metrics.watch(sessions)
    with listen(host, port) as listener:
        address = listener.getsockname()
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        url = f"http://{shown}:{address[1]}"
        made = token if token_file is None else None
        if json:
            print_json({"url": url, "token": made})
        else:
            console().print(f"serving at {url}", soft_wrap=True)
            if made is not None:
                console().print(f"token: {made}\npage:  {url}/#token={made}", soft_wrap=True)
        if not address[0].startswith(("127.", "::1")):
            complain("warning: the token and all pictures travel unencrypted; put TLS in front of it")
        run(make_app(sessions, metrics, token), sessions, listener)


def _named(said: list[str]) -> dict[str, str]:
    """Sources by name. ValueError for what has none."""
    named = dict(one.partition("=")[::2] for one in said)
    for name, where in named.items():
        if not name.strip() or not where:
            raise ValueError(f"source={name!r}: expected NAME=WHERE, such as door=rtsp://camera/1")
    return named
