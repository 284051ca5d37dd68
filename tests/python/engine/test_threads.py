"""Threads that cannot start, and threads that are still at work when the interpreter ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mosaic_edge.engine import Engine
from mosaic_edge.errors import DeviceError
from numpy_vlm import NumpyVlm

NO_ROOM_FOR_STACKS = """
import resource
import threading
from mosaic_edge import Engine
from mosaic_edge.errors import DeviceError

engine = Engine.load("mosaic-tiny", threads=1)
usual = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, usual[1]))
before = len(open("/proc/self/maps").readlines()), threading.active_count()
try:
    engine.session(memory="200MiB", kernel_threads=1000)
except DeviceError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, usual)
with engine.session(memory="2MiB", kernel_threads=3) as session:
    print(session.ask("what colour was the ball ?").finish)
"""

AT_WORK_AT_THE_END = """
import sys, threading, time
import numpy as np
from mosaic_edge import Engine, Policy

class Keeps(Policy):
    def __init__(self):
        super().__init__(by_token=True, selects=True)
    def admit(self, store, batch):
        return sum(range(2000)) and None
    def evict(self, store, need):
        return []
    def select(self, store, query):
        return sum(range(2000)) * []

policy = Keeps() if sys.argv[1] == "python" else sys.argv[1]
session = Engine.load("mosaic-tiny", threads=1).session(policy=policy, memory="1MiB", kernel_threads=2)
begun = threading.Event()
def capture():
    while True:
        session.append(np.zeros((48, 48, 3), np.uint8))
        begun.set()
        if sys.argv[2] == "asks":
            session.ask("what colour was the ball ?")
threading.Thread(target=capture, daemon=True).start()
begun.wait(60)
time.sleep(float(sys.argv[3]))
print("over")
"""


def test_workers_that_cannot_start_are_an_error_that_names_the_knob_and_the_next_session_works() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", NO_ROOM_FOR_STACKS], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    said, finish = ran.stdout.splitlines()
    assert said.startswith("kernel_threads=1000: only ") and "Lower kernel_threads=" in said
    assert finish in ("end", "length")


@pytest.mark.parametrize("threads", [1025, 100_000, (1 << 31) - 1])
def test_more_threads_than_any_machine_has_are_refused_by_the_knob_there_is(threads: int) -> None:
    with pytest.raises(DeviceError, match=f"^kernel_threads={threads}: expected 0 .* to 1024$"):
        Engine(NumpyVlm()).session(memory="1MiB", kernel_threads=threads)


@pytest.mark.parametrize("policy", ["edge", "mosaic", "python"])
@pytest.mark.parametrize("does", ["appends", "asks"])
def test_a_daemon_thread_inside_the_core_does_not_disturb_the_end_of_the_interpreter(
    policy: str, does: str
) -> None:
    for wait in ("0.05", "0.1"):
        ran = subprocess.run(
            [sys.executable, "-c", AT_WORK_AT_THE_END, policy, does, wait],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "over\n", ""), wait
