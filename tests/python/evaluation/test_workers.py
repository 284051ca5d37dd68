"""Processes of an evaluation end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.context import SpawnProcess
from pathlib import Path

import psutil
import pytest

from mosaic_edge import cli
from mosaic_edge.errors import DeviceError
from mosaic_edge.evaluation.workers import workers

PROGRAM = """
import sys, psutil
from mosaic_edge.evaluation.workers import workers

DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
WORK = DEAF + "import pathlib, time; pathlib.Path({!r}).touch(); time.sleep(3600)"
def at_work():
    return [child for child in psutil.Process().children() if "spawn_main" in str(child.cmdline())]

tasks = {name: (exec, WORK.format(f"{sys.argv[1]}/{name}")) for name in "ab"}
try:
    with workers(3, print) as run:  # one has nothing to do
        list(run(tasks))
except KeyboardInterrupt:
    print("interrupted", len(at_work()))
"""


@contextmanager
def at_work(
    folder: Path, source: str = PROGRAM
) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """A program and its processes, two of which do something that takes an hour."""
    words = [sys.executable, "-c", source, str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as program:
        children: list[psutil.Process] = []
        try:
            while len(list(folder.iterdir())) < 2:
                assert program.poll() is None, program.stderr.read()  # type: ignore[union-attr]
                time.sleep(0.01)
            children = psutil.Process(program.pid).children(recursive=True)
            yield program, children
        finally:
            program.kill()
            for child in children:
                if child.is_running():
                    child.kill()


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["the program", "all"])
def test_an_interrupt_ends_them_and_only_who_began_them_speaks_of_it(send: object, tmp_path: Path) -> None:
    with at_work(tmp_path) as (program, children):
        send(program.pid, signal.SIGINT)  # type: ignore[operator]
        out, err = program.communicate(timeout=60)
        assert (out.split(), err) == (["interrupted", "0"], "")
        assert not psutil.wait_procs(children, timeout=60)[1]


def test_they_end_when_who_began_them_is_killed(tmp_path: Path) -> None:
    with at_work(tmp_path) as (program, children):
        program.kill()
        assert not psutil.wait_procs(children, timeout=60)[1]


def test_they_hear_nothing_of_what_ends_a_command_themselves() -> None:
    blocked = signal.pthread_sigmask, signal.SIG_BLOCK, []
    ends = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    with workers(1, print) as run:
        assert ends <= dict(run({"theirs": blocked}))["theirs"]
    assert not ends & blocked[0](*blocked[1:])


def test_a_line_that_breaks_off_within_a_result_keeps_no_interrupt(tmp_path: Path) -> None:
    """Who began them waits for the rest of it: ended by Ctrl-C, as anywhere."""
    half = "os.write(line.fileno(), (99).to_bytes(4, 'big')); "
    found = "import os, sys; f = sys._getframe().f_back\nline = f.f_locals['line']; " + half
    program = PROGRAM.replace('"import pathlib', repr(found) + ' + "import pathlib')
    with at_work(tmp_path, program) as (began, children):
        os.kill(began.pid, signal.SIGINT)
        out, err = began.communicate(timeout=60)
        assert (out.split(), err) == (["interrupted", "0"], "")
        assert not psutil.wait_procs(children, timeout=60)[1]


def test_who_blocked_nothing_blocks_nothing_when_a_handler_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = signal.pthread_sigmask

    def interrupted(how: int, signals: object) -> object:
        before = mask(how, signals)  # type: ignore[arg-type]
        if how == signal.SIG_BLOCK and signals:
            raise KeyboardInterrupt
        return before

    with pytest.raises(KeyboardInterrupt), workers(1, print) as run:
        monkeypatch.setattr(signal, "pthread_sigmask", interrupted)
        list(run({"a": (abs, 1)}))
    assert signal.SIGINT not in mask(signal.SIG_BLOCK, [])


def test_processes_of_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    with pytest.raises(KeyboardInterrupt), workers(1, print) as run:
        list(run({"a": (abs, 1)}))
        other = SpawnProcess(target=signal.pause)
        other.start()
        monkeypatch.setattr(other, "terminate", lambda: ended.append("terminated"), raising=False)
        monkeypatch.setattr(other, "kill", lambda: ended.append("killed"), raising=False)
        raise KeyboardInterrupt
    monkeypatch.undo()
    other.kill()
    other.join()
    assert not ended


def refused(jobs: int, tasks: dict[str, object], start: object = print) -> str:
    with pytest.raises(DeviceError) as error, workers(jobs, start) as run:  # type: ignore[arg-type]
        list(run(tasks))
    assert "\n" not in str(error.value)
    return str(error.value)


def no_process(process: SpawnProcess) -> None:
    raise BlockingIOError(11, "Resource temporarily unavailable")


def test_where_there_is_no_process_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SpawnProcess, "start", no_process)
    text = refused(3, {"a": (abs, 1)})
    assert text.startswith(
        "eval needs a process for each of its 3 jobs, and has 0: Resource temporarily unavailable. "
    )
    assert "Fewer --jobs" in text


def test_eval_without_a_process_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(SpawnProcess, "start", no_process)
    words = ["eval", "--lengths", "20", "--policies", "window", "--seeds", "1", "--jobs", "2"]
    assert cli.main([*words, "--out", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("mosaic-edge: eval needs a process for each of its 2 jobs, and has 0: ")


def test_one_that_is_killed_is_said() -> None:
    text = refused(2, {"a": (exec, "import os; os.kill(os.getpid(), 9)")})
    assert text == (
        "a process of eval ended before its work was done (killed by signal 9), one of 1: fewer --jobs, "
        "or more memory for them"
    )


def test_what_one_says_when_it_begins_is_said_here(capfd: pytest.CaptureFixture[str]) -> None:
    start = partial(exec, "from mosaic_edge.errors import DeviceError; raise DeviceError('no thread')")
    assert refused(1, {"a": (abs, 1)}, start) == "no thread"
    assert capfd.readouterr().err == ""


def test_what_a_task_raises_or_cannot_send_is_raised_with_where_it_was() -> None:
    with pytest.raises(ZeroDivisionError) as error, workers(1, print) as run:
        list(run({"a": (exec, "1 / 0")}))
    assert 'File "<string>", line 1' in str(error.value.__cause__)
    with pytest.raises(Exception, match="pickle"), workers(1, print) as run:
        list(run({"a": (eval, "lambda: 0")}))
    with pytest.raises(RuntimeError, match="E: x"), workers(1, print) as run:
        list(run({"a": (exec, "class E(Exception): pass\nraise E('x')")}))


def test_more_tasks_than_processes_are_all_done() -> None:
    with workers(2, print) as run:
        assert dict(run({i: (abs, -i) for i in range(9)})) == {i: i for i in range(9)}
        assert dict(run({i: (abs, -i) for i in range(3)})) == {i: i for i in range(3)}
        assert list(run({})) == []
