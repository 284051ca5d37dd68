"""Who may call a memory: one thread at a time, no policy that it is asking, and no fork of its process."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mosaic_edge import InvalidInput, Policy, _core
from mosaic_edge.engine import Engine
from numpy_vlm import NumpyVlm, picture
from played import EMBEDDING, EXACT, HEAD_DIM, KV_HEADS, LAYERS, MODEL, Q_HEADS, TOKENS, Array, Played


def arrays(tokens: int) -> list[Array]:
    return [
        np.ones((tokens, heads, HEAD_DIM), np.float32) for heads in (Q_HEADS, KV_HEADS, KV_HEADS, Q_HEADS)
    ]


class Calls(Policy):
    """Calls its own memory from one of its methods, and remembers what came of it."""

    def __init__(self, method: str, call: Callable[[_core.KvMemory], object]) -> None:
        super().__init__(selects=True)
        self.method, self.call = method, call
        self.memory: Any = None
        self.came: list[object] = []

    def _try(self, method: str) -> None:
        if method != self.method or self.memory is None:
            return
        try:
            self.came.append(self.call(self.memory))
        except Exception as error:
            self.came.append(error)

    def admit(self, store: Any, batch: Any) -> None:
        self._try("admit")

    def evict(self, store: Any, need: Any) -> list[Any]:
        self._try("evict")
        return []

    def select(self, store: Any, query: Any) -> list[int]:
        self._try("select")
        return []


def begin_frame(memory: _core.KvMemory) -> None:
    memory.begin_frame(1e6, np.ones(EMBEDDING, np.float32), TOKENS)


CHANGES: dict[str, Callable[[_core.KvMemory], object]] = {
    "close_question": lambda m: (m.close_question(), begin_frame(m)),
    "abort": lambda m: (m.abort(), m.begin_text(TOKENS)),
    "begin_frame": begin_frame,
    "begin_text": lambda m: m.begin_text(1),
    "open_question": lambda m: m.open_question(),
    "attend": lambda m: m.attend(0, *arrays(TOKENS)),
    "commit": lambda m: m.commit(),
    "drain": lambda m: m.drain(),
    "evidence": lambda m: m.evidence(),
    "check_invariants": lambda m: m.check_invariants(),
}


@pytest.mark.parametrize("method", ["select", "admit", "evict"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_policy_cannot_call_the_memory_that_is_asking_it(method: str, change: str) -> None:
    policy = Calls(method, CHANGES[change])
    played = Played(policy, seed=5, **{**EXACT, "cap_bytes": 90_000, "branch_tokens": 16, "clusters": 0})
    policy.memory = played.memory
    for _ in range(40):
        played.random_frame(TOKENS)
        played.ask(2)
        played.memory.check_invariants()
    assert policy.came
    for error in policy.came:
        assert isinstance(error, InvalidInput) and "called by a policy" in str(error)


def test_a_policy_may_look_at_its_memory_while_it_is_asked() -> None:
    policy = Calls("select", lambda m: (m.stats()["frames"], m.store.clusters(0), m.asking, m.plan()))
    played = Played(policy, **EXACT)
    policy.memory = played.memory
    for _ in range(5):
        played.random_frame(TOKENS)
    played.ask(2)
    assert [came[0] for came in policy.came[-LAYERS:]] == [5] * LAYERS  # type: ignore[index]


class Waits(Policy):
    """Stays in select() until it is told."""

    def __init__(self) -> None:
        super().__init__(selects=True)
        self.asked, self.go_on = threading.Event(), threading.Event()
        self.waits = False
        self.store: Any = None

    def admit(self, store: Any, batch: Any) -> None:
        self.store = store

    def evict(self, store: Any, need: Any) -> list[Any]:
        return []

    def select(self, store: Any, query: Any) -> list[int]:
        if self.waits:
            self.asked.set()
            assert self.go_on.wait(60)
        return []


def test_a_second_thread_is_refused_while_a_call_goes_on_and_reads_whole_counts() -> None:
    policy = Waits()
    played = Played(policy, **EXACT)
    for _ in range(7):
        played.random_frame(TOKENS)
    before = played.memory.stats()
    policy.waits = True
    answers: list[object] = []
    asks = threading.Thread(target=lambda: answers.append(played.ask(2)))
    asks.start()
    try:
        assert policy.asked.wait(60)
        looks: dict[str, Callable[[_core.KvMemory], object]] = {
            "store": lambda m: m.store.clusters(0),
            "lent store": lambda m: policy.store.members(0),
        }
        for name, call in {**CHANGES, **looks}.items():
            with pytest.raises(InvalidInput, match="one caller at a time"):
                call(played.memory)
            assert not answers, name
        meanwhile = played.memory.stats()
    finally:
        policy.go_on.set()
        asks.join()
    assert meanwhile["tokens"] == before["tokens"] and meanwhile["frames"] == 7
    assert sum(meanwhile["tokens"].values()) == 2 * meanwhile["tokens"]["seen"]
    assert len(answers) == 1
    policy.waits = False
    played.random_frame(TOKENS)
    played.memory.check_invariants()


def test_threads_that_do_not_take_turns_get_errors_and_leave_the_memory_whole() -> None:
    memory = _core.KvMemory(MODEL, {"cap_bytes": 200_000, "window_frames": 2}, "edge", {}, "cpu", 2, 0)
    over, wrong = threading.Event(), []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not over.is_set():
            tokens = int(rng.integers(1, TOKENS + 1))
            calls: list[Callable[[], object]] = [
                partial(memory.begin_frame, 0.0, np.ones(EMBEDDING, np.float32), tokens),
                partial(memory.begin_text, tokens),
                partial(memory.attend, int(rng.integers(LAYERS)), *arrays(tokens)),
                memory.commit,
                memory.abort,
                memory.open_question,
                memory.close_question,
                memory.evidence,
                lambda: memory.store.clusters(0),
            ]
            try:
                calls[rng.integers(len(calls))]()
            except (InvalidInput, MemoryError):
                pass
            except Exception as error:
                wrong.append(error)
            tokens_now = memory.stats()["tokens"]
            if sum(tokens_now.values()) != 2 * tokens_now["seen"]:
                wrong.append(tokens_now)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(2)
    over.set()
    for thread in threads:
        thread.join()
    assert not wrong
    memory.abort()
    if memory.asking:
        memory.close_question()
    memory.check_invariants()


def in_a_fork(body: Callable[[], object]) -> str:
    """What `body` returns, as text, in a forked child that must end within ten seconds."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(writes, repr(body()).encode())
            status = 0
        except BaseException as error:
            os.write(writes, repr(error).encode())
        finally:
            os._exit(status)
    os.close(writes)
    try:
        said = b""
        while True:
            if not select.select([reads], [], [], 10)[0]:
                os.kill(child, signal.SIGKILL)
                pytest.fail(f"the child hangs; so far: {said!r}")
            piece = os.read(reads, 1 << 16)
            if not piece:
                break
            said += piece
    finally:
        os.close(reads)
        status = os.waitpid(child, 0)[1]
    assert status == 0, said
    return said.decode()


