"""The unmodified `openai` client, and curl, as clients."""

from __future__ import annotations

import http.server
import json
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from http_service import PATIENCE, QUESTION, TOKEN, GatedVlm, Service, data_url, events_of, jpeg, serving
from mosaic_edge.engine import Engine
from mosaic_edge.models.thinking import Thinking
from mosaic_edge.models.vlm import Attend, FloatArray
from mosaic_edge.pictures import as_rgb
from mosaic_edge.sampling import SamplingParams
from mosaic_edge.serve.chat import Chat
from mosaic_edge.sources import VideoSource
from numpy_vlm import NumpyVlm
from videos import MakeVideo

MODEL = NumpyVlm().spec.name


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serving() as opened:
        yield opened


@pytest.fixture
def client(service: Service) -> OpenAI:
    return client_of(service)


def client_of(service: Service, token: str = TOKEN) -> OpenAI:
    url = f"http://127.0.0.1:{service.client.port}/v1"
    return OpenAI(base_url=url, api_key=token, max_retries=0, timeout=PATIENCE)


def picture_part(number: int) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url("image/jpeg", jpeg(number)), "detail": "low"}}


def alone(frames: Any, **asking: Any) -> Any:
    """What a session of one's own says of (image, pts)."""
    with Engine(NumpyVlm()).session(memory=768 << 10, policy="window", kernel_threads=1) as session:
        for image, pts in frames:
            session.append(image, pts)
        return session.ask(QUESTION, **asking)


def test_the_model_is_listed(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "mosaic_edge"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_pictures_in_a_question_are_frames_in_their_order(client: OpenAI, service: Service) -> None:
    content = [*(picture_part(i) for i in (1, 7, 13)), {"type": "text", "text": QUESTION}]
    said = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": content}],
        max_completion_tokens=5,  # type: ignore[list-item]
    )
    frames = [(as_rgb(jpeg(n)), float(i)) for i, n in enumerate((1, 7, 13))]
    reply = alone(frames, sampling=SamplingParams(max_tokens=5))
    choice = said.choices[0]
    assert (choice.message.content, choice.finish_reason) == (reply.text, "length")
    assert said.usage is not None
    assert (said.usage.prompt_tokens, said.usage.completion_tokens) == (3 * 4 + len(QUESTION.split()), 5)
    assert said.model_extra is not None
    assert [e["start"] for e in said.model_extra["evidence"]] == [e.start for e in reply.evidence]
    assert service.client.good("GET", "/v1/sessions")["drawn_bytes"] == 0, "its session was closed"


def test_a_streamed_answer_is_the_whole_one_in_chunks(client: OpenAI, service: Service) -> None:
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": [picture_part(1), {"type": "text", "text": QUESTION}]}],
        "max_tokens": 7,
    }
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage == whole.usage
    assert service.client.good("GET", "/v1/sessions")["drawn_bytes"] == 0


def test_a_running_session_is_asked_by_its_id(client: OpenAI, service: Service) -> None:
    path = service.client.session()
    for i in range(13):
        service.client.put(path, i, float(i))
    own = service.client.good("POST", f"{path}/questions", {"question": QUESTION, "since": 9.0})
    said = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": QUESTION}],
        extra_body={"session": path.rpartition("/")[2], "since": 9.0},
    )
    assert said.choices[0].message.content == own["answer"]
    assert said.model_extra is not None and said.model_extra["evidence"] == own["evidence"]
    assert min(e["start"] for e in own["evidence"]) >= 9.0
    assert service.client.good("GET", path)["frames"] == 13, "it goes on"
    with pytest.raises(openai.BadRequestError, match="has its own frames"):
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": [picture_part(1), {"type": "text", "text": QUESTION}]}],  # type: ignore[list-item]
            extra_body={"session": path.rpartition("/")[2]},
        )
    service.client.good("DELETE", path)


