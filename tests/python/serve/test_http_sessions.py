"""Sessions over HTTP: what a client feeds and asks is what the same session in a program would say."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from http_service import PATIENCE, QUESTION, Service, jpeg, serving, until
from mosaic_edge.engine import Engine
from mosaic_edge.sampling import SamplingParams
from numpy_vlm import NumpyVlm, picture
from videos import MakeVideo


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serving() as opened:
        yield opened


def test_a_session_is_fed_asked_looked_at_and_ended(service: Service) -> None:
    client = service.client
    path = client.session(memory="1MiB")
    for i in range(13):
        assert client.put(path, i, 10.0 + i / 4) == {"object": "frame", "pts": 10.0 + i / 4, "frames": i + 1}
    said = client.good("POST", f"{path}/questions", {"question": QUESTION, "since": 11.0, "max_tokens": 3})
    # the oracle: the same session without a server between
    with Engine(NumpyVlm()).session(memory=768 << 10, policy="window", kernel_threads=1) as alone:
        for i in range(13):
            alone.append(picture(i), 10.0 + i / 4)
        reply = alone.ask(QUESTION, since=11.0, sampling=SamplingParams(max_tokens=3))
        account = alone.memory()
    assert (said["answer"], said["tokens"], said["finish"]) == (reply.text, 3, "length")
    assert [(e["start"], e["end"]) for e in said["evidence"]] == [(e.start, e.end) for e in reply.evidence]
    stats = client.good("GET", path)
    assert (stats["frames"], stats["questions"], stats["refused"]) == (13, 1, 0)
    assert (stats["first_seconds"], stats["last_seconds"]) == (10.0, 13.0)
    assert stats["newest_age_seconds"] >= 0
    assert (stats["taken_bytes"], stats["tiers"]) == (account["taken_bytes"], account["tiers"])
    assert stats["drawn_bytes"] == account["taken_bytes"] + (256 << 10), "with its thumbnails"
    assert stats["id"] in [one["id"] for one in client.good("GET", "/v1/sessions")["data"]]
    assert client.good("DELETE", path)["deleted"] is True
    for method, where in (("GET", path), ("DELETE", path), ("PUT", f"{path}/frames")):
        assert client.refused(404, method, where, b"")["code"] == "no_such_session"


def test_an_answer_that_is_streamed_is_the_whole_one_in_pieces(service: Service) -> None:
    path = service.client.session()
    for i in range(5):
        service.client.put(path, i, float(i))
    asked = {"question": QUESTION, "max_tokens": 7}
    whole = service.client.good("POST", f"{path}/questions", asked)
    *pieces, last = service.client.events(f"{path}/questions", {**asked, "stream": True})
    assert "".join(piece["text"] for piece in pieces) == last["answer"] == whole["answer"]
    assert len(pieces) == 7
    assert last["evidence"] == whole["evidence"]
    service.client.good("DELETE", path)


def test_encoded_and_raw_frames_are_the_picture_they_hold(service: Service) -> None:
    path = service.client.session()
    assert service.client.good("PUT", f"{path}/frames", jpeg(3))["frames"] == 1
    assert service.client.good("PUT", f"{path}/frames", png(5, 7))["frames"] == 2
    stats = service.client.good("GET", path)
    assert 0 <= stats["first_seconds"] <= stats["last_seconds"] < 600, "seconds since it was opened"
    with service.client.open("GET", f"{path}/picture") as newest:
        assert newest.headers["content-type"] == "image/jpeg" and newest.read(2) == b"\xff\xd8"
        assert float(newest.headers["x-frame-pts"]) == stats["last_seconds"]
    with service.client.open("GET", f"{path}/picture?at=-5") as first:
        assert float(first.headers["x-frame-pts"]) == stats["first_seconds"]
    service.client.good("DELETE", path)


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = zlib.compress((b"\0" + b"\x40\x80\xc0" * width) * min(height, 1000))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_a_frame_seen_now_keeps_its_place_when_the_time_of_day_is_set_to_another_year(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving() as service:
        path = service.client.session()

        def put(pts: float | None = None) -> float:
            query = "" if pts is None else f"?pts={pts}"
            return float(service.client.good("PUT", f"{path}/frames{query}", jpeg(3))["pts"])

        first, real = put(), time.time
        for years in (56, -20):  # a board that counts from 1970 is told what time it is
            monkeypatch.setattr(time, "time", lambda by=years: real() + by * 365 * 86400)
            second = put()
            assert first <= second < first + PATIENCE
            first = second
        far = put(2e6)
        assert far == 2e6 and far <= put() < far + PATIENCE, "it goes on from what was said last"


@pytest.mark.parametrize(
    ("query", "body", "said"),
    [
        ("", b"", "no JPEG, PNG, WebP or GIF"),
        ("", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no JPEG"),
        ("", b"#EXTM3U\nfile:///etc/passwd\n", "no JPEG"),
        ("", b"\xff\xd8\xff", "no JPEG"),
        ("", b"\xff\xd8\xff\xe0\0\x04ab" * 3, "no JPEG"),
        ("", png(50_000, 50_000), "expected 1 to 16777216"),
        ("", png(0, 5), "0 x 5 pixels"),
        ("", png(6, 5)[:60], "frame"),
        ("width=8&height=8", b"1234", "8 x 8 pixels of RGB are 192"),
        ("width=8", b"1" * 192, "raw pixels need width and height"),
        ("width=0&height=8", b"", "width"),
        ("width=x&height=8", b"", "width"),
        ("pts=nan&width=8&height=8", b"1" * 192, "pts"),
        ("pts=1e300&width=8&height=8", b"1" * 192, "pts"),
        ("pts=0.5&width=8&height=8", b"1" * 192, "before the last frame's"),
        ("color=red", b"", "color"),
    ],
)
def test_a_frame_that_is_none_is_refused_and_changes_nothing(
    service: Service, query: str, body: bytes, said: str
) -> None:
    path = service.client.session()
    service.client.put(path, 1, 1.0)
    before = service.client.good("GET", path)
    assert said in service.client.refused(400, "PUT", f"{path}/frames?{query}", body)["message"]
    after = service.client.good("GET", path)
    for name in ("frames", "tokens", "last_seconds"):
        assert after[name] == before[name]
    service.client.put(path, 2, 2.0)
    service.client.good("DELETE", path)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"question": "flurb"}, "unknown word 'flurb'"),
        ({"question": " "}, "no text"),
        ({"question": 3}, "question"),
        ({}, "question"),
        ({"question": QUESTION, "since": "then"}, "since"),
        ({"question": QUESTION, "max_tokens": 0}, "max_tokens"),
        ({"question": QUESTION, "temperature": -1}, "temperature"),
        ({"question": QUESTION, "special_tokens": True}, "special_tokens"),
        ({"question": "ball " * 4000}, "branch_tokens"),
        (b'{"question": "\\ud800"}', "JSON"),
        (b"\xff", "JSON"),
        (b"", "JSON"),
        (b"[" * 100_000, "JSON"),
    ],
)
def test_a_question_that_is_none_is_refused_and_the_next_is_answered(
    service: Service, body: Any, said: str
) -> None:
    path = service.client.session()
    for stream in (False, True):
        asked = {**body, "stream": stream} if isinstance(body, dict) else body
        assert said in service.client.refused(400, "POST", f"{path}/questions", asked)["message"]
    assert service.client.good("POST", f"{path}/questions", {"question": QUESTION, "max_tokens": 1})["answer"]
    service.client.good("DELETE", path)


@pytest.mark.parametrize(
    ("opening", "said"),
    [
        ({"trace": "/tmp/trace.json"}, "trace: a session is opened with"),
        ({"spill_dir": "/tmp"}, "spill_dir"),
        ({"disk": "much"}, "disk"),
        ({"backend": "cuda"}, "backend"),
        ({"faults": 1}, "faults"),
        ({"policy": "nope"}, 'policy="nope" is not known'),
        ({"policy": ["window"]}, "policy"),
        ({"memory": "1KiB"}, "needs at least"),
        ({"memory": 0}, "memory=0"),
        ({"memory": "lots"}, "memory='lots'"),
        ({"window_frames": 10**6}, "needs at least"),
        ({"fps": 0.0, "source": "x"}, "source"),
        ({"source": "/etc/passwd"}, "the server was started with these"),
        ({"source": "rtsp://camera/1"}, "the server was started with these"),
        ({"source": "/dev/video0"}, "the server was started with these"),
    ],
)
def test_a_session_that_cannot_be_is_refused_and_takes_nothing(
    service: Service, opening: dict[str, Any], said: str
) -> None:
    before = service.client.good("GET", "/v1/sessions")
    assert said in service.client.refused(400, "POST", "/v1/sessions", opening)["message"]
    assert service.client.good("GET", "/v1/sessions") == before


def test_a_body_that_is_too_long_is_refused_before_it_is_read(service: Service) -> None:
    path = service.client.session()
    body = b'{"question": "' + b"a" * (1 << 20) + b'"}'
    assert service.client.refused(413, "POST", f"{path}/questions", body)["code"] == "body_too_long"
    assert service.client.refused(413, "POST", "/v1/sessions", body)["code"] == "body_too_long"
    service.client.good("DELETE", path)


def test_a_source_feeds_a_session_as_append_video_would(make_video: MakeVideo) -> None:
    video = make_video(times=[i / 2 for i in range(20)])
    outside = video.parent.parent / "outside.mp4"
    outside.write_bytes(video.read_bytes())
    (video.parent / "link.mp4").symlink_to(outside)
    with serving(media=video.parent) as service:
        client = service.client
        for name in (
            "../outside.mp4",
            "link.mp4",
            str(outside),
            "gone.mp4",
            ".",
            "",
            "a\0b",
            "file:///etc/passwd",
        ):
            message = client.refused(400, "POST", "/v1/sessions", {"source": name})["message"]
            assert "no such file" in message or "was started with these" in message
        path = client.session(source=video.name, fps=1.0)
        until(lambda: not client.good("GET", path)["source"]["running"])
        stats = client.good("GET", path)
        said = client.good("POST", f"{path}/questions", {"question": QUESTION})
    with Engine(NumpyVlm()).session(memory=768 << 10, policy="window", kernel_threads=1) as alone:
        count = alone.append_video(video, fps=1.0)
        reply = alone.ask(QUESTION)
    assert (stats["frames"], stats["source"]["error"]) == (count, None)
    assert said["answer"] == reply.text


def test_a_source_that_breaks_off_is_told_and_the_session_goes_on(make_video: MakeVideo) -> None:
    whole = make_video(name="whole.mkv", times=[i / 2 for i in range(40)])
    cut = whole.parent / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (whole.parent / "none.ts").write_bytes(b"G" * 1000)
    with serving(media=whole.parent, sources={"door": str(cut)}) as service:
        assert service.client.good("GET", "/v1/sources") == {
            "object": "list", "data": [{"id": "door", "object": "source"}], "files": True,
        }  # fmt: skip
        assert (
            "none.ts" in service.client.refused(400, "POST", "/v1/sessions", {"source": "none.ts"})["message"]
        )
        path = service.client.session(source="door")
        until(lambda: not service.client.good("GET", path)["source"]["running"])
        assert "cut.mkv: read up to" in service.client.good("GET", path)["source"]["error"]
        service.client.put(path, 1, 100.0)
        assert service.client.good("POST", f"{path}/questions", {"question": QUESTION})["answer"]


def test_a_source_and_a_question_take_turns_however_long_either_is(make_video: MakeVideo) -> None:
    video = make_video(times=[i / 2 for i in range(60)])
    with serving(media=video.parent, thumbnails="64KiB") as service:
        path = service.client.session(source=video.name, fps=2.0)
        answers = [
            service.client.good("POST", f"{path}/questions", {"question": QUESTION, "max_tokens": 5})[
                "answer"
            ]
            for _ in range(7)
        ]
        assert all(answers)
        until(lambda: not service.client.good("GET", path)["source"]["running"])
        stats = service.client.good("GET", path)
        assert (stats["frames"], stats["questions"], stats["source"]["error"]) == (60, 7, None)


def test_a_session_that_keeps_all_is_full_and_can_still_be_asked(make_video: MakeVideo) -> None:
    video = make_video(times=[i / 2 for i in range(120)])
    with serving(media=video.parent, thumbnails="64KiB") as service:
        path = service.client.session(source=video.name, fps=2.0, policy="full", memory="256KiB")
        until(lambda: not service.client.good("GET", path)["source"]["running"])
        stats = service.client.good("GET", path)
        assert 0 < stats["frames"] < 120 and "full" in stats["source"]["error"]
        error = service.client.refused(507, "PUT", f"{path}/frames?pts=500", jpeg(1))
        assert error["code"] == "memory_cap"
        assert service.client.good("GET", path)["frames"] == stats["frames"]
        assert service.client.good("POST", f"{path}/questions", {"question": QUESTION})["answer"]


def test_the_path_of_a_file_cannot_be_told_from_that_of_none(tmp_path: Path) -> None:
    media = tmp_path / "media"
    media.mkdir()
    (tmp_path / "secret.mp4").write_bytes(b"1")
    with serving(media=media) as service:
        told = [
            service.client.refused(400, "POST", "/v1/sessions", {"source": name})["message"].replace(name, "")
            for name in ("../secret.mp4", "../nothing.mp4")
        ]
        assert told[0] == told[1]
