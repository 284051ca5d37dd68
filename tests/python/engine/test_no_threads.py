"""A system that has no thread left is an error of the machine, by name, whoever needed it; nothing half built
is left."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mosaic_edge import AsyncSession, Engine, cli, stream_live
from mosaic_edge.cli import progress
from mosaic_edge.errors import DeviceError, NoThreadError
from mosaic_edge.models import sandbox, tokenizer
from mosaic_edge.models.onnx import trial
from mosaic_edge.serve.worker import Worker
from mosaic_edge.sources import Frame, LiveSource
from mosaic_edge.threads import started
from numpy_vlm import NumpyVlm, picture


@contextmanager
def threads_but(after: int = 0) -> Iterator[None]:
    """None starts, after so many more."""
    left = [after]
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        start(thread)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        yield


@pytest.fixture(autouse=True)
def _no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "limited", lambda *_: None)  # a child process a load, whose pipes are read


def session() -> Any:
    return Engine(NumpyVlm()).session(memory="1MiB", policy="window", kernel_threads=1)


def refused(call: Callable[[], object], after: int = 0) -> str:
    with threads_but(after), pytest.raises(NoThreadError) as error:
        call()
    text = str(error.value)
    assert "needs a thread of its own, and there is none (can't start new thread; Python has" in text
    assert "Raise the limit of threads" in text and "\n" not in text
    return text


def loads(monkeypatch: pytest.MonkeyPatch) -> int:
    """Threads that loading a model starts."""
    started = []
    start = threading.Thread.start
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda thread: (started.append(1), start(thread))[1])
        Engine.load("mosaic-tiny", threads=1)
    return len(started)


def test_a_model_whose_trial_finds_no_thread_is_not_said_to_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    there = loads(monkeypatch)
    assert there > 3, "parts of the decoder, two graphs, first runs"
    said = [refused(lambda: Engine.load("mosaic-tiny", threads=1), after) for after in range(there)]
    assert all(".onnx" in text and ": trying it under a limit of time needs" in text for text in said)


def test_a_thread_that_the_system_refuses_is_refused_by_that_name() -> None:
    before = threading.stack_size(1 << 46)  # more than there are addresses
    try:
        refused(lambda: started(threading.Thread(target=print), "a test"), 1)
    finally:
        threading.stack_size(before)


@pytest.mark.parametrize("said", ["std::bad_alloc", "Failed to allocate memory for requested buffer of 9"])
def test_a_model_for_which_there_is_no_memory_is_not_said_to_be_wrong(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any, **__: Any) -> None:
        raise RuntimeError(f"[ONNXRuntimeError] : 1 : FAIL : {said}")

    monkeypatch.setattr(trial.ort, "InferenceSession", none)
    with pytest.raises(
        MemoryError, match=rf"\.onnx .*no memory is left for it \(.*{said}\)\. Raise the limit"
    ):
        Engine.load("mosaic-tiny")


def test_the_command_line_says_it_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with threads_but():
        assert cli.main(["plan", "--memory", "1MiB"]) == 1
    assert capfd.readouterr().err.count("\n") == 1


def test_a_camera_and_a_session_of_the_server_are_refused_by_name() -> None:
    source = LiveSource("tcp://127.0.0.1:9")
    assert "tcp://127.0.0.1:9: reading it needs" in refused(lambda: list(source))
    assert "session x needs" in refused(lambda: Worker("session x"))


@pytest.mark.parametrize("after", [0, 1])
def test_a_stream_whose_socket_finds_no_thread_takes_no_frame_and_leaves_no_socket(
    tmp_path: Path, after: int
) -> None:
    class Frames:
        def __iter__(self) -> Iterator[Frame]:
            pytest.fail("it began")

        def close(self) -> None: ...

    with session() as opened:
        text = refused(lambda: stream_live(opened, Frames(), socket=tmp_path / "ask.sock"), after)
        assert "answering at a socket needs" in text
        opened.append(picture(0), 0.0)
    assert not list(tmp_path.iterdir())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("mosaic-socket")]


def test_a_frame_that_found_no_thread_under_asyncio_is_not_taken_later() -> None:
    async def tried() -> int:
        opened = session()
        with opened:
            with threads_but(), pytest.raises(NoThreadError, match="AsyncSession needs a thread"):
                await AsyncSession(opened).append(picture(0), 0.0)
            async with AsyncSession(opened) as again:
                await again.append(picture(1), 1.0)
                return (await again.memory())["frames"]

    assert asyncio.run(tried()) == 1


def test_a_fork_that_finds_no_thread_leaves_the_session_as_it_was() -> None:
    with session() as opened:
        opened.append(picture(0), 0.0)
        assert "a fork of a session needs" in refused(opened.fork)
        with opened.fork() as twin:
            assert twin.memory()["frames"] == 1


def test_a_model_for_whose_trial_there_is_no_process_is_not_said_to_be_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none(*_: Any, **__: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(sandbox.subprocess, "run", none)
    with pytest.raises(DeviceError, match=r"there: trying it needs a process of its own.*Raise the limit"):
        sandbox.limited("there", "tokenizer_loads", "x")


@pytest.mark.parametrize("enabled", [True, False])
def test_progress_that_finds_no_thread_is_not_drawn_and_ends_nothing(
    enabled: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress.DataConsole, "is_terminal", True)
    with threads_but(), progress.progress_bar(enabled) as bar:
        bar.update(bar.add_task("work", total=2), advance=1)
        assert bar.disable and not bar.live.is_started
    with threads_but(), session() as opened, progress.StreamView(opened, "camera", enabled) as view:
        before = capsys.readouterr().err
        opened.append(picture(0), 0.0)
        view.tick(0.0, 1)
    assert "camera" not in before + capsys.readouterr().err