def test_a_video_in_a_question_is_its_frames(make_video: MakeVideo) -> None:
    video = make_video(times=[i / 2 for i in range(20)])
    reply = alone((f.image, f.pts) for f in VideoSource(video, 1.0))
    with serving(media=video.parent) as service:
        for url in (data_url("video/mp4", video.read_bytes()), f"file://{video}"):
            part = {"type": "video_url", "video_url": {"url": url}}
            said = client_of(service).chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": [part, {"type": "text", "text": QUESTION}]}],  # type: ignore[list-item]
            )
            assert said.choices[0].message.content == reply.text
        assert service.sessions.budget.drawn_bytes == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/a.jpg"}}], "is not allowed"),
        ([{"type": "image_url", "image_url": {"url": "https://example.com/a.jpg"}}], "--allow-host"),
        ([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}], "--media FOLDER"),
        ([{"type": "image_url", "image_url": {"url": "/etc/passwd"}}], "expected data:"),
        ([{"type": "image_url", "image_url": {"url": "gopher://x"}}], "expected data:"),
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,#"}}], "no base64"),
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,YQ=="}}], "no JPEG, PNG"),
        ([{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,I0VYVE0zVQ=="}}], "no MP4"),
        ([{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAAAGZ0eXA="}}], "no frame"),
        ([{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}], "input_audio"),
        ([], "no text"),
        ("flurb", "unknown word"),
    ],
)
def test_what_cannot_be_looked_at_is_refused_and_nothing_is_opened_or_kept(
    client: OpenAI, service: Service, content: Any, said: str
) -> None:
    if content and isinstance(content, list):
        content = [*content, {"type": "text", "text": QUESTION}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": content}], stream=stream
            )
        assert said in refused.value.message
    assert service.sessions.budget.drawn_bytes == 0


def test_errors_are_those_that_the_client_knows(client: OpenAI, service: Service) -> None:
    messages: Any = [{"role": "user", "content": QUESTION}]
    with pytest.raises(openai.AuthenticationError):
        client_of(service, "another").models.list()
    with pytest.raises(openai.NotFoundError, match="this server has 'numpy'"):
        client.chat.completions.create(model="gpt-4", messages=messages)
    with pytest.raises(openai.NotFoundError, match="there is none"):
        client.chat.completions.create(model=MODEL, messages=messages, extra_body={"session": "none"})
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model=MODEL, messages=messages, temperature=-1)
    with pytest.raises(openai.BadRequestError, match="n: "):
        client.chat.completions.create(model=MODEL, messages=messages, n=2)
    with pytest.raises(openai.BadRequestError, match="expected 'user'"):
        client.chat.completions.create(model=MODEL, messages=[{"role": "assistant", "content": "ball"}])
    with pytest.raises(openai.InternalServerError) as spent:
        client.chat.completions.create(model=MODEL, messages=messages, extra_body={"memory": "1GiB"})
    assert (spent.value.status_code, spent.value.code) == (507, "budget_spent")


def test_an_answer_ends_before_what_stops_it_whole_and_streamed(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}]}
    text = client.chat.completions.create(**asked, max_tokens=9).choices[0].message.content or ""
    words = text.split()
    assert len(words) == 9
    stop = f" {words[1]}"
    for said in (stop, [stop], ["none of it", stop]):
        whole = client.chat.completions.create(**asked, max_tokens=9, stop=said)
        assert whole.choices[0].message.content == text.partition(stop)[0]
        assert whole.choices[0].finish_reason == "stop"
        chunks = list(client.chat.completions.create(**asked, max_tokens=9, stop=said, stream=True))
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == text.partition(stop)[0]
    for bad in ("", ["a"] * 5, "a" * 257):
        with pytest.raises(openai.BadRequestError, match="stop"):
            client.chat.completions.create(**asked, stop=bad)


@pytest.mark.parametrize(
    ("name", "value", "harmless"),
    [
        ("tools", [{"type": "function", "function": {"name": "f", "parameters": {}}}], []),
        ("response_format", {"type": "json_object"}, {"type": "text"}),
        ("logprobs", True, False),
        ("frequency_penalty", 0.5, 0.0),
        ("presence_penalty", -1, 0),
        ("logit_bias", {"5": 100}, {}),
        ("tool_choice", "required", "none"),
        ("modalities", ["text", "audio"], ["text"]),
    ],
)
def test_what_would_change_an_answer_and_cannot_is_refused_by_name(
    client: OpenAI, name: str, value: Any, harmless: Any
) -> None:
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 1,
    }
    with pytest.raises(openai.BadRequestError, match=f"{name}: answers are plain text"):
        client.chat.completions.create(**asked, extra_body={name: value})
    client.chat.completions.create(**asked, extra_body={name: harmless, "user": "u", "store": False})
    client.chat.completions.create(**asked, extra_body={name: None})


def test_an_assistant_that_said_nothing_is_part_of_a_conversation() -> None:
    messages = [
        {"role": "user", "content": "red ?"},
        {"role": "assistant", "content": None, "refusal": None},
        {"role": "user", "content": "and now ?"},
    ]
    chat = Chat.model_validate({"model": MODEL, "messages": messages})
    assert chat.question == "user: red ?\nassistant: \nand now ?" and not chat.media


