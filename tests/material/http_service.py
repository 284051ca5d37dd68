"""The server of `mosaic-edge serve` in this process, on a port of its own, and a plain client of it."""

from __future__ import annotations

import base64
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import uvicorn

from mosaic_edge.engine import Engine
from mosaic_edge.models.vlm import Attend, FloatArray
from mosaic_edge.serve.app import make_app
from mosaic_edge.serve.metrics import Metrics
from mosaic_edge.serve.requests import Bodies
from mosaic_edge.serve.server import listen
from mosaic_edge.serve.sessions import ServeSettings, Sessions
from mosaic_edge.serve.thumbnails import as_jpeg
from numpy_vlm import NumpyVlm, picture

TOKEN = "a-token-for-tests-only"
PATIENCE = 600.0
"""Seconds. What has not happened by then never will, however busy the machine is."""
QUESTION = "what colour was the ball ?"


class GatedVlm(NumpyVlm):
    """Runs of the decoder wait while the gate is shut; `runs` are those that began."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.gate = threading.Event()
        self.gate.set()
        self.runs = 0

    def forward(self, embeds: FloatArray, attend: Attend, want_logits: bool) -> FloatArray | None:
        self.runs += 1
        assert self.gate.wait(PATIENCE)
        return super().forward(embeds, attend, want_logits)


class Client:
    """Requests with the token, one connection each."""

    def __init__(self, port: int, token: str | None = TOKEN) -> None:
        self.port, self.token = port, token

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.token is None else {"Authorization": f"Bearer {self.token}"}

    def open(self, method: str, path: str, body: Any = None) -> http.client.HTTPResponse:
        """The response, its body unread. body: bytes, or what becomes JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method, path, data, self.headers)
        return connection.getresponse()

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and document."""
        with self.open(method, path, body) as response:
            data = response.read()
            return response.status, json.loads(data)

    def good(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """The document of what went well."""
        status, document = self.call(method, path, body)
        assert status in (200, 201), document
        assert isinstance(document, dict)
        return document

    def refused(self, status: int, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """The error of what was refused with `status`."""
        got, document = self.call(method, path, body)
        assert got == status, document
        assert list(document) == ["error"]
        error = document["error"]
        assert {"message", "type", "param", "code"} <= error.keys() and error["message"]
        assert isinstance(error, dict)
        return error

    def session(self, **opening: Any) -> str:
        """The path of a new session."""
        return f"/v1/sessions/{self.good('POST', '/v1/sessions', opening)['id']}"

    def put(self, path: str, number: int, pts: float) -> dict[str, Any]:
        """Frame `number` as raw pixels."""
        image = picture(number)
        height, width = image.shape[:2]
        query = f"pts={pts}&width={width}&height={height}"
        return self.good("PUT", f"{path}/frames?{query}", np.ascontiguousarray(image).tobytes())

    def events(self, path: str, body: Any) -> Iterator[dict[str, Any]]:
        """Server-sent events, up to [DONE]."""
        with self.open("POST", path, body) as response:
            assert (response.status, response.headers["content-type"].split(";")[0]) == (
                200,
                "text/event-stream",
            )
            yield from events_of(response)

    def metrics(self) -> dict[str, float]:
        """Samples by name and labels, as they are written."""
        with self.open("GET", "/metrics") as response:
            lines = response.read().decode().splitlines()
        return {
            name: float(value)
            for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        }


def events_of(response: Any) -> Iterator[dict[str, Any]]:
    for line in response:
        if line.startswith(b"data: "):
            if line == b"data: [DONE]\n":
                return
            yield json.loads(line[6:])


def jpeg(number: int) -> bytes:
    return as_jpeg(np.ascontiguousarray(picture(number)), 64)


def data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def until(holds: Callable[[], Any]) -> None:
    """Wait for what must come."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Service:
    """A server that runs: its client, its sessions, its model, what it holds of bodies."""

    def __init__(self, client: Client, sessions: Sessions, model: GatedVlm, bodies: Bodies) -> None:
        self.client, self.sessions, self.model, self.bodies = client, sessions, model, bodies


@contextmanager
def serving(memory: str = "8MiB", model: GatedVlm | None = None, **settings: Any) -> Iterator[Service]:
    model = GatedVlm() if model is None else model
    metrics = Metrics()
    fields = {"policy": "window", "kernel_threads": 1}
    settings = {"session_memory": "1MiB", **settings}
    sessions = Sessions(
        Engine(model), ServeSettings(memory=memory, session=fields, **settings), metrics.first_token
    )
    metrics.watch(sessions)
    with listen("127.0.0.1", 0) as listener:
        app = make_app(sessions, metrics, TOKEN)
        config = uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            until(lambda: server.started)
            yield Service(Client(listener.getsockname()[1]), sessions, model, app.state.bodies)
        finally:
            model.gate.set()
            sessions.stop()
            server.should_exit = True
            thread.join(PATIENCE)
            assert sessions.wait(PATIENCE)
