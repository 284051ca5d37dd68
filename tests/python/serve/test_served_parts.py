"""Parts of the server that stand alone: turns, thumbnails inside their quota, sizes read from headers."""

from __future__ import annotations

import asyncio
import http.client
import io
import socket
import ssl
import struct
import threading
import time
from contextlib import suppress
from typing import Any

import h11
import numpy as np
import pytest
from PIL import Image

import mosaic_edge.serve.turns as turns_module
from http_service import PATIENCE, until
from mosaic_edge.pictures import as_rgb
from mosaic_edge.serve import media
from mosaic_edge.serve.app import _Heard, _Told
from mosaic_edge.serve.errors import MOST_CHARACTERS, RefusedError
from mosaic_edge.serve.history import MOST, History
from mosaic_edge.serve.picture_size import MOST_PIXELS, check_picture
from mosaic_edge.serve.thumbnails import Thumbnails, as_jpeg
from mosaic_edge.serve.turns import Turns
from mosaic_edge.serve.worker import BusyError, Worker


def test_turns_are_taken_in_the_order_they_were_asked_for() -> None:
    turns, order = Turns(), []

    def take(number: int) -> None:
        with turns:
            order.append(number)

    threads = [threading.Thread(target=take, args=(i,)) for i in range(13)]
    with turns:
        for number, thread in enumerate(threads, 1):
            thread.start()
            until(lambda number=number: len(turns._waiting) == number)
        assert order == []
    for thread in threads:
        thread.join()
    assert order == list(range(13))
    with pytest.raises(ZeroDivisionError), turns:
        raise ZeroDivisionError
    take(13)
    assert order[-1] == 13, "a turn that failed is over"


def test_a_turn_knows_for_how_long_it_got_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(turns_module.time, "monotonic", lambda: now[0])
    turns = Turns()
    assert turns.still == 0.0, "nobody has it"
    with turns:
        now[0] = 130.0
        assert turns.still == 30.0
        turns.move()
        assert turns.still == 0.0
    now[0] = 200.0
    assert turns.still == 0.0


@pytest.mark.parametrize("quota", [0, 3000, 60_000])
def test_thumbnails_stay_inside_their_quota_and_spread_over_the_stream(quota: int) -> None:
    kept, random = Thumbnails(quota), np.random.default_rng(7)
    for i in range(60):
        wide, high = random.integers(1, 200, 2)
        kept.add(random.integers(0, 255, (high, wide, 3), dtype=np.uint8), float(i))
        assert kept.used_bytes <= quota
    if quota < 60_000:
        return
    found = [kept.nearest(at) for at in (-1.0, 30.0, 59.0, 1e9)]
    times = [one[0] for one in found if one is not None]
    assert len(times) == 4 and times[0] == 0.0 and times[2] == times[3]
    assert abs(times[1] - 30) <= 60 / 4 and times[2] > 60 / 2


def test_a_thumbnail_is_the_frame_made_small() -> None:
    image = np.zeros((120, 320, 3), np.uint8)
    image[:, 160:] = (200, 40, 90)
    kept = Thumbnails(100_000)
    kept.add(image, 5.0)
    newest, small = kept.newest(), kept.nearest(0.0)
    assert newest is not None and small is not None and newest[0] == small[0] == 5.0
    assert as_rgb(newest[1]).shape == (120, 320, 3)
    shown = as_rgb(small[1])
    assert shown.shape == (60, 160, 3)
    assert np.abs(shown[:, 100:].mean((0, 1)) - (200, 40, 90)).max() < 12
    assert shown[:, :60].mean() < 12


def test_sizes_are_read_from_the_headers_of_every_kind() -> None:
    wide, high = 5000, 7000
    vp8x = (
        b"RIFF\0\0\0\0WEBPVP8X"
        + bytes(8)
        + (wide - 1).to_bytes(3, "little")
        + (high - 1).to_bytes(3, "little")
    )
    vp8 = b"RIFF\0\0\0\0WEBPVP8 " + bytes(10) + struct.pack("<HH", wide, high)
    vp8l = b"RIFF\0\0\0\0WEBPVP8L" + bytes(5) + struct.pack("<I", (wide - 1) | (high - 1) << 14)
    gif = b"GIF89a" + struct.pack("<HH", wide, high)
    jpeg = bytearray(as_jpeg(np.zeros((8, 8, 3), np.uint8), 8))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", high, wide)
    assert wide * high > MOST_PIXELS
    for data in (vp8x, vp8, vp8l, gif, bytes(jpeg)):
        with pytest.raises(ValueError, match="5000 x 7000 pixels"):
            check_picture(data)
        for length in range(len(data) if len(data) < 40 else 30):
            with pytest.raises(ValueError):  # and no other error, wherever it is cut
                check_picture(data[:length])


@pytest.mark.parametrize(
    "before", [b"", b"EXIF\3\0\0\0abc\0", b"ANMF\0\0\0\0" + bytes(16)], ids=["", "more", "animated"]
)
@pytest.mark.parametrize("lossless", [False, True])
def test_the_picture_in_a_canvas_that_says_it_is_small_is_refused_by_its_own_size(
    before: bytes, lossless: bool
) -> None:
    held = io.BytesIO()
    Image.new("RGB", (4200, 4100)).save(held, "WEBP", lossless=lossless, quality=1)
    picture = held.getvalue()[12:]
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(10)  # 1 x 1
    body = b"WEBP" + canvas + before + picture
    with pytest.raises(ValueError, match="4200 x 4100 pixels"):
        check_picture(b"RIFF" + struct.pack("<I", len(body)) + body)


