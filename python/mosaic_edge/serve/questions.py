"""Questions over a Unix socket: a line in is a question, a line out its answer as JSON."""

from __future__ import annotations

import json
import os
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mosaic_edge.reply import reply_document
from mosaic_edge.session import Session

QUESTION_BYTES = 4096
IDLE_SECONDS = 10.0
"""Questioners take turns; one that says nothing for so long is hung up on."""


@contextmanager
def answering(session: Session, path: Path | None) -> Iterator[None]:
    """Answer on the Unix socket `path` while the body runs: a line in is a question, a line out JSON."""
    if path is None:
        yield
        return

    class Questions(socketserver.StreamRequestHandler):
        timeout = IDLE_SECONDS

        def handle(self) -> None:
            try:
                while line := self.rfile.readline(QUESTION_BYTES):
                    reply = _reply(session, line)
                    self.wfile.write(json.dumps(reply).encode() + b"\n")
            except OSError:  # gone, or silent for too long
                return

    path.unlink(missing_ok=True)  # of a process that was killed
    with socketserver.UnixStreamServer(os.fspath(path), Questions) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            path.unlink(missing_ok=True)


def _reply(session: Session, line: bytes) -> dict[str, Any]:
    try:
        if not line.endswith(b"\n"):
            raise ValueError(f"question: expected a line of at most {QUESTION_BYTES - 1} bytes")
        question = line.decode().strip()
        reply = session.ask(question)
    except Exception as error:  # the stream goes on, whatever a question was
        return {"error": " ".join(str(error).split()) or type(error).__name__}
    return reply_document(question, reply)
