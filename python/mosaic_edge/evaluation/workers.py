"""Processes that work for an evaluation. They end with it, however it ends: nobody waits for hours of a
stream that was interrupted, and none goes on for nobody. Each has a line of its own to who began it, who
needs no thread for them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from mosaic_edge._core import DeviceError
from mosaic_edge.threads import started

_ENDS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
Run = Callable[[dict[Any, Any]], Iterator[tuple[Any, Any]]]
"""run(tasks) yields (key, result) of every task (function, *arguments) as they end."""


@contextmanager
def workers(jobs: int, start: Callable[[], None]) -> Iterator[Run]:
    """So many, each of which calls start() first, begun when there is something to do. What one of them
    raises is raised here, and nothing more is to be run then. DeviceError where there is no process, or one
    is ended by others."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    pool = _Pool(jobs, start)
    try:
        yield pool.run
        pool.end()
    except BaseException:
        pool.kill()
        raise


class _Pool:
    def __init__(self, jobs: int, start: Callable[[], None]) -> None:
        self._jobs, self._start = jobs, start
        self._mine: dict[Connection, multiprocessing.process.BaseProcess] = {}

    def run(self, tasks: dict[Any, Any]) -> Iterator[tuple[Any, Any]]:
        todo = list(reversed(tasks.items()))
        idle = list(self._mine)
        keys: dict[Connection, Any] = {}
        while todo or keys:
            while todo and (idle or len(self._mine) < self._jobs):
                line = idle.pop() if idle else self._begin()
                keys[line], task = todo.pop()
                with suppress(OSError):  # it has ended: _result() says so
                    line.send(task)
            ready = wait(list(keys))
            for line in [line for line in keys if line in ready]:
                result = self._result(line)
                idle.append(line)
                yield keys.pop(line), result

    def _begin(self) -> Connection:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        try:
            resource_tracker.ensure_running()  # starting it unblocks what is blocked
            # What ends a command is for who began them, who ends them: processes inherit what is blocked.
            signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
            ours, theirs = multiprocessing.Pipe()
            with theirs:
                process = multiprocessing.get_context("spawn").Process(
                    target=_work, args=(theirs, self._start)
                )
                self._mine[ours] = process
                process.start()
        except OSError as error:
            raise DeviceError(
                f"eval needs a process for each of its {self._jobs} jobs, and has {self._alive()}: "
                f"{error.strerror or error}. Fewer --jobs, or raise the limit of processes (ulimit -u, "
                "TasksMax=, --pids-limit) or of memory, or end what else runs."
            ) from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return ours

    def _alive(self) -> int:
        return sum(process.pid is not None for process in self._mine.values())

    def _result(self, line: Connection) -> Any:
        try:
            value, error, trace = line.recv()
        except (EOFError, OSError):
            process = self._mine[line]
            process.join()
            code = process.exitcode or 0
            how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
            raise DeviceError(
                f"a process of eval ended before its work was done ({how}), one of {self._alive()}: "
                "fewer --jobs, or more memory for them"
            ) from None
        if error is not None:
            raise error from RuntimeError(f"in a process of eval:\n{trace}")
        return value

    def end(self) -> None:
        """They have nothing to do: they end when nobody is on the line."""
        for line in self._mine:
            line.close()
        for process in self._mine.values():
            process.join()

    def kill(self) -> None:
        """None writes anywhere any more when this returns."""
        begun = [process for process in self._mine.values() if process.pid is not None]
        for process in begun:
            process.kill()
        for process in begun:
            process.join()


def _work(line: Connection, start: Callable[[], None]) -> None:
    begun = False
    with suppress(EOFError):
        while True:
            function, *rest = line.recv()
            try:
                if not begun:
                    started(threading.Thread(target=_follow, name="mosaic-parent", daemon=True), "eval")
                    start()
                    begun = True
                _send(line, function(*rest), None)
            except Exception as error:
                _send(line, None, error)


def _send(line: Connection, value: Any, error: Exception | None) -> None:
    trace = "" if error is None else "".join(traceback.format_exception(error))
    try:
        line.send((value, error, trace))
    except Exception as problem:  # it cannot be pickled
        if error is None:
            raise
        line.send((None, RuntimeError(f"{type(error).__name__}: {error} ({problem})"), trace))


def _follow() -> None:
    """End when the process that began this one is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