def test_pictures_are_fetched_from_hosts_that_were_allowed_and_without_redirects() -> None:
    class Pictures(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302 if self.path == "/moved" else 200)
            self.send_header("Location", "/a.jpg")
            self.end_headers()
            self.wfile.write(jpeg(7))

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pictures) as host:
        threading.Thread(target=host.serve_forever, daemon=True).start()
        with serving(hosts=("127.0.0.1",)) as service:

            def ask(path: str) -> str | None:
                part = {
                    "type": "image_url",
                    "image_url": {"url": f"http://127.0.0.1:{host.server_port}{path}"},
                }
                content: Any = [part, {"type": "text", "text": QUESTION}]
                said = client_of(service).chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": content}]
                )
                return said.choices[0].message.content

            assert ask("/a.jpg") == alone([(as_rgb(jpeg(7)), 0.0)]).text
            with pytest.raises(openai.BadRequestError, match="answered 302"):
                ask("/moved")
        host.shutdown()


def test_curl_opens_feeds_asks_and_ends(service: Service, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{service.client.port}/v1/sessions"
    frame = tmp_path / "frame.jpg"
    frame.write_bytes(jpeg(1))

    def curl(*arguments: str) -> str:
        words = ["curl", "-sS", "--fail-with-body", "-H", f"Authorization: Bearer {TOKEN}", *arguments]
        return subprocess.run(words, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout

    name = json.loads(curl("-d", '{"memory": "1MiB"}', url))["id"]
    assert json.loads(curl("-T", str(frame), f"{url}/{name}/frames?pts=0.5"))["frames"] == 1
    asked = json.dumps({"question": QUESTION, "max_tokens": 3})
    whole = json.loads(curl("-d", asked, f"{url}/{name}/questions"))
    streamed = curl(
        "-N",
        "-d",
        json.dumps({"question": QUESTION, "max_tokens": 3, "stream": True}),
        f"{url}/{name}/questions",
    )
    assert whole["answer"] and streamed.rstrip().endswith("data: [DONE]")
    assert f'"answer": "{whole["answer"]}"' in streamed
    assert json.loads(curl("-X", "DELETE", f"{url}/{name}"))["deleted"] is True


class Thinker(GatedVlm):
    """Thinks, then answers: the n-th token is the n-th character."""

    SAYS = "<think>It is</think>red"

    def __init__(self) -> None:
        super().__init__()
        self._spec = replace(self._spec, thinking=Thinking("<think>", "</think>"))

    def detokenize(self, ids: Sequence[int]) -> str:
        return self.SAYS[: len(ids)]


def test_what_a_model_thought_is_no_part_of_its_answer_and_stands_beside_it() -> None:
    with serving(model=Thinker()) as service:
        messages = [{"role": "user", "content": QUESTION}]
        session = service.client.session().rpartition("/")[2]
        asked: Any = {"model": MODEL, "messages": messages, "max_tokens": len(Thinker.SAYS)}
        asked["extra_body"] = {"session": session}
        client = client_of(service)
        message = client.chat.completions.create(**asked).choices[0].message
        assert (message.content, message.reasoning_content) == ("red", "It is")  # type: ignore[attr-defined]
        chunks = [chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, stream=True)]
        assert "".join(chunk.content or "" for chunk in chunks) == "red"
        assert [getattr(chunk, "reasoning_content", None) for chunk in chunks][-1] == "It is"


class PausingThinker(Thinker):
    """Stands still after each token while it is told to."""

    pauses = False

    def forward(self, embeds: FloatArray, attend: Attend, want_logits: bool) -> FloatArray | None:
        made = super().forward(embeds, attend, want_logits)
        if self.pauses:
            self.gate.clear()
        return made


def test_a_stream_of_a_model_that_thinks_for_long_begins_at_once_and_is_never_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mosaic_edge.serve.responses.PING_SECONDS", 0.01)
    model = PausingThinker()
    with serving(model=model) as service:
        path = service.client.session()
        model.pauses = True
        asked = {"question": QUESTION, "stream": True, "max_tokens": len(Thinker.SAYS)}
        with service.client.open("POST", f"{path}/questions", asked) as response:
            assert response.status == 200
            assert json.loads(response.readline().removeprefix(b"data: ")) == {"text": ""}
            comments = 0
            while comments < 3:
                comments += response.readline().startswith(b":")
            model.pauses = False
            model.gate.set()
            *pieces, last = events_of(response)
    assert "".join(piece["text"] for piece in pieces) == last["answer"] == "red"
