"""Clients of the server that have no token, leave, wait, never read: each costs its own connection alone."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from http_service import PATIENCE, QUESTION, TOKEN, Client, Service, jpeg, serving, until
from mosaic_edge.serve.answers import Answer
from mosaic_edge.serve.auth import read_token
from mosaic_edge.serve.worker import MOST_WAITING


@pytest.fixture
def service() -> Iterator[Service]:
    with serving() as opened:
        yield opened


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN[:-1], TOKEN + "x", "\xe9" * 8])
def test_without_the_token_nothing_is_done_and_nothing_told(service: Service, token: str | None) -> None:
    path = service.client.session()
    stranger = Client(service.client.port, token)
    for method, where in (
        ("GET", "/v1/models"), ("GET", "/v1/sessions"), ("POST", "/v1/sessions"), ("GET", path),
        ("DELETE", path), ("PUT", f"{path}/frames"), ("POST", f"{path}/questions"), ("GET", "/metrics"),
        ("POST", "/v1/chat/completions"), ("GET", "/nothing"), ("GET", f"{path}/picture"),
    ):  # fmt: skip
        assert stranger.refused(401, method, where)["code"] == "invalid_api_key"
    assert stranger.good("GET", "/healthz") == {"status": "ok"}
    for protocols in ([], ["mosaic-edge", f"bearer.{(token or 'none').encode('ascii', 'replace').decode()}"]):
        offered = [p.replace("?", "x") for p in protocols if p != "bearer."]
        with pytest.raises(InvalidStatus):
            connect(f"ws://127.0.0.1:{service.client.port}{path}/frames", subprotocols=offered or None)
    assert service.client.good("GET", path)["frames"] == 0


def test_a_token_in_a_file_is_one_line_that_others_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.touch(0o600)
    path.write_text("0123456789abcdef\n")
    assert read_token(path) == "0123456789abcdef"
    with pytest.raises(ValueError, match=r"everybody may read it|expected a line of 16"):
        read_token(Path("/dev/zero"))  # which has no end
    for text in ("", "a" * 5000, "short", "two words of a token", "0123456789abcdé"):
        path.write_text(text)
        with pytest.raises(ValueError, match="expected a line of 16"):
            read_token(path)
    path.write_text("0123456789abcdef\n")
    path.chmod(0o604)
    with pytest.raises(ValueError, match="chmod 600"):
        read_token(path)
    with pytest.raises(ValueError, match="No such file"):
        read_token(tmp_path / "gone")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_the_question(
    service: Service, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, model = service.client.session(branch_tokens=400), service.model
    heard, leave = threading.Event(), Answer.leave
    monkeypatch.setattr(Answer, "leave", lambda answer: (leave(answer), heard.set()))
    with serving_raw(service.client.port) as raw:
        model.gate.clear()
        before = model.runs
        body = json.dumps({"question": QUESTION, "stream": stream, "max_tokens": 300}).encode()
        raw.sendall(head("POST", f"{path}/questions", len(body)) + body)
        until(lambda: model.runs > before)
    # The model is in a run for a client that is gone. Whoever asks next waits for that run alone.
    until(lambda: service.client.good("GET", path)["waiting"] == 1)
    gone_at = model.runs
    answers: list[dict[str, object]] = []
    asking = threading.Thread(
        target=lambda: answers.append(
            service.client.good("POST", f"{path}/questions", {"question": QUESTION, "max_tokens": 1})
        )
    )
    asking.start()
    until(lambda: service.client.good("GET", path)["waiting"] == 2)
    assert heard.wait(PATIENCE), "while the model is in its run"
    model.gate.set()
    asking.join()
    assert answers[0]["tokens"] == 1
    assert model.runs - gone_at <= 3, "300 tokens were not made for nobody"
    assert service.client.good("GET", path)["questions"] == 1


def serving_raw(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def head(method: str, path: str, length: int) -> bytes:
    return (
        f"{method} {path} HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def test_a_session_takes_so_many_calls_and_tells_the_rest_that_it_is_busy(service: Service) -> None:
    path = service.client.session()
    service.model.gate.clear()
    told: list[int] = []

    def put(number: int) -> None:
        told.append(service.client.call("PUT", f"{path}/frames", jpeg(number))[0])

    threads = [threading.Thread(target=put, args=(i,)) for i in range(MOST_WAITING + 5)]
    for thread in threads:
        thread.start()
    until(lambda: told.count(429) == 5)
    assert service.client.good("GET", "/healthz"), "the loop waits for nobody"
    service.model.gate.set()
    for thread in threads:
        thread.join()
    assert told.count(200) == MOST_WAITING
    assert service.client.good("GET", path)["frames"] == MOST_WAITING


def test_a_session_that_is_ended_ends_its_answers(service: Service) -> None:
    path = service.client.session(branch_tokens=400)
    service.model.gate.clear()
    got: list[tuple[int, dict[str, dict[str, str]]]] = []
    asking = threading.Thread(
        target=lambda: got.append(service.client.call("POST", f"{path}/questions", {"question": QUESTION}))
    )
    asking.start()
    until(lambda: service.client.good("GET", path)["waiting"] == 1)
    ending = threading.Thread(target=lambda: service.client.good("DELETE", path))
    ending.start()
    asking.join()  # though the model is still in its run
    service.model.gate.set()
    ending.join()
    assert (got[0][0], got[0][1]["error"]["code"]) == (503, "session_ended")
    assert service.sessions.budget.drawn_bytes == 0


def test_frames_over_a_websocket_are_each_answered(service: Service) -> None:
    path = service.client.session()
    url = f"ws://127.0.0.1:{service.client.port}{path}/frames"
    with connect(url, additional_headers=service.client.headers) as socket_:
        for i in range(5):
            socket_.send(json.dumps({"pts": i + 0.5}))
            socket_.send(jpeg(i))
            said = json.loads(socket_.recv(PATIENCE))
            assert said == {"object": "frame", "pts": i + 0.5, "frames": i + 1, "dropped": 0}
        for wrong in (b"none", "{", '{"pts": "then"}'):
            socket_.send(wrong)
            assert json.loads(socket_.recv(PATIENCE))["error"]["type"] == "invalid_request_error"
        socket_.send(json.dumps({"width": 5, "height": 7}))
        socket_.send(bytes(105))
        assert json.loads(socket_.recv(PATIENCE))["frames"] == 6
    assert service.client.good("GET", path)["refused"] == 1


def test_a_browser_says_its_token_in_a_subprotocol(service: Service) -> None:
    path = service.client.session()
    url = f"ws://127.0.0.1:{service.client.port}{path}/frames"
    with connect(url, subprotocols=["mosaic-edge", f"bearer.{TOKEN}"]) as socket_:  # type: ignore[list-item]
        assert socket_.subprotocol == "mosaic-edge", "the token is not said back"
        socket_.send(jpeg(1))
        assert json.loads(socket_.recv(PATIENCE))["frames"] == 1
    with connect(f"{url[:-18]}nothing/frames", additional_headers=service.client.headers) as socket_:
        assert json.loads(socket_.recv(PATIENCE))["error"]["code"] == "no_such_session"
        with pytest.raises(ConnectionClosed):
            socket_.recv(PATIENCE)


def test_of_frames_that_come_while_the_model_is_busy_the_newest_is_taken(service: Service) -> None:
    path = service.client.session()
    url = f"ws://127.0.0.1:{service.client.port}{path}/frames"
    with connect(url, additional_headers=service.client.headers) as socket_:
        service.model.gate.clear()
        before = service.model.runs
        for i in range(7):
            socket_.send(json.dumps({"pts": float(i)}))
            socket_.send(jpeg(i))
            if i == 0:
                until(lambda: service.model.runs > before)
        until(lambda: service.client.good("GET", path)["dropped"] == 5)
        service.model.gate.set()
        assert [json.loads(socket_.recv(PATIENCE))["pts"] for _ in range(2)] == [0.0, 6.0]
    stats = service.client.good("GET", path)
    assert (stats["frames"], stats["dropped"]) == (2, 5)
    assert service.client.metrics()["mosaic_edge_frames_dropped_total"] == 5


def test_many_sessions_are_fed_and_asked_at_once(service: Service) -> None:
    paths = [service.client.session() for _ in range(8)]
    said: dict[str, str] = {}

    def live(path: str) -> None:
        for i in range(13):
            service.client.put(path, i, float(i))
        said[path] = service.client.good("POST", f"{path}/questions", {"question": QUESTION})["answer"]

    threads = [threading.Thread(target=live, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(said.values())) == 1 and len(said) == 8, "equal streams, equal answers"
    assert service.client.metrics()["mosaic_edge_frames_total"] == 8 * 13


def test_a_client_that_never_reads_its_answer_holds_nobody_up(service: Service) -> None:
    path = service.client.session()
    body = json.dumps({"question": QUESTION, "stream": True}).encode()
    deaf = [serving_raw(service.client.port) for _ in range(5)]
    for one in deaf:
        one.sendall(head("POST", f"{path}/questions", len(body)) + body)
    assert service.client.good("POST", f"{path}/questions", {"question": QUESTION})["answer"]
    for one in deaf:
        one.close()


def test_bodies_that_wait_take_so_much_memory_and_no_more(service: Service) -> None:
    path, bodies = service.client.session(), service.bodies
    bodies.most = 3 * len(jpeg(1)) + 10
    service.model.gate.clear()
    told: list[int] = []
    threads = [
        threading.Thread(
            target=lambda: told.append(service.client.call("PUT", f"{path}/frames?pts=1", jpeg(1))[0])
        )
        for _ in range(7)
    ]
    for thread in threads:
        thread.start()
    until(lambda: told.count(429) == 4)
    assert 0 < bodies.held <= bodies.most
    service.model.gate.set()
    for thread in threads:
        thread.join()
    assert told.count(200) == 3
    until(lambda: bodies.held == 0)
