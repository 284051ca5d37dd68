"""A case of `serve`: clients whose requests are mutated, cut or stalled, and who hang up, over HTTP and
WebSockets.

Each is answered with a status that says whose fault it was and an error of one line, or its connection ends;
never with a failure of the server, which would be in its log as well. At the end a client that behaves is
answered, no byte above the budget was drawn, no request left its session behind, and when all sessions are
deleted nothing is drawn or held, and no thread of theirs is there.
"""

from __future__ import annotations

import base64
import json
import logging
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from cases import must
from http_bytes import all_of, answers, chunked, message, pieces, send
from mutations import mutated_bytes, mutated_json

from http_service import QUESTION, TOKEN, Service, jpeg, serving
from numpy_vlm import picture

CLIENTS = 120
WAITS = 120.0
"""Seconds that an answer, or an end, may take, however busy the machine is."""
STATUSES = (100, 101, 200, 201, 307, 400, 401, 403, 404, 405, 408, 413, 426, 429, 431, 503, 507)
OPENING: dict[str, Any] = {
    "memory": "1MiB",
    "policy": "window",
    "disk": None,
    "window_frames": 3,
    "source": None,
}
ASKED: dict[str, Any] = {
    "question": QUESTION, "since": 0.5, "dialogue": False, "stream": True, "max_tokens": 2,
    "temperature": 0.0, "top_k": 3, "top_p": 0.9, "seed": 7,
}  # fmt: skip
PATHS = (
    "/", "/healthz", "/metrics", "/v1/models", "/v1/models/numpy", "/v1/sources", "/v1/sessions", "/nothing",
    "/v1/sessions/", "/v1/sessions/none", "/v1/sessions/../models", "/v1/sessions/%2e%2e/%00", "//v1//models",
    "/v1/sessions/" + "a" * 3000, "/v1/models/" + "%ff" * 40, "*", "http://elsewhere/v1/models", "/page.js",
)  # fmt: skip
HEADERS = (
    "Content-Type: application/json", "Content-Type: multipart/form-data; boundary=x", "Connection: close",
    "Expect: 100-continue", "Content-Length: -1", "Content-Length: 9999999999999999999999", "Range: bytes=0-",
    "Transfer-Encoding: chunked", "Transfer-Encoding: gzip, chunked", "Content-Encoding: gzip",
    "Upgrade: h2c", "Authorization: Basic eDp5", "Authorization: Bearer", "Cookie: " + "a=b; " * 400,
    "X: " + "y" * 70_000, "Host: ", "Accept: text/event-stream", "X-Forwarded-For: 1",
    " folded", "no colon", "\xe9: \xff",
)  # fmt: skip
QUERIES = (
    "",
    "?pts=1",
    "?pts=1e400",
    "?pts=nan",
    "?width=8&height=8",
    "?width=-1",
    "?at=0.5",
    "?%00=%ff&&=",
    "?pts=",
)

LAST_CHUNK = b"0\r\n\r\n"
CHUNKS = (LAST_CHUNK, b"", b"-1\r\n\r\n", b"ffffffffffffffff\r\n", b"x\r\n")


def play(seed: int, folder: Path) -> Counter[str]:
    rng = random.Random(seed)
    failures = _Failures()
    logging.getLogger().addHandler(failures)
    (folder / "media").mkdir()
    with serving("4MiB", media=folder / "media", disk="2MiB") as service:
        kept: set[str] = set()
        service.sessions.open = _noting(service.sessions.open, kept)  # type: ignore[method-assign]
        clients = _Clients(rng, service)
        for _ in range(CLIENTS):
            clients.one()
            must(
                service.sessions.budget.peak_bytes <= service.sessions.budget.cap_bytes, "the cap is breached"
            )
            must(service.sessions.disk.peak_bytes <= service.sessions.disk.cap_bytes, "the disk is breached")
        clients.close()
        until(lambda: {served.name for served in service.sessions.all()} <= kept, "requests' sessions stay")
        _check_end(service)
    must(not failures.lines, failures.lines)
    return clients.done


_LIBRARYS = (
    "Invalid UTF-8 sequence received from client",
    "InvalidState('connection is closing')",
    "Too much data for declared Content-Length",
)
"""uvicorn's own lines: two about text over a WebSocket that is no UTF-8; one where it refuses what comes
behind the head of a HEAD, whose answer has no room for its words. It ends that connection so."""


