"""The socket under clients that mean harm: each costs its own connection, none the stream, nobody the end."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mosaic_edge.engine import Engine, Session
from mosaic_edge.serve import questions, stream_live
from mosaic_edge.serve.questions import MOST_CLIENTS, QUESTION_BYTES, answering
from mosaic_edge.sources import Frame
from numpy_vlm import NumpyVlm, picture

QUESTION = b"what colour was the ball ?\n"
PATIENCE = 600.0
"""Seconds. What has not happened by then never will, however busy the machine is."""


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mosaic-") as folder:  # a socket's path holds 107 bytes
        yield Path(folder) / "ask.sock"


@pytest.fixture
def session() -> Iterator[Session]:
    with Engine(NumpyVlm()).session(memory="1MiB", policy="window", kernel_threads=1) as opened:
        for i in range(5):
            opened.append(picture(i), float(i))
        yield opened


@pytest.fixture
def served(session: Session, path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Clients of a busy machine are slow without meaning harm: a line has all the time there is."""
    monkeypatch.setattr(questions, "LINE_SECONDS", PATIENCE)
    with answering(session, path):
        yield path


def connect(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.connect(str(path))  # waits where the queue of connections is full: with a timeout it would not
    made.settimeout(PATIENCE)
    return made


def lines(connection: socket.socket) -> list[dict[str, Any]]:
    """All there is until the other side ends."""
    data = b""
    try:
        while more := connection.recv(65536):
            data += more
    except ConnectionResetError:
        pass
    return [json.loads(line) for line in data.splitlines()]


def ask(path: Path, question: bytes = QUESTION) -> dict[str, Any]:
    with connect(path) as connection, connection.makefile("rb") as file:
        connection.sendall(question)
        answer: dict[str, Any] = json.loads(file.readline())
        return answer


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (b"\xff\xfe ball\n", "utf-8"),
        (b"\n", "no text"),
        (b"   \n", "no text"),
        (b"what\0ball ?\n", "unknown word"),
        (b"<eos> ball\n", None),
        (b"\xed\xa0\x80 ball\n", "utf-8"),
        (b"what colour was the ball ?\r\n", None),
        (b"a" * (QUESTION_BYTES - 2) + b"\n", "unknown word"),
        (b"ball " * 800 + b"\n", "branch_tokens"),
    ],
)
def test_whatever_a_line_holds_it_has_one_answer_and_the_connection_goes_on(
    served: Path, question: bytes, said: str | None
) -> None:
    with connect(served) as connection, connection.makefile("rb") as file:
        for _ in range(2):
            connection.sendall(question)
            answer = json.loads(file.readline())
            assert said is None or said in answer["error"]
        connection.sendall(QUESTION)
        assert json.loads(file.readline())["answer"]


@pytest.mark.parametrize("size", [QUESTION_BYTES - 1, QUESTION_BYTES, QUESTION_BYTES + 1, 1 << 20])
@pytest.mark.parametrize("newline", [b"\n", b""])
def test_a_line_that_is_too_long_has_one_answer_and_ends_the_connection(
    served: Path, size: int, newline: bytes
) -> None:
    with connect(served) as connection:
        try:
            connection.sendall(b"a" * size + newline)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        (answer,) = lines(connection)
        wanted = "unknown word" if newline and size < QUESTION_BYTES else "a line of at most 4095 bytes"
        assert wanted in answer["error"]
    assert ask(served)["answer"]


def test_lines_that_come_together_are_answered_one_after_the_other(served: Path) -> None:
    with connect(served) as connection:
        connection.sendall(QUESTION * 7 + b"flurb\n" + QUESTION)
        connection.shutdown(socket.SHUT_WR)
        answers = lines(connection)
    assert ["answer" in answer for answer in answers] == [True] * 7 + [False, True]


def test_a_line_has_a_deadline_however_its_bytes_trickle(
    served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "LINE_SECONDS", 1.0)
    with connect(served) as slow, connect(served) as silent:
        with suppress(
            ValueError
        ):  # once it is accepted they are, with their deadlines; it may be late itself
            ask(served)
        monkeypatch.setattr(questions, "LINE_SECONDS", PATIENCE)
        began, cut = time.monotonic(), False
        while time.monotonic() - began < PATIENCE and not cut:
            try:
                slow.sendall(b"w")
                slow.settimeout(0.1)
                cut = slow.recv(1) == b""
            except TimeoutError:
                pass
            except OSError:
                cut = True
            assert ask(served)["answer"], "the others are answered meanwhile"
        assert cut
        assert lines(silent) == []


def test_two_hundred_clients_are_served_or_told_that_it_is_busy(served: Path) -> None:
    clients = [connect(served) for _ in range(200)]
    told = 0
    for client in clients:
        with suppress(OSError):
            client.sendall(QUESTION)
        with client.makefile("rb") as file:
            document = json.loads(file.readline())
        told += "busy" in document.get("error", "")
        assert "answer" in document or "busy" in document["error"]
    assert told == 200 - MOST_CLIENTS
    for client in clients:
        client.close()
    deadline = time.monotonic() + PATIENCE
    while "answer" not in ask(served):
        assert time.monotonic() < deadline


