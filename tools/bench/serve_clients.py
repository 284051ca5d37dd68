"""Clients that load `mosaic-edge serve`: every session has one of its own, others watch the account and come
and go. All of what they measured is in `Measured`; what was not as it must be, in its `faults`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil
from websockets.sync.client import ClientConnection, connect

from mosaic_edge.serve.thumbnails import as_jpeg
from mosaic_edge.world import World

QUESTION = "what colour was the ball ?"
READ_SECONDS = 0.5
FRAMES = 64
PREFIX = "mosaic_edge_"


class Server:
    """A server as users start it, its port and its token."""

    def __init__(self, memory: str) -> None:
        words = ["-m", "mosaic_edge", "serve", "--port", "0", "--json", "--threads", "1", "--memory"]
        self.process = subprocess.Popen(
            [sys.executable, *words, memory], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        lines = ""
        while not lines.endswith("}\n"):
            lines += self.process.stdout.readline() or sys.exit("serve_load: the server did not start")
        said = json.loads(lines)
        self.port = int(said["url"].rpartition(":")[2])
        self.headers = {"Authorization": f"Bearer {said['token']}"}

    def end(self) -> tuple[float, str]:
        """Seconds from SIGTERM to the end of the process, and what it complained of in its life."""
        began = time.perf_counter()
        self.process.terminate()
        said = self.process.communicate(timeout=60)[1]
        return time.perf_counter() - began, said


class Client:
    """One connection that is kept."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)

    def send(
        self, method: str, path: str, body: bytes | dict[str, Any] | None = None
    ) -> http.client.HTTPResponse:
        """The response, unread."""
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        self._connection.request(method, path, data, self._server.headers)
        return self._connection.getresponse()

    def json(self, method: str, path: str, body: bytes | dict[str, Any] | None = None) -> tuple[int, Any]:
        """Status and document."""
        response = self.send(method, path, body)
        return response.status, json.loads(response.read())

    def socket(self, path: str) -> ClientConnection:
        """A WebSocket there."""
        url = f"ws://127.0.0.1:{self._server.port}{path}"
        return connect(url, additional_headers=self._server.headers, open_timeout=120)

    def metrics(self) -> dict[str, float]:
        """Samples of /metrics by name and labels, as they are written."""
        lines = self.send("GET", "/metrics").read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name.removeprefix(PREFIX): float(value) for name, value in pairs}


@dataclass
class Measured:
    """Seconds, and counts."""

    puts: list[float] = field(default_factory=list)
    """A frame by PUT, from its first byte to the answer that it was taken in."""
    sockets: list[float] = field(default_factory=list)
    """The same by WebSocket."""
    firsts: list[float] = field(default_factory=list)
    """From a question to the first piece of its answer."""
    answers: list[float] = field(default_factory=list)
    """From a question to the end of its answer."""
    late: list[float] = field(default_factory=list)
    """How long after its time a frame was sent."""
    rss: list[int] = field(default_factory=list)
    """Of the server, at each reading of the account."""
    churned: int = 0
    refused: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def counts(self) -> tuple[int, int]:
        """Frames and questions."""
        return len(self.puts) + len(self.sockets), len(self.answers)