class _Failures(logging.Handler):
    """What is logged as a failure, the event loop's and uvicorn's complaints among it."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = f"{record.name}: {record.getMessage()} {record.exc_info or ''}"
        if not any(known in line for known in _LIBRARYS):
            self.lines.append(line)


def _noting(opens: Callable[..., Any], kept: set[str]) -> Callable[..., Any]:
    """Sessions.open, and the names of sessions that do not end with their request."""

    def noted(*arguments: Any, keep: bool = True) -> Any:
        served = opens(*arguments, keep=keep)
        if keep:
            kept.add(served.name)
        return served

    return noted


def _check_end(service: Service) -> None:
    """A client that behaves is served, and what was open can be ended to the last byte."""
    sessions, client = service.sessions, service.client
    for served in sessions.all():
        stats = served.stats()
        must(stats["taken_bytes"] <= stats["cap_bytes"], stats)
        until(lambda served=served: served.is_idle, f"{served.name} is busy for ever")  # type: ignore[misc]
        served._session.check_invariants()
        client.good("DELETE", f"/v1/sessions/{served.name}")
    path = client.session(memory="1MiB")
    client.put(path, 1, 1.0)
    must(client.good("POST", f"{path}/questions", {"question": QUESTION})["answer"], "no answer")
    client.good("DELETE", path)
    drawn = sessions.budget.drawn_bytes, sessions.disk.drawn_bytes
    must(drawn == (0, 0), f"{drawn} bytes are drawn and nobody has them")
    until(lambda: service.bodies.held == 0, "bytes of bodies are held")
    until(lambda: not [t for t in threading.enumerate() if t.name.startswith("session ")], "threads stay")


class _Clients:
    """Clients of one case; those that stall stay connected until its end."""

    def __init__(self, rng: random.Random, service: Service) -> None:
        self._rng, self._service = rng, service
        self._stalled: list[socket.socket] = []
        self.done: Counter[str] = Counter()

    def one(self) -> None:
        """A client, whatever it does."""
        kinds = (self._request, self._request, self._broken, self._stall, self._events, self._frames)
        kind = self._rng.choice(kinds)
        kind()
        self.done["operations"] += 1
        self.done[kind.__name__.strip("_")] += 1

    def close(self) -> None:
        """Those that stalled hang up."""
        for connection in self._stalled:
            connection.close()

    def _session(self) -> str:
        """The path of one that is there, mostly."""
        names = [served.name for served in self._service.sessions.all()]
        if len(names) > 2 or self._rng.random() < 0.05:
            with suppress(Exception):
                self._service.client.call("DELETE", f"/v1/sessions/{self._rng.choice(names)}")
        if not names:
            return self._service.client.session(memory="1MiB", policy=self._rng.choice(["window", "edge"]))
        return f"/v1/sessions/{self._rng.choice(names)}"

    def _made(self) -> tuple[str, str, bytes]:
        """Method, path and body of something a client may want, changed or not."""
        rng = self._rng
        image = np.ascontiguousarray(picture(rng.randrange(9)))
        kind = rng.randrange(6)
        if kind == 0:
            return "POST", "/v1/sessions", mutated_json(rng, OPENING)
        if kind == 1:
            return "POST", f"{self._session()}/questions", mutated_json(rng, ASKED)
        if kind == 2:
            return "POST", "/v1/chat/completions", self._chat(image)
        if kind == 3:
            data = jpeg(rng.randrange(9)) if rng.random() < 0.7 else image.tobytes()
            data = mutated_bytes(rng, data) if rng.random() < 0.7 else data
            return "PUT", f"{self._session()}/frames{rng.choice(QUERIES)}", data
        if kind == 4:
            tail = rng.choice(["", "/history", "/picture", "/frames", "/questions", "/%2e", "/\xe9"])
            method = rng.choice(["GET", "DELETE", "PATCH", "HEAD", "OPTIONS", "get", "\xff"])
            return method, self._session() + tail + rng.choice(QUERIES), b""
        return rng.choice(["GET", "POST", "PUT"]), rng.choice(PATHS) + rng.choice(QUERIES), b"{}"

    def _chat(self, image: np.ndarray[Any, Any]) -> bytes:
        rng = self._rng
        data = mutated_bytes(rng, jpeg(3)) if rng.random() < 0.5 else jpeg(3)
        url = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
        if rng.random() < 0.2:
            url = rng.choice(
                ["file:///etc/passwd", "http://127.0.0.1/x", "file:///dev/zero", "ftp://x", "data:,"]
            )
        kind = rng.choice(["image_url", "image_url", "video_url"])
        content = [{"type": kind, kind: {"url": url}}, {"type": "text", "text": QUESTION}]
        asked = {
            "model": "numpy", "max_tokens": 2, "stream": rng.random() < 0.3, "memory": "1MiB", "fps": 1.0,
            "messages": [{"role": "system", "content": "what"}, {"role": "user", "content": content}],
        }  # fmt: skip
        return mutated_json(rng, asked) if rng.random() < 0.7 else json.dumps(asked).encode()

    def _head(self, method: str, path: str, length: int | None, odd: bool) -> bytes:
        """odd: another version of HTTP, perhaps, no token, or headers that nobody expects."""
        rng = self._rng
        version = rng.choice(["1.1", "1.1", "1.0", "2.0", ""]) if odd else "1.1"
        lines = [f"{method} {path} HTTP/{version}", "Host: here"]
        if not odd or rng.random() < 0.8:
            lines.append(f"Authorization: Bearer {TOKEN}")
        if length is not None:
            lines.append(f"Content-Length: {length}")
        if odd:
            lines += rng.choices(HEADERS, k=rng.choice([0, 1, 2, 30]))
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def _request(self) -> None:
        """Two, whole and well formed, whatever they ask for: the second one's answer is the last."""
        rng = self._rng
        data = b""
        for last in (False, True):
            method, path, body = self._made()
            head = self._head(method, path, None, False)[:-2] + b"Connection: close\r\n" * last
            if rng.random() < 0.2:
                data += head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(rng, body) + LAST_CHUNK
            else:
                data += head + b"Content-Length: %d\r\n\r\n" % len(body) + body
        with self._connected() as connection:
            send(connection, pieces(rng, data))
            self._check(all_of(connection))

    def _broken(self) -> None:
        """One whose head is odd, whose body is shorter or longer than it says, or whose bytes are changed."""
        rng = self._rng
        method, path, body = self._made()
        wrong = rng.choice([0, 0, -1, 1, 5000])
        data = self._head(method, path, max(0, len(body) + wrong), rng.random() < 0.7) + body
        if rng.random() < 0.5:
            data = mutated_bytes(rng, data)
        with self._connected() as connection:
            send(connection, pieces(rng, data), ends=True)  # what it may still wait for does not come
            self._check(all_of(connection))

    def _stall(self) -> None:
        """An upload of which a part comes, and then nothing."""
        method, path, body = self._made()
        head = self._head(method, path, None, False)[:-2] + b"Transfer-Encoding: chunked\r\n\r\n"
        data = head + chunked(self._rng, body) + self._rng.choice(CHUNKS)
        connection = self._connected()
        with suppress(OSError):
            connection.sendall(data[: self._rng.randrange(len(data))])
        self._stalled.append(connection)
        if len(self._stalled) > 20:
            self._stalled.pop(self._rng.randrange(20)).close()

    def _events(self) -> None:
        """A streamed answer that is left after some of it."""
        body = json.dumps({**ASKED, "since": None, "max_tokens": 30, "seed": None}).encode()
        data = self._head("POST", f"{self._session()}/questions", len(body), False) + body
        with self._connected() as connection, suppress(OSError):
            connection.sendall(data)
            connection.recv(self._rng.choice([1, 100, 4096]))

    def _frames(self) -> None:
        """A WebSocket: good frames, changed ones, and bytes that are no WebSocket's."""
        rng = self._rng
        head = self._head("GET", f"{self._session()}/frames", None, rng.random() < 0.1)[:-2] + (
            b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: " + base64.b64encode(rng.randbytes(16)) + b"\r\n\r\n"
        )
        data = b""
        for number in range(rng.randrange(6)):
            described = rng.choice(
                [b'{"pts": %d}' % number, mutated_json(rng, {"pts": 1.5, "width": 8, "height": 8})]
            )
            if rng.random() < 0.5:
                data += message(rng, 1, described)
            frame = jpeg(number)
            data += message(rng, 2, mutated_bytes(rng, frame) if rng.random() < 0.5 else frame)
        if rng.random() < 0.4:
            data = mutated_bytes(rng, data)
        with self._connected() as connection:
            send(connection, [head, *pieces(rng, data)])
            if rng.random() < 0.3:
                return
            end = [message(rng, 8, b"\x03\xe8")] if rng.random() < 0.5 else []
            send(connection, end, ends=True)
            must(b"Traceback" not in all_of(connection), "a traceback over a WebSocket")

    def _connected(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._service.client.port), timeout=WAITS)

    def _check(self, said: bytes) -> None:
        """Each answer of a connection."""
        for status, is_json, text in answers(said):
            self.done[f"status {status}"] += 1
            must(status in STATUSES, (status, text[:300]))
            must("Traceback" not in text, text[:300])
            if status >= 400 and is_json and text:
                message = json.loads(text)["error"]["message"]
                must(message and "\n" not in message and len(message) < 2000, message)


def until(holds: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + WAITS
    while not holds():
        must(time.monotonic() < end, what)
        time.sleep(0.01)
