"""Processes that work for an evaluation. They end with it, however it ends: nobody waits for hours of a
stream that was interrupted, and none goes on for nobody."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

from mosaic_edge.threads import started

Run = Callable[[dict[Any, Any]], Iterator[tuple[Any, Any]]]
"""run(tasks) yields (key, result) of every task (function, *arguments) as they end."""


@contextmanager
def workers(jobs: int, start: Callable[[], None]) -> Iterator[Run]:
    """So many, each of which calls start() first."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _begin, (start,))
    try:
        yield lambda tasks: _results(pool, tasks)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for mine in set(multiprocessing.active_children()) - others:
            mine.terminate()
        raise
    finally:
        pool.shutdown()


def _results(pool: ProcessPoolExecutor, tasks: dict[Any, Any]) -> Iterator[tuple[Any, Any]]:
    # Ctrl-C is for who began them, who ends them: processes inherit what is blocked.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        futures: dict[Future[Any], Any] = {
            pool.submit(function, *rest): key for key, (function, *rest) in tasks.items()
        }
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for future in as_completed(futures):
        yield futures[future], future.result()


def _begin(start: Callable[[], None]) -> None:
    started(threading.Thread(target=_follow, name="mosaic-parent", daemon=True), "a process of eval")
    start()


def _follow() -> None:
    """End when the process that began this one is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
