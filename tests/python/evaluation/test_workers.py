"""Processes of an evaluation end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from mosaic_edge.evaluation.workers import workers

PROGRAM = """
import sys
from mosaic_edge.evaluation.workers import workers

WORK = "import pathlib, time; pathlib.Path({!r}).touch(); time.sleep(3600)"
tasks = {name: (exec, WORK.format(f"{sys.argv[1]}/{name}")) for name in "ab"}
try:
    with workers(3, print) as run:  # one has nothing to do
        list(run(tasks))
except KeyboardInterrupt:
    print("interrupted")
"""


@contextmanager
def at_work(folder: Path) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """A program and its processes, two of which do something that takes an hour."""
    words = [sys.executable, "-c", PROGRAM, str(folder)]
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
        assert (out.split(), err) == (["interrupted"], "")
        assert not psutil.wait_procs(children, timeout=60)[1]


def test_they_end_when_who_began_them_is_killed(tmp_path: Path) -> None:
    with at_work(tmp_path) as (program, children):
        program.kill()
        assert not psutil.wait_procs(children, timeout=60)[1]


def test_they_hear_no_interrupt_themselves() -> None:
    blocked = signal.pthread_sigmask, signal.SIG_BLOCK, []
    with workers(1, print) as run:
        assert signal.SIGINT in dict(run({"theirs": blocked}))["theirs"]
    assert signal.SIGINT not in blocked[0](*blocked[1:])
