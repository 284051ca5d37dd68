"""What a server holds does not grow with what it has done. Bytes that Python traces and those that C has in
use are counted, not the process's size, which depends on allocators and on the machine."""

from __future__ import annotations

import ctypes
import gc
import io
import json
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from urllib.parse import urlsplit

import pytest
from websockets.sync.client import connect

from http_service import QUESTION, TOKEN, Service, jpeg, serving
from mosaic_edge.pictures import as_rgb
from mosaic_edge.serve.history import MOST, History
from mosaic_edge.serve.media import MOST_URL
from mosaic_edge.sources import VideoSource
from videos import MakeVideo


def traced() -> int:
    urlsplit.cache_clear()  # the client of a WebSocket takes its address apart too
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


class _Mallinfo(ctypes.Structure):
    """Of the GNU C library: how many bytes are in use stands in `uordblks` and, where mapped, `hblkhd`."""

    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]


def allocated() -> int:
    """Bytes that C's malloc has given out, what threads keep of their own for the next call among them."""
    gc.collect()
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _Mallinfo
    said = mallinfo()
    return int(said.uordblks + said.hblkhd)


glibc = pytest.mark.skipif(
    not (sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallinfo2")),
    reason="waits for a C library that counts (glibc 2.33)",
)


def growth(work: Callable[[], object], times: int) -> float:
    """Bytes of C that each call leaves behind: the least of three measurements. What is made once is in one
    of them."""
    made = []
    for _ in range(3):
        before = allocated()
        for _ in range(times):
            work()
        made.append((allocated() - before) / times)
    return min(made)


@contextmanager
def tracing() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def test_a_history_takes_no_more_when_it_is_full_than_after_its_first_sample(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [100.0]
    monkeypatch.setattr("mosaic_edge.serve.history.time.monotonic", lambda: clock[0])
    account = {"tiers": [{"used_bytes": 1 << 30}, {"used_bytes": 1 << 31}]}
    history = History()
    with tracing():
        history.note(account)
        first = traced()
        for _ in range(3 * MOST):
            clock[0] += 1.0
            history.note(account)
        last = traced()
    assert last - first < 2048


@glibc
def test_a_picture_that_is_decoded_leaves_nothing_behind() -> None:
    picture = jpeg(5)
    assert growth(lambda: as_rgb(picture), 200) < 40
    assert growth(lambda: as_rgb(io.BytesIO(picture)), 200) < 40


@glibc
def test_a_video_that_is_left_in_the_middle_leaves_nothing_behind(make_video: MakeVideo) -> None:
    video = make_video(times=[i / 2 for i in range(10)])

    def left() -> None:
        source = VideoSource(video)
        assert len(list(islice(source, 3))) == 3
        source.close()

    assert growth(left, 60) < 80


def round_of_requests(service: Service) -> None:
    """A session that comes, is fed and asked, and goes."""
    client = service.client
    path = client.session(memory="1MiB")
    for pts in range(12):
        client.good("PUT", f"{path}/frames?pts={pts}", jpeg(pts))
    url = f"ws://127.0.0.1:{client.port}{path}/frames"
    with connect(url, additional_headers={"Authorization": f"Bearer {TOKEN}"}) as socket:
        for pts in range(12, 16):
            socket.send(json.dumps({"pts": float(pts)}))
            socket.send(jpeg(pts))
            socket.recv(60)
    client.good("POST", f"{path}/questions", {"question": QUESTION, "max_tokens": 2})
    client.good("DELETE", path)
    client.refused(404, "GET", f"{path}/nowhere")
    client.metrics()


@glibc
def test_a_server_holds_no_more_after_many_rounds_of_requests() -> None:
    with serving() as service:

        def rounds(times: int) -> None:
            for _ in range(times):
                round_of_requests(service)

        rounds(3)
        with tracing():
            rounds(3)
            before = traced()
            rounds(8)
            of_python = (traced() - before) / 8
        of_c = growth(lambda: rounds(1), 7)
    # Less than a session that stays, and than what sixteen pictures left behind: what server and client have
    # in work at either end of the rounds is in it, and what their threads keep for their next call.
    assert of_python < 4000 and of_c < 1800, (of_python, of_c)


def test_paths_that_clients_make_up_are_not_kept() -> None:
    with serving() as service:
        before = urlsplit.cache_info().misses
        for number in range(5):
            error = service.client.refused(404, "GET", f"/nowhere/{number}?a=b")
            assert f"GET /nowhere/{number}: " in error["message"]
        assert urlsplit.cache_info().misses == before


def test_an_address_of_a_picture_that_is_long_is_refused_and_not_kept() -> None:
    with serving(hosts=["127.0.0.1"]) as service:
        for number in range(3):
            url = f"http://127.0.0.1:9/{number}".ljust(MOST_URL + 1, "x")
            parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
            asked = {"model": "numpy", "messages": [{"role": "user", "content": parts}]}
            error = service.client.refused(400, "POST", "/v1/chat/completions", asked)
            assert f"at most {MOST_URL} letters, got {MOST_URL + 1}" in error["message"]
