"""`mosaic-edge serve` under load: `python tools/bench/serve_load.py [--sessions 8] [--seconds 60]`.

A server as users start it, mosaic-tiny, on loopback. Every session is a client of its own (a thread) that
PUTs JPEGs of a procedural world at --fps and asks a streamed question every --ask-every seconds. One more
client reads the account twice a second, and another opens and ends sessions at what is left of the budget.
It says how long a PUT takes, from its first byte to the answer that the frame was taken in, and how long the
first piece of an answer does. It fails where more is drawn than the budget, a session takes more than its
cap, or the server's counts are not the clients'.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import numpy as np
import psutil

from mosaic_edge.config import format_bytes
from mosaic_edge.serve.thumbnails import as_jpeg
from mosaic_edge.world import World

QUESTION = "what colour was the ball ?"
READ_SECONDS = 0.5
FRAMES = 64


class Server:
    """The process, its port and its token."""

    def __init__(self, memory: str) -> None:
        words = [
            sys.executable,
            "-m",
            "mosaic_edge.cli",
            "serve",
            "--port",
            "0",
            "--memory",
            memory,
            "--json",
        ]
        self.process = subprocess.Popen([*words, "--threads", "1"], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        lines = ""
        while not lines.endswith("}\n"):
            lines += self.process.stdout.readline() or sys.exit("serve_load: the server did not start")
        said = json.loads(lines)
        self.port = int(said["url"].rpartition(":")[2])
        self.headers = {"Authorization": f"Bearer {said['token']}"}

    def end(self) -> float:
        """Seconds from SIGTERM to the end of the process."""
        began = time.perf_counter()
        self.process.terminate()
        self.process.wait(60)
        return time.perf_counter() - began


class Client:
    """One connection that is kept."""

    def __init__(self, server: Server) -> None:
        self._headers = server.headers
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)

    def send(
        self, method: str, path: str, body: bytes | dict[str, Any] | None = None
    ) -> http.client.HTTPResponse:
        """The response, unread."""
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        self._connection.request(method, path, data, self._headers)
        return self._connection.getresponse()

    def json(self, method: str, path: str, body: bytes | dict[str, Any] | None = None) -> tuple[int, Any]:
        """Status and document."""
        response = self.send(method, path, body)
        return response.status, json.loads(response.read())


class Load:
    """What the clients do until `seconds` are over, and what they measured."""

    def __init__(self, server: Server, options: argparse.Namespace) -> None:
        self._server, self._options = server, options
        self._until = 0.0
        self._lock = threading.Lock()
        self.puts: list[float] = []
        self.late: list[float] = []
        self.firsts: list[float] = []
        self.faults: list[str] = []
        self.churned = self.refused = self.reads = 0
        self.rss: list[int] = []
        world = World(7, FRAMES, "plain")
        self._frames = [as_jpeg(world.render(float(i), 256), 256) for i in range(FRAMES)]

    def run(self) -> None:
        """All at once, to the end."""
        self._until = time.perf_counter() + self._options.seconds
        works: list[Any] = [(self._session, (i,)) for i in range(self._options.sessions)]
        works += [(self._read, ()), (self._churn, ())]
        threads = [threading.Thread(target=self._guarded, args=work) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _guarded(self, work: Any, arguments: tuple[int, ...]) -> None:
        try:
            work(*arguments)
        except Exception as error:
            self.faults.append(f"{work.__name__}: {type(error).__name__}: {error}")

    def _session(self, number: int) -> None:
        client, step = Client(self._server), 1.0 / self._options.fps
        status, opened = client.json("POST", "/v1/sessions", {"memory": self._options.session_memory})
        if status != 201:
            raise RuntimeError(opened)
        path = f"/v1/sessions/{opened['id']}"
        due = time.perf_counter() + number * step / self._options.sessions
        ask_due, count = due + self._options.ask_every * (1 + number / 8) / 2, 0
        while (now := time.perf_counter()) < self._until:
            if now < due:
                time.sleep(due - now)
            began = time.perf_counter()
            frame = self._frames[(count + 13 * number) % len(self._frames)]
            status, said = client.json("PUT", f"{path}/frames?pts={count * step}", frame)
            took, count = time.perf_counter() - began, count + 1
            if status != 200:
                raise RuntimeError(said)
            with self._lock:
                self.puts.append(took)
                self.late.append(max(0.0, began - due))
            due = max(due + step, began)
            if time.perf_counter() >= ask_due:
                ask_due += self._options.ask_every
                self._ask(client, path)

    def _ask(self, client: Client, path: str) -> None:
        began = time.perf_counter()
        response = client.send("POST", f"{path}/questions", {"question": QUESTION, "stream": True})
        first = response.readline()
        took = time.perf_counter() - began
        if not first.startswith(b"data: {") or b"data: [DONE]" not in response.read():
            raise RuntimeError(first)
        with self._lock:
            self.firsts.append(took)

    def _read(self) -> None:
        """The account, against the cap."""
        client, process = Client(self._server), psutil.Process(self._server.process.pid)
        while time.perf_counter() < self._until:
            _, listed = client.json("GET", "/v1/sessions")
            drawn, budget = listed["drawn_bytes"], listed["budget_bytes"]
            if drawn > budget:
                self.faults.append(f"{drawn} bytes drawn of {budget}")
            for stats in listed["data"]:
                if not stats["taken_bytes"] <= stats["cap_bytes"] <= stats["drawn_bytes"] + 4096:
                    self.faults.append(f"session {stats['id']} took {stats['taken_bytes']}: {stats}")
            self.reads += 1
            self.rss.append(process.memory_info().rss)
            time.sleep(READ_SECONDS)

    def _churn(self) -> None:
        """Sessions that come and go at the edge of the budget."""
        client = Client(self._server)
        while time.perf_counter() < self._until:
            mine = []
            while True:
                status, said = client.json("POST", "/v1/sessions", {"memory": self._options.session_memory})
                if status != 201:
                    break
                mine.append(said["id"])
            if status != 507:
                self.faults.append(f"expected 507, got {status}: {said}")
            self.refused += 1
            for name in mine:
                client.json("DELETE", f"/v1/sessions/{name}")
            self.churned += len(mine)
            time.sleep(READ_SECONDS)


def percentiles(seconds: list[float]) -> dict[str, float]:
    """In milliseconds."""
    if not seconds:
        return {}
    return {f"p{q}_ms": round(1e3 * float(np.percentile(seconds, q)), 1) for q in (50, 99)}


def metrics_of(client: Client) -> dict[str, float]:
    """Samples without labels."""
    lines = client.send("GET", "/metrics").read().decode().splitlines()
    return {
        line.split()[0]: float(line.split()[1])
        for line in lines
        if not line.startswith("#") and "{" not in line
    }


def main() -> int:
    """Run it, print the figures; 1 where something was not as it must be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--fps", type=float, default=2.0, help="frames a second of each session")
    parser.add_argument("--ask-every", type=float, default=5.0, help="seconds between questions of a session")
    parser.add_argument("--memory", default="20MiB", help="the budget")
    parser.add_argument("--session-memory", default="2MiB")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    server = Server(options.memory)
    try:
        load = Load(server, options)
        load.run()
        shown = metrics_of(Client(server))
    finally:
        end_seconds = server.end()
    prefix, counts = "mosaic_edge_", (len(load.puts), len(load.firsts))
    told = (shown[f"{prefix}frames_total"], shown[f"{prefix}questions_total"])
    if told != counts:
        load.faults.append(f"the server counts {told} frames and questions, its clients {counts}")
    budget, peak = shown[f"{prefix}budget_bytes"], shown[f"{prefix}budget_drawn_peak_bytes"]
    if peak > budget:
        load.faults.append(f"{peak} bytes were drawn of {budget}")
    half = len(load.rss) // 2
    result = {
        "sessions": options.sessions,
        "seconds": options.seconds,
        "fps": options.fps,
        "frames": counts[0],
        "questions": counts[1],
        "put": percentiles(load.puts),
        "late": percentiles(load.late),
        "first_token": percentiles(load.firsts),
        "budget_bytes": budget,
        "drawn_peak_bytes": peak,
        "accounts_read": load.reads,
        "sessions_that_came_and_went": load.churned,
        "refused_507": load.refused,
        "rss_growth_second_half_bytes": max(load.rss[half:]) - max(load.rss[:half]) if half else None,
        "sigterm_seconds": round(end_seconds, 2),
        "load_average": round(os.getloadavg()[0], 1),
        "faults": load.faults,
    }
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        for name, value in result.items():
            shown_value = format_bytes(value) if name.endswith("_bytes") and value is not None else value
            print(f"{name.replace('_', ' '):32} {shown_value}")
    return 1 if load.faults else 0


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