class Load:
    """What the clients do until `seconds` are over, and each of them did its work once."""

    def __init__(self, server: Server, options: argparse.Namespace, seconds: float) -> None:
        self._server, self._options, self._seconds = server, options, seconds
        self._until = 0.0
        self._paths: list[str] = []
        self._lock = threading.Lock()
        self.measured = Measured()
        world = World(7, FRAMES, "plain")
        self._frames = [as_jpeg(world.render(float(i), 256), 256) for i in range(FRAMES)]
        works: list[Any] = [(self._session, (i,)) for i in range(options.sessions)]
        works += [(self._watch, ()), (self._churn, ())]
        self._threads = [threading.Thread(target=self._guarded, args=work) for work in works]

    def start(self) -> None:
        """All at once, once every session is open: who comes and goes leaves them room then."""
        client = Client(self._server)
        for _ in range(self._options.sessions):
            status, said = client.json("POST", "/v1/sessions", {"memory": self._options.session_memory})
            if status != 201:
                raise RuntimeError(said)
            self._paths.append(f"/v1/sessions/{said['id']}")
        self._until = time.perf_counter() + self._seconds
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """To the end."""
        for thread in self._threads:
            thread.join()

    def _guarded(self, work: Any, arguments: tuple[int, ...]) -> None:
        try:
            work(*arguments)
        except Exception as error:
            self.measured.faults.append(f"{work.__name__}: {type(error).__name__}: {error}")

    def _session(self, number: int) -> None:
        """Frames at their times and questions between them; every other session feeds over a WebSocket."""
        client, step, path = Client(self._server), 1.0 / self._options.fps, self._paths[number]
        if number % 2:
            with client.socket(f"{path}/frames") as socket:
                self._stream(number, step, lambda pts, frame: _by_socket(socket, pts, frame), client, path)
        else:
            self._stream(number, step, lambda pts, frame: _by_put(client, path, pts, frame), client, path)

    def _stream(
        self, number: int, step: float, give: Callable[[float, bytes], None], client: Client, path: str
    ) -> None:
        measured, count = self.measured, 0
        taken = measured.sockets if number % 2 else measured.puts
        due = time.perf_counter() + number * step / self._options.sessions
        ask_due = due + self._options.ask_every * (1 + number / 8) / 2
        asked = False
        while (now := time.perf_counter()) < self._until or not asked:
            if now < due:
                time.sleep(due - now)
            began = time.perf_counter()
            give(count * step, self._frames[(count + 13 * number) % len(self._frames)])
            took, count = time.perf_counter() - began, count + 1
            with self._lock:
                taken.append(took)
                measured.late.append(max(0.0, began - due))
            due = max(due + step, began)
            if time.perf_counter() >= ask_due:
                ask_due += self._options.ask_every
                self._ask(client, path)
                asked = True

    def _ask(self, client: Client, path: str) -> None:
        began = time.perf_counter()
        response = client.send("POST", f"{path}/questions", {"question": QUESTION, "stream": True})
        first = response.readline()
        begun = time.perf_counter() - began
        if not first.startswith(b"data: {") or not response.read().endswith(b"data: [DONE]\n\n"):
            raise RuntimeError(first)
        with self._lock:
            self.measured.firsts.append(begun)
            self.measured.answers.append(time.perf_counter() - began)

    def _watch(self) -> None:
        """The account and the metrics, against the cap."""
        client, process = Client(self._server), psutil.Process(self._server.process.pid)
        while not self.measured.rss or time.perf_counter() < self._until:
            _, listed = client.json("GET", "/v1/sessions")
            self.measured.faults += breaches(listed, client.metrics())
            self.measured.rss.append(process.memory_info().rss)
            time.sleep(READ_SECONDS)

    def _churn(self) -> None:
        """Sessions that come and go at the edge of the budget."""
        client = Client(self._server)
        while not self.measured.refused or time.perf_counter() < self._until:
            mine = []
            while True:
                status, said = client.json("POST", "/v1/sessions", {"memory": self._options.session_memory})
                if status != 201:
                    break
                mine.append(said["id"])
            if status != 507:
                self.measured.faults.append(f"expected 507, got {status}: {said}")
            self.measured.refused += 1
            for name in mine:
                client.json("DELETE", f"/v1/sessions/{name}")
            self.measured.churned += len(mine)
            time.sleep(READ_SECONDS)


def breaches(listed: dict[str, Any], metrics: dict[str, float]) -> list[str]:
    """Where more is taken than may be, by the list of sessions and by the metrics."""
    found = []
    drawn, budget = listed["drawn_bytes"], listed["budget_bytes"]
    if drawn > budget:
        found.append(f"{drawn} bytes drawn of {budget}")
    for stats in listed["data"]:
        name, taken, cap = stats["id"], stats["taken_bytes"], stats["cap_bytes"]
        if not taken <= cap:
            found.append(f"session {name} took {taken} bytes of its {cap}")
        over = [tier for tier in stats["tiers"] if tier["used_bytes"] > tier["capacity_bytes"]]
        found += [f"session {name}: {tier}" for tier in over]
        # Both were read one after the other: a session may have ended between them.
        pictures = metrics.get(f'session_thumbnail_bytes{{session="{name}"}}', 0.0)
        if taken + pictures > stats["drawn_bytes"]:
            found.append(f"session {name} has {taken} bytes and {pictures:.0f} of thumbnails: {stats}")
    if metrics["budget_drawn_peak_bytes"] > metrics["budget_bytes"]:
        found.append(f"{metrics['budget_drawn_peak_bytes']} bytes were drawn of {metrics['budget_bytes']}")
    return found


def _by_put(client: Client, path: str, pts: float, frame: bytes) -> None:
    status, said = client.json("PUT", f"{path}/frames?pts={pts}", frame)
    if status != 200:
        raise RuntimeError(said)


def _by_socket(socket: ClientConnection, pts: float, frame: bytes) -> None:
    socket.send(json.dumps({"pts": pts}))
    socket.send(frame)
    said = json.loads(socket.recv(120))
    if said.get("object") != "frame":
        raise RuntimeError(said)
