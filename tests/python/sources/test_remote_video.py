"""A video that a server sends, or a pipe, is read in a thread: whatever happens there, Ctrl-C and close() are
heard, and what is read is what the file has."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fake_camera import camera
from mosaic_edge.sources import FrameSource, SourceError, ahead, open_source
from numbered import number_of, write_numbered


@pytest.fixture(autouse=True)
def _none_is_left() -> Iterator[None]:
    yield
    for thread in threads():
        thread.join(60)
        assert not thread.is_alive()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == ahead.THREAD]


@contextmanager
def silent() -> Iterator[str]:
    """A server that takes connections and says nothing until it is left."""
    with socket.create_server(("127.0.0.1", 0), backlog=8) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/list.m3u8"


@contextmanager
def served(folder: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def interrupted(call: Callable[[], object]) -> None:
    """Once there is a thread that FFmpeg waits in, and has had time to."""
    over = threading.Event()

    def interrupt() -> None:
        while not threads() and not over.wait(0.05):
            pass
        if not over.wait(0.5):
            os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Thread(target=interrupt)
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            call()
    finally:
        over.set()
        timer.join()


def test_an_interrupt_is_heard_while_a_server_says_nothing() -> None:
    with silent() as url:
        interrupted(lambda: open_source(url))
        assert threads(), "FFmpeg waits still"


@pytest.mark.parametrize("writer", [True, False])
def test_an_interrupt_is_heard_at_a_pipe_that_nobody_writes_to(tmp_path: Path, writer: bool) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    ends = [os.open(path, os.O_RDWR)] if writer else []
    try:
        interrupted(lambda: open_source(path))
        assert threads(), "FFmpeg waits still"
    finally:
        ends = ends or [os.open(path, os.O_RDWR)]
        os.write(ends[0], bytes(1 << 16))
        os.close(ends[0])


def read_all(source: FrameSource) -> list[int]:
    return [number_of(frame.image) for frame in source]


def test_an_interrupt_and_close_are_heard_while_a_server_stalls() -> None:
    with camera("tcp", [[{"frames": 50, "fps": 0}, {"stall": 600}]]) as url:
        source = open_source(url, 25.0)
        interrupted(lambda: read_all(source))
        assert threads(), "FFmpeg waits still"
        source.close()


def test_close_from_another_thread_ends_the_iteration_while_a_server_stalls() -> None:
    with camera("tcp", [[{"frames": 50, "fps": 0}, {"stall": 600}]]) as url:
        source = open_source(url, 25.0)
        timer = threading.Timer(1.0, source.close)
        timer.start()
        numbers = read_all(source)
        assert numbers and numbers == list(range(len(numbers)))
        timer.join()
        assert threads(), "FFmpeg waits still"


def test_what_nobody_reads_any_more_ends_though_its_next_frame_is_far_off() -> None:
    """Of a camera that sends on and on, at a frame in 1,000 seconds."""
    with camera("tcp", [[{"frames": 100_000, "fps": 100}]]) as url:
        source = open_source(url, 0.001)
        frames = iter(source)
        next(frames)
        source.close()
        for thread in threads():
            thread.join(20)
        assert not threads()


@pytest.mark.parametrize("fps", [None, 3.0])
def test_what_a_server_sends_is_what_the_file_has_as_often_as_it_is_read(
    tmp_path: Path, fps: float | None
) -> None:
    path = write_numbered(tmp_path / "a.mp4", [k / 25 for k in range(60)])

    def said(source: Any) -> Any:
        facts = source.rate, source.first, source.duration
        return facts, [(number_of(f.image), f.pts, f.index) for f in source]

    with served(tmp_path) as url, closing(open_source(path, fps)) as file:
        expected = said(file)
        remote = open_source(f"{url}/{path.name}", fps)
        assert said(remote) == expected == said(remote)
        window = [(f.pts, number_of(f.image)) for f in open_source(f"{url}/{path.name}", fps, 0.5, 1.5)]
        assert window == [(f.pts, number_of(f.image)) for f in open_source(path, fps, 0.5, 1.5)]


def test_a_reader_that_leaves_early_closes_what_it_read(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.mp4", [k / 25 for k in range(60)])
    with served(tmp_path) as url:
        source = open_source(f"{url}/{path.name}")
        frames = iter(source)
        assert [number_of(next(frames).image) for _ in range(3)] == [0, 1, 2]
        frames.close()  # type: ignore[attr-defined]
        for thread in threads():
            thread.join(60)
        assert not threads()
        assert len(list(source)) == 60
        open_source(f"{url}/{path.name}").close()  # unread


def test_what_breaks_off_is_said_with_what_was_reached(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.mp4", [k / 25 for k in range(100)], movflags="faststart")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (tmp_path / "none.mp4").write_bytes(b"no video at all")

    def cause(where: Any) -> str:
        with pytest.raises(SourceError) as error:
            list(open_source(where))
        return str(error.value).removeprefix(str(where))

    with served(tmp_path) as url:
        for name in ("a.mp4", "none.mp4"):
            assert cause(f"{url}/{name}") == cause(tmp_path / name)
