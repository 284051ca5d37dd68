"""`mosaic-edge serve` as a process: the token it prints, and its end, whatever clients do."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.sync.client import connect

import http_service
from http_service import PATIENCE, QUESTION, Client, jpeg, serving, until
from mosaic_edge import cli
from mosaic_edge.ends import SAME_SECONDS
from mosaic_edge.serve.connections import MOST_CONNECTIONS
from mosaic_edge.serve.server import END_SECONDS
from mosaic_edge.serve.state import StateFolder
from serve_process import PACKAGE, process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_well_whatever_clients_do(number: signal.Signals) -> None:
    with process() as (running, client, said):
        assert said["url"].startswith("http://127.0.0.1:")
        path = client.session(memory="1MiB")
        client.good("PUT", f"{path}/frames?pts=0", jpeg(1))
        silent = socket.create_connection(("127.0.0.1", client.port))
        half = socket.create_connection(("127.0.0.1", client.port))
        half.sendall(b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\n")
        slow = socket.create_connection(("127.0.0.1", client.port))
        slow.sendall(
            f"PUT {path}/frames HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {client.token}\r\n"
            "Content-Length: 100000\r\n\r\n123".encode()
        )
        url = f"ws://127.0.0.1:{client.port}{path}/frames"
        with suppress(Exception), connect(url, additional_headers=client.headers) as frames:
            events = client.open("POST", f"{path}/questions", {"question": QUESTION, "stream": True})
            frames.send(jpeg(2))
            sent = time.monotonic()
            running.send_signal(number)
            code = running.wait(PATIENCE)
            took = time.monotonic() - sent
            events.close()
        for left in (silent, half, slow):
            left.close()
        assert running.stderr is not None
        assert (code, running.stderr.read()) == (0, "")
        assert took < 20, "a second where nothing else runs"


def test_text_that_is_no_utf8_ends_its_connection_and_is_a_line_of_the_log() -> None:
    with process() as (running, client, _):
        path = client.session(memory="1MiB")
        url = f"ws://127.0.0.1:{client.port}{path}/frames"
        with connect(url, additional_headers=client.headers) as frames, pytest.raises(ConnectionClosed):
            texts = Frame(Opcode.TEXT, b'{"pts": \xf4}'), Frame(Opcode.CLOSE, b"\x03\xe8")
            frames.socket.sendall(b"".join(text.serialize(mask=True) for text in texts))
            frames.recv(PATIENCE)
        assert client.good("GET", path)["frames"] == 0
        running.terminate()
        assert running.wait(PATIENCE) == 0
        assert running.stderr is not None
        lines = running.stderr.read().splitlines()
        assert lines and not [line for line in lines if "Traceback" in line or line.startswith(" ")], lines


LONG = """
import socket, sys
from pathlib import Path
from http_service import GatedVlm, TOKEN
from mosaic_edge.engine import Engine
from mosaic_edge.serve.app import make_app
from mosaic_edge.serve.metrics import Metrics
from mosaic_edge.serve.server import listen, run
from mosaic_edge.serve.sessions import ServeSettings, Sessions
from mosaic_edge.serve.state import StateFolder
model = GatedVlm()
state = StateFolder(Path(sys.argv[1]), 3600) if sys.argv[1:] else None
sessions = Sessions(Engine(model), ServeSettings("8MiB", {"policy": "window"}, state=state))
model.gate.clear()
with listen("127.0.0.1", 0) as listener:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    print(listener.getsockname()[1], flush=True)
    run(make_app(sessions, Metrics(), TOKEN), sessions, listener)