def test_a_webp_of_more_parts_than_any_has_is_refused() -> None:
    with pytest.raises(ValueError, match="no JPEG"):
        check_picture(b"RIFF\0\0\0\0WEBP" + b"EXIF\0\0\0\0" * 5000)


def test_a_history_keeps_its_beginning_and_its_end_in_so_many_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [100.0]
    monkeypatch.setattr("mosaic_edge.serve.history.time.monotonic", lambda: clock[0])
    kept = History(step=1.0)
    for i in range(2400):
        clock[0] = 100.0 + i / 2
        kept.note({"tiers": [{"used_bytes": i}, {"used_bytes": 2 * i}]})
        assert len(kept.samples()) <= MOST
    samples = kept.samples()
    assert samples[0] == {"seconds": 0.0, "used_bytes": [0, 0]}
    assert all(s["used_bytes"] == [2 * s["seconds"], 4 * s["seconds"]] for s in samples)
    gaps = np.diff([s["seconds"] for s in samples])
    assert gaps.min() >= 1 and gaps.max() <= 2 * gaps.min() and samples[-1]["seconds"] > 1190


def test_a_worker_makes_calls_in_order_and_none_after_its_last() -> None:
    worker, made = Worker("w"), []
    futures = [worker.submit(lambda i=i: made.append(i)) for i in range(7)]
    failing = worker.submit(lambda: 1 / 0)
    last = worker.end(lambda: made.append("last"))
    last.result()
    assert made == [*range(7), "last"]
    assert all(future.done() for future in futures)
    assert isinstance(failing.exception(), ZeroDivisionError)
    with pytest.raises(BusyError, match="being closed"):
        worker.submit(lambda: None)


def test_what_an_error_repeats_of_a_request_is_short_and_one_line() -> None:
    said = RefusedError(400, f"memory='{'a' * 5000}':\nexpected bytes", "invalid_value").message
    assert said.startswith("memory='aaa") and said.endswith("aaa': expected bytes")
    assert len(said) <= MOST_CHARACTERS + 5
    assert RefusedError(400, "a" * MOST_CHARACTERS, "invalid_value").message == "a" * MOST_CHARACTERS


def test_an_answer_to_a_client_whose_body_broke_the_protocol_is_nobodys_failure() -> None:
    left = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise AssertionError("it was not sent")

    async def receive() -> dict[str, str]:
        left.set()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise h11.LocalProtocolError("can't handle event type Response when state=MUST_CLOSE")

    asyncio.run(_Heard(_Told(app))({"type": "http"}, receive, send))
    assert left.is_set(), "it waits for the end of the connection, which uvicorn has begun"


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (b"HTTP/1.1 200 OK\r\nX: ", b"y"),
        (b"HTTP/1.1 2", b"0"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"z"),
    ],
    ids=["headers", "status", "chunks", "body"],
)
def test_a_host_that_trickles_is_cut_off_wherever_it_does(
    head: bytes, drop: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media, "FETCH_SECONDS", 0.5)
    kind = http.client.HTTPConnection  # whose own patience must not end first, where the machine stands still
    monkeypatch.setattr(http.client, "HTTPConnection", lambda *where, timeout: kind(*where, timeout=PATIENCE))

    def trickle(listener: socket.socket) -> None:
        with suppress(OSError), listener.accept()[0] as peer:
            peer.sendall(head)
            due = time.monotonic() + PATIENCE
            while time.monotonic() < due:  # until it is cut off
                peer.sendall(drop)
                time.sleep(0.01)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = threading.Thread(target=trickle, args=[listener])
        host.start()
        with pytest.raises(ValueError, match=r"image_url: 127\.0\.0\.1 took longer than 0\.5 s"):
            media.Media(None, {}, ["127.0.0.1"]).picture(
                f"http://127.0.0.1:{listener.getsockname()[1]}/a.png"
            )
        host.join()
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


def anonymous(protocol: int) -> ssl.SSLContext:
    """TLS without certificates."""
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AECDH-AES256-SHA:@SECLEVEL=0")
    return context


def test_who_reads_through_tls_when_it_is_cut_off_hears_of_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "FETCH_SECONDS", 0.01)
    ours, theirs = socket.socketpair()

    def host() -> None:
        tls = anonymous(ssl.PROTOCOL_TLS_SERVER).wrap_socket(theirs, server_side=True)
        with suppress(OSError), tls as peer:
            peer.recv(1)

    there = threading.Thread(target=host)
    there.start()
    late = threading.Event()
    with anonymous(ssl.PROTOCOL_TLS_CLIENT).wrap_socket(ours) as connection, media._cut(connection, late):
        there.join()  # it heard of the end
        assert late.is_set()
        with suppress(OSError):  # and no ValueError: there is no TLS any more
            assert connection.read(1) == b""
