"""Whatever a body, a query or a message holds: one answer, in one shape, never a failure of the server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from http_service import QUESTION, Service, data_url, jpeg, serving
from numpy_vlm import NumpyVlm

MODEL = NumpyVlm().spec.name
FEW = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
    st.sampled_from(["1MiB", "-1", "nan", QUESTION, "../x", "data:image/png;base64,", "http://[", "\0"]),
    st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)  # fmt: skip
SESSION_FIELDS = (
    "memory", "source", "fps", "policy", "policy_settings", "exact", "window_codec", "packed",
    "window_frames", "branch_tokens", "retrieve_tokens", "clusters", "scenes", "exact_share",
    "positions", "skip_alike", "summaries", "overflow", "disk",
)  # fmt: skip
ASKED_FIELDS = ("question", "since", "dialogue", "max_tokens", "temperature", "top_k", "top_p", "seed")
CHAT_FIELDS = ("messages", "model", "max_completion_tokens", "n", "session", "memory", "fps", "since")


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serving(memory="64MiB") as opened:
        yield opened


def fields(names: tuple[str, ...]) -> Any:
    return st.dictionaries(st.sampled_from(names), ODD, max_size=3)


def answered(service: Service, method: str, path: str, body: Any) -> tuple[int, dict[str, Any]]:
    """Status and document: good, or of an error that is told."""
    data = json.dumps(body).encode() if not isinstance(body, bytes) else body
    status, document = service.client.call(method, path, data)
    assert status in (200, 201) or (400 <= status < 500 or status == 507), document
    assert (status < 300) != ("error" in document)
    return status, document


@FEW
@given(opening=fields(SESSION_FIELDS))
@example(opening={"policy": {"a": 1}})
@example(opening={"policy_settings": {"share": {"a": 1}}})
@example(opening={"memory": True})
def test_of_any_session_that_is_opened(service: Service, opening: dict[str, Any]) -> None:
    status, document = answered(service, "POST", "/v1/sessions", opening)
    if status == 201:
        service.client.good("DELETE", f"/v1/sessions/{document['id']}")
    assert service.sessions.budget.drawn_bytes == 0


@FEW
@given(asked=fields(ASKED_FIELDS), raw=st.binary(max_size=30))
@example(asked={"since": 1e300}, raw=b"")
@example(asked={"since": -1e300}, raw=b"NaN")
@example(asked={"seed": 1 << 80}, raw=b'{"question": NaN}')
def test_of_any_question(service: Service, asked: dict[str, Any], raw: bytes) -> None:
    path = service.client.session()
    service.client.put(path, 1, 1.0)
    answered(service, "POST", f"{path}/questions", {"question": QUESTION, **asked})
    answered(service, "POST", f"{path}/questions", raw)
    assert service.client.good("POST", f"{path}/questions", {"question": QUESTION, "max_tokens": 1})
    service.client.good("DELETE", path)


@FEW
@given(pts=ODD, width=ODD, head=st.sampled_from([b"", jpeg(1)[:100], b"\x89PNG\r\n\x1a\n", b"GIF89a"]),
       tail=st.binary(max_size=40))  # fmt: skip
def test_of_any_frame(service: Service, pts: Any, width: Any, head: bytes, tail: bytes) -> None:
    path = service.client.session()
    query = f"pts={quote(str(pts), errors='replace')}&width={quote(str(width), errors='replace')}&height=4"
    answered(service, "PUT", f"{path}/frames?{query}", head + tail)
    answered(service, "PUT", f"{path}/frames", head + tail)
    service.client.put(path, 1, 2e11)
    service.client.good("DELETE", path)


@FEW
@given(
    asked=fields(CHAT_FIELDS),
    url=st.one_of(ODD, st.binary(max_size=60)),
    kind=st.sampled_from(["image_url", "video_url"]),
)
@example(asked={"fps": float("inf")}, url=jpeg(1), kind="image_url")
@example(asked={"fps": -1}, url=jpeg(1), kind="image_url")
def test_of_any_chat(service: Service, asked: dict[str, Any], url: Any, kind: str) -> None:
    where = data_url("image/jpeg", url) if isinstance(url, bytes) else url
    parts = [{"type": kind, kind: {"url": where}}, {"type": "text", "text": QUESTION}]
    body = {"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": parts}], **asked}
    answered(service, "POST", "/v1/chat/completions", body)
    assert service.sessions.budget.drawn_bytes == 0
