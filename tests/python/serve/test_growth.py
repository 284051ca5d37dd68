"""What a server holds does not grow with what it has done. Bytes that Python traces are counted, not the
process's size, which depends on allocators and on the machine."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mosaic_edge.serve.history import MOST, History


def traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@contextmanager
def tracing() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def test_a_history_takes_no_more_when_it_is_full_than_after_its_first_sample(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [100.0]
    monkeypatch.setattr("mosaic_edge.serve.history.time.monotonic", lambda: clock[0])
    account = {"tiers": [{"used_bytes": 1 << 30}, {"used_bytes": 1 << 31}]}
    history = History()
    with tracing():
        history.note(account)
        first = traced()
        for _ in range(3 * MOST):
            clock[0] += 1.0
            history.note(account)
        last = traced()
    assert last - first < 2048
