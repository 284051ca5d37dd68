"""As much of Ray as mosaic_edge uses: an actor is a process of its own (spawn), which shares nothing but what
it is given."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from multiprocessing import get_context
from typing import Any

CPUS = 2
_actors: list[ProcessPoolExecutor] = []
_mine: Any = None


class Held:
    """What put() gives: an argument that is one arrives as what it holds."""

    def __init__(self, value: Any) -> None:
        self.data = pickle.dumps(value)


def init(address: str, **how: Any) -> None:
    if address != "local":
        raise ConnectionError(f"nobody is at {address}")


def cluster_resources() -> dict[str, float]:
    return {"CPU": float(CPUS), "memory": 1e9}


def put(value: Any) -> Held:
    return Held(value)


def remote(num_cpus: int) -> Callable[[type], Any]:
    def of(kind: type) -> Any:
        class Actor:
            @staticmethod
            def remote(*given: Any) -> _Handle:
                return _Handle(kind, given)

        return Actor

    return of


class _Handle:
    def __init__(self, kind: type, given: tuple[Any, ...]) -> None:
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), _begin, (kind, given))
        _actors.append(self._pool)

    def __getattr__(self, name: str) -> Any:
        class Method:
            @staticmethod
            def remote(*given: Any) -> Future[Any]:
                return self._pool.submit(_call, name, given)

        return Method


def wait(futures: list[Future[Any]], num_returns: int) -> tuple[list[Future[Any]], list[Future[Any]]]:
    done, rest = wait_for(futures, return_when=FIRST_COMPLETED)
    return list(done), list(rest)


def get(future: Future[Any]) -> Any:
    return future.result()


def shutdown() -> None:
    while _actors:
        _actors.pop().shutdown(cancel_futures=True)


def _begin(kind: type, given: tuple[Any, ...]) -> None:
    global _mine
    _mine = kind(*given)


def _call(name: str, given: tuple[Any, ...]) -> Any:
    return getattr(_mine, name)(*(pickle.loads(g.data) if isinstance(g, Held) else g for g in given))
