"""A server that finds no thread: no saved session is put aside for it, and nothing is left half open."""

from __future__ import annotations

import os
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from http_service import serving
from mosaic_edge.engine import Engine
from mosaic_edge.errors import DeviceError, MemoryCapError, NoMemoryError, NoThreadError
from mosaic_edge.serve import questions
from mosaic_edge.serve.served import ServedSession
from mosaic_edge.serve.sessions import ServeSettings, Sessions
from mosaic_edge.serve.state import StateFolder
from mosaic_edge.sources import VideoSource
from numpy_vlm import NumpyVlm
from videos import MakeVideo


@contextmanager
def no_thread_called(start_of_name: str) -> Iterator[None]:
    """None starts whose name begins so."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith(start_of_name):
            raise RuntimeError("can't start new thread")
        start(thread)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        yield


@contextmanager
def little_address_space() -> Iterator[None]:
    """For a few threads more, and not for a thousand."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (512 << 20), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def started_anew(state: StateFolder, **session: Any) -> Sessions:
    session = {"policy": "window", "kernel_threads": 1, **session}
    return Sessions(Engine(NumpyVlm()), ServeSettings("8MiB", session, state=state))


@pytest.fixture
def saved(tmp_path: Path) -> StateFolder:
    """Two sessions, saved."""
    folder = StateFolder(tmp_path, 3600)
    with serving(state=folder) as service:
        for number in range(2):
            service.client.put(service.client.session(memory="1MiB"), number, 0.0)
    assert len(folder.names()) == 2
    return folder


def same_there(folder: StateFolder, names: list[str]) -> None:
    """All the files, and a server that has all their sessions when it finds threads."""
    assert sorted(file.name for file in folder.path.iterdir()) == [f"{name}.session" for name in names]
    sessions = started_anew(folder)
    assert [(one.name, one.counts.frames) for one in sessions.all()] == [(name, 1) for name in names]
    sessions.stop()
    assert sessions.wait(600)


@pytest.mark.parametrize("which", [0, 1])
def test_a_start_that_finds_no_thread_for_a_saved_session_ends_and_leaves_all_files(
    saved: StateFolder, which: int
) -> None:
    names = saved.names()
    before = [saved.file(name).stat().st_mtime_ns for name in names]
    with (
        no_thread_called(f"session {names[which]}"),
        pytest.raises(NoThreadError, match=f"session {names[which]} needs a thread of its own"),
    ):
        started_anew(saved)
    assert [saved.file(name).stat().st_mtime_ns for name in names] == before
    same_there(saved, names)