def refusals(calls: dict[str, Callable[[], object]]) -> list[str]:
    """Names of the calls that are not refused by what they should be."""

    def said(call: Callable[[], object]) -> str:
        try:
            call()
        except ValueError as error:
            return str(error)
        return "nothing"

    return [f"{name}: {said(call)}" for name, call in calls.items() if "fork" not in said(call)]


def spilling(path: Path) -> Played:
    settings = {"cap_bytes": 200_000, "window_frames": 2, "packed": "int4", "clusters": 20}
    played = Played("mosaic", seed=3, disk_bytes=1 << 20, spill_dir=str(path), **settings)
    for _ in range(150):
        played.random_frame(TOKENS)
    played.memory.drain()
    assert played.memory.stats()["disk"]["bytes_written"] > 0
    return played


def test_a_fork_is_refused_at_every_call_and_ends_and_the_parent_goes_on(tmp_path: Path) -> None:
    played, twin = spilling(tmp_path), spilling(tmp_path)
    store = played.memory.store

    def child() -> list[str]:
        others: dict[str, Callable[[], object]] = {
            "stats": lambda: played.memory.stats(),
            "plan": lambda: played.memory.plan(),
            "asking": lambda: played.memory.asking,
            "store": lambda: played.memory.store,
            "clusters": lambda: store.clusters(0),
        }
        changes = {name: partial(call, played.memory) for name, call in CHANGES.items()}
        said = refusals({**changes, **others})
        changes.clear()
        del played.memory  # the last but the store's
        return said

    assert in_a_fork(child) == "[]"
    for _ in range(30):
        assert (played.random_frame(TOKENS) == twin.random_frame(TOKENS)).all()
    assert (played.ask(2) == twin.ask(2)).all()
    played.memory.check_invariants()
    disk = played.memory.stats()["disk"]
    assert disk["bytes_written"] == twin.memory.stats()["disk"]["bytes_written"]
    assert disk["bad_checksums"] == disk["io_errors"] == 0


@pytest.mark.parametrize("disk", [None, "1MiB"])
def test_a_session_in_a_fork_raises_at_every_call_and_closes(disk: str | None, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    engine = Engine(NumpyVlm())
    session = engine.session(
        memory="400KiB",
        policy="mosaic",
        disk=disk,
        spill_dir=str(tmp_path),
        kernel_threads=3,
        trace=str(trace),
    )
    for number in range(40):
        session.append(picture(number), float(number))
    answer = session.ask("what was the ball ?", stream=True)
    pieces = iter(answer)
    next(pieces)
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:  # as a thread that is in a step when the process forks
        with session._order.step():
            held.set()
            let_go.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(60)

    def child() -> list[str]:
        said = refusals(
            {
                "append": lambda: session.append(picture(1), 1e5),
                "ask": lambda: session.ask("what was the ball ?"),
                "stream": lambda: next(pieces),
                "memory": session.memory,
                "check_invariants": session.check_invariants,
            }
        )
        answer.close()
        session.close()
        session.close()
        return said

    assert in_a_fork(child) == "[]"
    let_go.set()
    holder.join()
    for _ in pieces:
        pass
    session.append(picture(50), 50.0)
    session.check_invariants()
    session.close()
    assert trace.read_text(encoding="utf-8").startswith('{"displayTimeUnit"')
    assert sorted(p.name for p in tmp_path.iterdir()) == ["trace.json"]


def test_a_fork_that_ends_as_a_python_process_ends_leaves_the_parent_whole(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, threading\n"
        "import numpy as np\n"
        "from mosaic_edge import Engine\n"
        "engine = Engine.load('mosaic-tiny', threads=1)\n"
        "session = engine.session(memory='1MiB', policy='mosaic', disk='1MiB',\n"
        f"    kernel_threads=3, trace={str(tmp_path / 'trace.json')!r}, spill_dir={str(tmp_path)!r})\n"
        "for i in range(20):\n"
        "    session.append(np.full((48, 48, 3), i, np.uint8))\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    sys.exit(7)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\n"
        "session.append(np.zeros((48, 48, 3), np.uint8))\n"
        "session.check_invariants()\n"
        "session.close()\n"
        "print('whole')\n"
    )
    ran = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "whole\n", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["script.py", "trace.json"]