"""
"""A server whose model takes minutes for a step, and who does not read is noticed after a few answers."""


@contextmanager
def long_steps(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], Client]]:
    material = Path(http_service.__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{PACKAGE}:{material}", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", LONG, *arguments]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as running:
        try:
            assert running.stdout is not None
            yield running, Client(int(running.stdout.readline()))
        finally:
            running.kill()


@pytest.mark.parametrize(
    "asked_for",
    [
        b"",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: ",
        b"GET /page.js HTTP/1.1\r\nHost: x\r\n\r\n" * 40,
    ],
    ids=["nothing", "half a head", "answers, and reads none"],
)
def test_connections_that_wait_for_their_clients_keep_nobody_out(asked_for: bytes) -> None:
    with long_steps() as (_, client), ExitStack() as silent:
        asks_often = http.client.HTTPConnection("127.0.0.1", client.port, timeout=600)
        for number in range(MOST_CONNECTIONS + 40):
            one = silent.enter_context(socket.socket())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.connect(("127.0.0.1", client.port))
            one.sendall(asked_for)
            if number % 8 == 0:  # and wait for it: those before get on
                asks_often.request("GET", "/healthz")
                with asks_often.getresponse() as response:
                    assert response.status == 200 and response.read(), number
        assert client.call("GET", "/healthz")[0] == 200
        assert client.good("GET", "/v1/models")["data"]
        asks_often.close()


@contextmanager
def asked(client: Client, path: str) -> Iterator[None]:
    """While a question is in its first step."""
    stuck = threading.Thread(target=ended, args=(client, f"{path}/questions"))
    stuck.start()
    until(lambda: client.good("GET", path)["waiting"])
    yield
    stuck.join()


def test_a_step_of_the_model_that_is_long_is_cut_off() -> None:
    with long_steps() as (running, client), asked(client, client.session()):
        sent = time.monotonic()
        running.terminate()
        assert running.wait(PATIENCE) == 0
        assert time.monotonic() - sent < 20, "a second where nothing else runs"


def test_a_second_signal_ends_what_saves_at_once_and_leaves_what_was_saved_before(tmp_path: Path) -> None:
    with serving(state=StateFolder(tmp_path, 3600)) as before:
        path = before.client.session()
        before.client.put(path, 0, 0.0)
    (file,) = tmp_path.iterdir()
    saved = file.read_bytes()
    with long_steps(str(tmp_path)) as (running, client), asked(client, path):
        for _ in range(2):  # as timeout(1) does it
            running.terminate()
            time.sleep(SAME_SECONDS / 20)
        time.sleep(2 * END_SECONDS)
        assert running.poll() is None, "it waits for the step, to save what was seen"
        running.terminate()
        assert running.wait(PATIENCE) == 0
    assert list(tmp_path.iterdir()) == [file] and file.read_bytes() == saved


def test_systemd_is_told_that_it_is_up_that_it_lives_and_that_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(PATIENCE)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "3000000")
        with process() as (running, client, _):
            assert systemd.recv(99) == b"READY=1"
            assert client.good("GET", "/healthz") == {"status": "ok"}
            while (said := systemd.recv(99)) != b"WATCHDOG=1":
                assert said.startswith(b"STATUS=")
            running.terminate()
            assert running.wait(PATIENCE) == 0
            while (said := systemd.recv(99)) != b"STOPPING=1":
                assert said == b"WATCHDOG=1" or said.startswith(b"STATUS=")


def ended(client: Client, path: str) -> None:
    """Ask, of a server that ends meanwhile."""
    with suppress(OSError, ValueError, http.client.HTTPException):
        client.call("POST", path, {"question": QUESTION})


def test_the_token_is_the_files_where_there_is_one_and_is_not_shown(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text("of-the-file-0123456789\n")
    with process("--token-file", str(token)) as (_, client, said):
        assert said["token"] is None
        assert client.refused(401, "GET", "/v1/models")
        client.token = "of-the-file-0123456789"
        assert client.good("GET", "/v1/models")["data"][0]["id"] == "mosaic-tiny"


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--memory", "64KiB"], 3, "needs at least"),
        (["--session-memory", "none"], 2, "session_memory='none'"),
        (["--source", "door"], 2, "expected NAME=WHERE"),
        (["--media", "/no/such/folder"], 2, "expected a folder"),
        (["--token-file", "/no/such/file"], 2, "No such file"),
        (["--port", "99999"], 2, "port=99999"),
        (["--host", "no host"], 2, "host='no host'"),
        (["--idle", "-1"], 2, "idle=-1"),
    ],
)
def test_what_cannot_be_served_is_one_line_and_no_server(
    options: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", *options]) == code
    told = capsys.readouterr()
    assert said in told.err and told.err.count("\n") == 1
    assert told.out == ""


def test_two_servers_do_not_share_a_port(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert cli.main(["serve", "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot be listened at" in capsys.readouterr().err
