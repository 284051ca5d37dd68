"""Questions over a Unix socket: a line in is a question, a line out its answer as JSON.

One thread holds every connection and waits for none, another answers, one question at a time, a connection's
next after its last. A client that is slow, silent, endless or gone costs its own connection alone.
"""

from __future__ import annotations

import json
import queue
import selectors
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mosaic_edge.errors import DeviceError
from mosaic_edge.reply import reply_document
from mosaic_edge.serve.socket_path import claimed
from mosaic_edge.session import Session
from mosaic_edge.threads import started

QUESTION_BYTES = 4096
LINE_SECONDS = 10.0
"""From a connection, or its last answer, to the end of its next line; and for an answer to be fetched."""
MOST_CLIENTS = 128
END_SECONDS = 0.3
"""What the end of a stream waits for an answer that is being made."""


@contextmanager
def answering(session: Session, path: Path | None, asking: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Answer on the Unix socket `path` while the body runs. ValueError where someone else answers, or where
    something else than a socket is. asking: keywords of Session.ask."""
    if path is None:
        yield
        return
    with claimed(path) as listener:
        server = _Server(session, listener, asking or {})
        server.start()
        try:
            yield
        finally:
            server.stop()


@dataclass(eq=False)
class _Client:
    connection: socket.socket
    due: float
    """When it is hung up on, unless something happens."""
    heard: bytearray = field(default_factory=bytearray)
    unsent: bytearray = field(default_factory=bytearray)
    asked: bool = False
    """Its question is being answered; what comes behind it waits in the socket."""
    ended: bool = False
    """It says no more, or is not listened to: the connection ends with what is unsent."""


class _Server:
    def __init__(self, session: Session, listener: socket.socket, asking: Mapping[str, Any]) -> None:
        self._session, self._listener, self._asking = session, listener, asking
        self._clients: set[_Client] = set()
        self._questions: queue.SimpleQueue[tuple[_Client, bytes] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[_Client, bytes]] = queue.SimpleQueue()
        self._wake, self._woken = socket.socketpair()
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True)
            for work, name in ((self._serve, "mosaic-socket"), (self._answer, "mosaic-answers"))
        ]

    def start(self) -> None:
        try:
            for thread in self._threads:
                started(thread, "answering at a socket")
        except DeviceError:
            self.stop()
            if self._threads[0].ident is None:  # else it closes them
                self._wake.close()
                self._woken.close()
            raise

    def stop(self) -> None:
        """End, whatever clients do; an answer that takes longer is made for nobody."""
        self._stopping.set()
        self._questions.put(None)
        self._nudge()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(END_SECONDS)

    def _nudge(self) -> None:
        with suppress(OSError):
            self._wake.send(b"x")

    def _answer(self) -> None:
        while (asked := self._questions.get()) is not None and not self._stopping.is_set():
            client, line = asked
            self._answers.put(
                (client, json.dumps(_reply(self._session, line, self._asking)).encode() + b"\n")
            )
            self._nudge()

    def _serve(self) -> None:
        with self._woken, self._wake, selectors.DefaultSelector() as selector:
            self._woken.setblocking(False)
            self._listener.setblocking(False)
            selector.register(self._woken, selectors.EVENT_READ)
            selector.register(self._listener, selectors.EVENT_READ)
            while not self._stopping.is_set():
                for key, events in selector.select(self._patience()):
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.fileobj is self._woken:
                        with suppress(OSError):
                            self._woken.recv(4096)
                    else:
                        self._exchange(key.data, events)
                self._take_answers()
                self._attend_to_clients(selector)
            for client in self._clients:
                client.connection.close()

    def _patience(self) -> float:
        """Seconds until a client is due."""
        due = min((client.due for client in self._clients if not client.asked), default=float("inf"))
        return min(max(0.0, due - time.monotonic()), 60.0)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # gone again, or no descriptors left: those that wait are served first
            time.sleep(0.01)
            return
        connection.setblocking(False)
        client = _Client(connection, time.monotonic() + LINE_SECONDS)
        if len(self._clients) >= MOST_CLIENTS:
            with suppress(OSError):
                connection.send(_line({"error": f"busy: {MOST_CLIENTS} clients are being served"}))
            connection.close()
            return
        self._clients.add(client)

    def _exchange(self, client: _Client, events: int) -> None:
        """Read or write what goes without waiting."""
        try:
            if events & selectors.EVENT_READ:
                data = client.connection.recv(QUESTION_BYTES)
                client.heard += data
                client.ended |= not data
            if events & selectors.EVENT_WRITE:
                del client.unsent[: client.connection.send(client.unsent)]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:  # it is gone
            client.ended, client.heard = True, bytearray()
            client.unsent.clear()

    def _take_answers(self) -> None:
        with suppress(queue.Empty):
            while True:
                client, answer = self._answers.get_nowait()
                client.asked = False
                client.unsent += answer
                client.due = time.monotonic() + LINE_SECONDS

    def _attend_to_clients(self, selector: selectors.BaseSelector) -> None:
        """Ask the next question of each, end those that are through or late, wait for the rest."""
        now = time.monotonic()
        for client in list(self._clients):
            if not client.asked and not client.unsent:
                self._next_question(client)
            wanted = selectors.EVENT_WRITE if client.unsent else 0
            if not (client.asked or client.unsent or client.ended) and len(client.heard) < QUESTION_BYTES:
                wanted |= selectors.EVENT_READ
            through = client.ended and not client.asked and not client.unsent and not client.heard
            if through or (now >= client.due and not client.asked):
                wanted = 0
                self._clients.remove(client)
            _watch(selector, client, wanted)
            if client not in self._clients:
                client.connection.close()

    def _next_question(self, client: _Client) -> None:
        """Hand over the next line that was heard; answer one that is too long, or not ended, and listen no
        more."""
        line, newline, rest = client.heard.partition(b"\n")
        if newline and len(line) < QUESTION_BYTES:
            client.heard, client.asked = rest, True
            self._questions.put((client, bytes(line)))
            client.due = float("inf")
        elif len(client.heard) >= QUESTION_BYTES or (client.ended and client.heard):
            client.unsent += _line(
                {"error": f"question: expected a line of at most {QUESTION_BYTES - 1} bytes"}
            )
            client.ended, client.heard = True, bytearray()


def _watch(selector: selectors.BaseSelector, client: _Client, events: int) -> None:
    known = client.connection in selector.get_map()
    if not events and known:
        selector.unregister(client.connection)
    elif events and known:
        selector.modify(client.connection, events, client)
    elif events:
        selector.register(client.connection, events, client)


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode() + b"\n"


def _reply(session: Session, line: bytes, asking: Mapping[str, Any]) -> dict[str, Any]:
    try:
        question = line.decode().strip()
        reply = session.ask(question, **asking)
    except Exception as error:  # the stream goes on, whatever a question was
        return {"error": " ".join(str(error).split()) or type(error).__name__}
    return reply_document(question, reply)