def test_a_start_that_finds_no_thread_to_save_restores_nothing(
    saved: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = saved.names()
    with (
        monkeypatch.context() as patch,
        no_thread_called("mosaic-save"),
        pytest.raises(NoThreadError, match="saving sessions every so often needs a thread"),
    ):
        patch.setattr(StateFolder, "restore", lambda *_: pytest.fail("it began"))
        started_anew(saved)
    same_there(saved, names)


def test_a_start_whose_core_finds_no_threads_leaves_all_files(saved: StateFolder) -> None:
    names = saved.names()
    with (
        little_address_space(),
        pytest.raises(NoThreadError, match=r"kernel_threads=1000: only .* could start"),
    ):
        started_anew(saved, kernel_threads=1000)
    same_there(saved, names)


def restored_within(folder: StateFolder, limit: int, most: int) -> None:
    """By a server that ends, or has the session; the file stays in any case."""
    names, before = folder.names(), resource.getrlimit(limit)
    resource.setrlimit(limit, (most, before[1]))
    try:
        sessions = Sessions(Engine(NumpyVlm()), ServeSettings("24MiB", {}, disk="64MiB", state=folder))
    except (NoMemoryError, NoThreadError, MemoryError, OSError):
        sessions = None
    finally:
        resource.setrlimit(limit, before)
    assert [file.name for file in folder.path.iterdir()] == [f"{name}.session" for name in names]
    if sessions is not None:
        sessions.stop()
        assert sessions.wait(600)


@pytest.fixture
def spilling(tmp_path: Path) -> StateFolder:
    """A session with a disk, saved."""
    folder = StateFolder(tmp_path, 3600)
    sessions = Sessions(Engine(NumpyVlm()), ServeSettings("24MiB", {}, disk="64MiB", state=folder))
    sessions.open("2MiB", {"disk": "4MiB"})
    sessions.stop()
    assert sessions.wait(600) and len(folder.names()) == 1
    return folder


@pytest.mark.parametrize("left", range(4))
def test_a_session_stays_where_the_process_has_no_descriptors_for_it(
    spilling: StateFolder, left: int
) -> None:
    with ExitStack() as held:  # no gap below the highest
        highest = max(int(file.name) for file in Path("/proc/self/fd").iterdir())
        while held.enter_context(open(os.devnull)).fileno() < highest:  # noqa: PTH123
            pass
        restored_within(spilling, resource.RLIMIT_NOFILE, highest + 2 + left)


def test_a_session_stays_where_the_process_may_have_no_memory_for_it(spilling: StateFolder) -> None:
    (name,) = spilling.names()
    engine = Engine(NumpyVlm())

    def restored(_: Path) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (16 << 20), before[1]))
        try:
            engine.session(memory="64MiB", policy="window", kernel_threads=1).close()
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)

    with pytest.raises(NoMemoryError, match=r"the system gives none of the .* free \(.*ulimit -v"):
        spilling.restore(name, restored)
    assert spilling.names() == [name]


@pytest.mark.parametrize(
    "error",
    [
        DeviceError("2.0 GiB needed. Raise the limit of threads, or lower memory=."),
        MemoryCapError("9.0 MiB needed, 8.0 MiB cap. Raise memory=."),
    ],
    ids=["device", "cap"],
)
def test_a_session_that_a_device_or_its_cap_refuses_lies_aside_whatever_it_says(
    saved: StateFolder, error: Exception
) -> None:
    def refused(_: Path) -> None:
        raise error

    name = saved.names()[0]
    assert saved.restore(name, refused) is None
    assert saved.file(name).with_name(f"{name}.session.refused-1").exists()


def test_a_source_that_finds_no_thread_is_closed_and_so_is_the_session_it_was_for(
    make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[VideoSource] = []
    close = VideoSource.close
    monkeypatch.setattr(VideoSource, "close", lambda source: (closed.append(source), close(source)))
    video = make_video(times=[0.0, 1.0])
    with serving(media=video.parent) as service:
        with no_thread_called("mosaic-feed"):
            said = service.client.refused(503, "POST", "/v1/sessions", {"source": video.name})
        assert "needs a thread of its own" in said["message"] and said["code"] == "device"
        assert len(closed) == 1
        assert service.sessions.all() == [] and service.sessions.budget.drawn_bytes == 0
        assert service.client.session(source=video.name)


def test_a_session_that_was_not_fed_has_no_source() -> None:
    class Source:
        def close(self) -> None: ...

    with serving() as service:
        path = service.client.session()
        served: ServedSession = service.sessions.get(path.rpartition("/")[2])
        with no_thread_called("mosaic-feed"), pytest.raises(NoThreadError, match="source 'door' needs"):
            served.feed("door", Source())  # type: ignore[arg-type]
        assert service.client.good("GET", path)["source"] is None


def test_a_socket_that_finds_no_thread_leaves_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs: list[socket.socket] = []
    pair = socket.socketpair

    def noted() -> tuple[socket.socket, socket.socket]:
        pairs.extend(two := pair())
        return two

    with Engine(NumpyVlm()).session(memory="1MiB", kernel_threads=1) as session:
        monkeypatch.setattr(questions.socket, "socketpair", noted)
        with (
            no_thread_called("mosaic-socket"),
            pytest.raises(NoThreadError, match="answering at a socket needs"),
            questions.answering(session, tmp_path / "ask.sock"),
        ):
            pytest.fail("it began")
    assert [end.fileno() for end in pairs] == [-1, -1]
