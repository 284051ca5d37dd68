"""Batches made ahead of time by one worker process, in the order they were asked for."""

from __future__ import annotations

import multiprocessing as mp
from collections.abc import Callable, Iterable, Iterator
from typing import Any


def _work(make: Callable[..., Any], orders: Any, done: Any) -> None:
    while (order := orders.get()) is not None:
        done.put(make(*order))


def feed(make: Callable[..., Any], orders: Iterable[tuple[Any, ...]], ahead: int = 4) -> Iterator[Any]:
    """Yield make(*order) for every order; `make` runs in a process of its own, at most `ahead` orders
    early.
    """
    context = mp.get_context("fork")  # starts at once; the worker uses NumPy only, never torch
    todo, done = context.Queue(), context.Queue()
    worker = context.Process(target=_work, args=(make, todo, done), daemon=True)
    worker.start()
    waiting = 0
    try:
        for order in orders:
            todo.put(order)
            waiting += 1
            if waiting == ahead:
                yield done.get()
                waiting -= 1
        while waiting:
            yield done.get()
            waiting -= 1
    finally:
        worker.terminate()
        worker.join()
