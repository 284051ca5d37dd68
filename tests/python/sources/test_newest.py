"""The queue between camera and model, by a clock that the test turns: what is dropped, what waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from mosaic_edge.sources import newest
from mosaic_edge.sources.connection import RgbPicture
from mosaic_edge.sources.newest import MOST_WAITING, NewestFirst


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(newest, "time", made)
    return made


def frame(size: int = 16) -> RgbPicture:
    return RgbPicture(np.zeros((size // 2, size, 3), np.uint8))


def play(
    queue: NewestFirst,
    clock: Clock,
    seconds: float,
    fps: float,
    model_fps: float,
    moment: Callable[[float], float] = lambda now: now - 1000.0,
) -> list[tuple[float, float]]:
    """A camera of `fps` and a model of `model_fps`, in turn: (moment taken, moment of the newest then)."""
    queue.begin(1 / fps)
    taken: list[tuple[float, float]] = []
    sent = -1
    free_at = begin = clock.now
    while clock.now < begin + seconds:
        while begin + (sent + 1) / fps <= clock.now:
            sent += 1
            at = begin + sent / fps
            queue.put(frame(), moment(at), at)
        if clock.now >= free_at and len(queue):
            got = queue.take()
            assert got is not None
            taken.append((got[1], moment(begin + sent / fps)))
            free_at = clock.now + 1 / model_fps
        clock.now += 0.001
    return taken


@pytest.mark.parametrize("model_fps", [2.0, 0.3, 7.0, 29.0])
def test_ten_minutes_at_30_fps_are_kept_up_with_within_a_frame(clock: Clock, model_fps: float) -> None:
    queue = NewestFirst()
    taken = play(queue, clock, 60.0, 30.0, model_fps)
    assert len(taken) == pytest.approx(60 * model_fps, rel=0.02, abs=2)
    assert max(newest - got for got, newest in taken) <= 1 / 30 + 0.002
    assert queue.dropped == 1800 - len(taken) - len(queue)


def test_a_model_that_is_quick_enough_sees_every_frame(clock: Clock) -> None:
    queue = NewestFirst()
    taken = play(queue, clock, 20.0, 10.0, 11.0)
    assert queue.dropped == 0
    assert [round(10 * got) for got, _ in taken] == list(range(len(taken)))


@pytest.mark.parametrize("drift", [0.9999, 1.0001, 1.001])
def test_a_camera_whose_clock_drifts_is_not_early(clock: Clock, drift: float) -> None:
    queue = NewestFirst()
    taken = play(queue, clock, 300.0, 5.0, 1.0, lambda now: (now - 1000.0) * drift)
    assert max(newest - got for got, newest in taken) <= 2 / 5


def test_a_recording_that_comes_at_once_waits_to_be_looked_at(clock: Clock) -> None:
    queue = NewestFirst()
    queue.begin(1.0)
    for i in range(10):
        queue.put(frame(), float(i), clock.now + i / 1000)
    queue.end()
    seen = []
    while (got := queue.take()) is not None:
        seen.append(got[1])
        clock.now += 0.8
    assert seen == [float(i) for i in range(10)]
    assert queue.dropped == 0


def test_what_comes_faster_than_its_clock_for_long_is_live_all_the_same(clock: Clock) -> None:
    queue = NewestFirst()
    taken = play(queue, clock, 20.0, 30.0, 2.0, lambda now: 60 * (now - 1000.0))
    late = taken[len(taken) // 2 :]
    assert max(newest - got for got, newest in late) <= 60 * (1 / 30 + 0.002)
    assert queue.dropped > 500


def test_what_a_stalled_connection_brings_late_is_old(clock: Clock) -> None:
    queue = NewestFirst()
    queue.begin(0.1)
    for i in range(20):  # a second at once, 5 s late
        queue.put(frame(), i / 10, clock.now + (i / 10 if i < 5 else 5.0))
    clock.now += 5.3
    got = queue.take()
    assert got is not None
    assert got[1] == pytest.approx(1.9)
    assert queue.dropped == 19


def test_memory_is_bounded_by_bytes_too(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newest, "MOST_BYTES", 3 * 1536 * 100)
    queue = NewestFirst()
    queue.begin(1.0)
    for i in range(9):
        queue.put(frame(320), float(i), clock.now)
        assert 1 <= len(queue) <= 3
    assert queue.dropped + len(queue) == 9


def test_whoever_can_be_made_to_wait_waits_and_nothing_is_lost() -> None:
    queue = NewestFirst(patient=True)
    queue.begin(10.0)
    count = 3 * MOST_WAITING

    def send() -> None:
        for i in range(count):
            queue.put(frame(), float(i), time.monotonic())
        queue.end()

    thread = threading.Thread(target=send)
    thread.start()
    seen = []
    while (got := queue.take()) is not None:
        seen.append(got[1])
    thread.join()
    assert seen == [float(i) for i in range(count)]


def test_the_end_lets_go_of_both_sides() -> None:
    queue = NewestFirst(patient=True, most=1)
    queue.begin(1000.0)
    queue.put(frame(), 0.0, 0.0)
    threads = [threading.Thread(target=queue.put, args=(frame(), 900.0, 0.0))]
    empty = NewestFirst()
    threads.append(threading.Thread(target=empty.take))
    for thread in threads:
        thread.start()
    queue.end(at_once=True)
    empty.end(at_once=True)
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert empty.take() is None


def test_an_error_comes_after_what_was_received() -> None:
    queue = NewestFirst()
    queue.begin(1.0)
    queue.put(frame(), 0.0, 0.0)
    queue.end(ValueError("the cable is out"))
    assert queue.take() is not None
    with pytest.raises(ValueError, match="cable"):
        queue.take()