def test_clients_that_leave_or_never_read_cost_nothing(served: Path) -> None:
    for _ in range(20):
        with connect(served) as gone:
            gone.sendall(QUESTION)
    with connect(served) as deaf:
        deaf.settimeout(0.5)
        try:
            while True:
                deaf.send(QUESTION * 1000)
        except OSError:
            pass
        assert ask(served)["answer"]


def test_the_end_comes_at_once_whatever_clients_do(
    session: Session, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = []
    with answering(session, path):
        for data in (b"", b"w", QUESTION * 500, b"a" * 4000):
            client = connect(path)
            client.settimeout(0.2)
            clients.append(client)
            with suppress(OSError):
                client.sendall(data)
        asked = threading.Event()
        real = session.ask

        def slow(question: str) -> Any:
            asked.set()
            time.sleep(30)
            return real(question)

        monkeypatch.setattr(session, "ask", slow)
        clients.append(connect(path))
        clients[-1].sendall(QUESTION)
        assert asked.wait(PATIENCE)
        began = time.monotonic()
    assert time.monotonic() - began < 3
    assert not path.exists()
    for client in clients:
        client.close()


def test_a_socket_that_is_answered_at_is_left_alone(session: Session, served: Path) -> None:
    with pytest.raises(ValueError, match="another process answers there"), answering(session, served):
        pytest.fail("it was taken")
    assert ask(served)["answer"]


def test_a_socket_that_a_process_left_is_taken_and_only_ones_own_is_removed(
    session: Session, path: Path
) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    with answering(session, path):
        assert ask(path)["answer"]
        path.unlink()
        other = socket.socket(socket.AF_UNIX)
        other.bind(str(path))
    assert path.exists(), "someone else's by now"
    other.close()


@pytest.mark.parametrize("kind", ["file", "folder", "fifo", "link", "long", "no folder", "nothing", "nul"])
def test_a_path_that_is_no_place_for_a_socket_is_refused_and_untouched(
    session: Session, path: Path, kind: str
) -> None:
    made = {
        "long": path.with_name("x" * 200),
        "no folder": path / "x" / "y",
        "nothing": Path(),
        "nul": Path("a\0b"),
    }
    place = made.get(kind, path)
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/etc/passwd")
    with pytest.raises((ValueError, OSError)), answering(session, place):
        pytest.fail("it was taken")
    assert kind in made or os.path.lexists(path)
    assert kind != "file" or path.read_text() == "mine"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_the_socket_is_its_owners_whatever_the_umask_is(session: Session, path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with answering(session, path):
            assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    finally:
        os.umask(before)


class Endless:
    def __iter__(self) -> Iterator[Frame]:
        for i in range(10**9):
            time.sleep(0.01)
            yield Frame(picture(i), float(i), i)

    def close(self) -> None:
        pass


def test_sigterm_ends_a_stream_within_a_second_under_clients_that_ask_without_pause(
    session: Session, path: Path
) -> None:
    stop = threading.Event()

    def pester() -> None:
        while not stop.is_set():
            with suppress(OSError, ValueError):
                ask(path)

    threads = [threading.Thread(target=pester) for _ in range(4)]
    sent: list[float] = []

    for thread in threads:
        thread.start()

    class Ended(Endless):
        """Of its own accord: how many frames are in does not depend on how fast they came."""

        def __iter__(self) -> Iterator[Frame]:
            for f in super().__iter__():
                if f.index == 20:
                    sent.append(time.monotonic())
                    os.kill(os.getpid(), signal.SIGTERM)
                yield Frame(f.image, 5.0 + f.pts, f.index)

    ended = stream_live(session, Ended(), socket=path)
    took = time.monotonic() - sent[0]
    stop.set()
    for thread in threads:
        thread.join()
    assert ended.frames == 20 and ended.error is None
    assert took < 10, "a second where nothing else runs"


def hold_every_slot(path: Path) -> list[socket.socket]:
    """As many clients as are served, each of whom says nothing, half a line, or questions whose answers it
    never reads; one more is told that it is busy."""
    clients = []
    for i in range(MOST_CLIENTS):
        clients.append(connect(path))
        clients[-1].setblocking(False)
        with suppress(OSError):
            clients[-1].send((b"", b"what", QUESTION * 5000)[i % 3])
    assert "busy" in ask(path, b"")["error"]
    return clients


def test_sigterm_ends_a_stream_although_clients_hold_every_slot(
    session: Session, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "LINE_SECONDS", PATIENCE)  # nobody is hung up on for being slow
    clients: list[socket.socket] = []
    sent: list[float] = []

    class Held(Endless):
        def __iter__(self) -> Iterator[Frame]:
            for f in super().__iter__():
                if f.index == 5:
                    clients.extend(hold_every_slot(path))
                if f.index == 10:
                    sent.append(time.monotonic())
                    os.kill(os.getpid(), signal.SIGTERM)
                yield Frame(f.image, 5.0 + f.pts, f.index)

    ended = stream_live(session, Held(), socket=path)
    took = time.monotonic() - sent[0]
    assert (ended.frames, ended.error) == (10, None)
    assert not path.exists()
    for client in clients:
        client.settimeout(PATIENCE)
        with client, suppress(ConnectionResetError):
            while client.recv(1 << 16):
                pass  # what it was answered, then the end
    assert took < PATIENCE / 10, "a second where nothing else runs; a client may be silent for ten times this"
