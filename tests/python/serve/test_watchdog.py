"""systemd's side of sd_notify, played by a socket: told of begin, life and end, and of what stands still."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mosaic_edge import stream_live
from mosaic_edge.engine import Engine
from mosaic_edge.serve.watchdog import Watchdog
from mosaic_edge.sources import Frame, LiveSource
from mosaic_edge.sources.connection import RgbPicture
from numpy_vlm import NumpyVlm, picture

WAIT_S = 0.3


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener,
    ):
        listener.bind(f"{folder}/notify")
        listener.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", f"{folder}/notify")
        monkeypatch.setenv("WATCHDOG_USEC", str(int(WAIT_S * 1e6)))
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        yield listener


def test_what_lives_says_so_until_it_ends(systemd: socket.socket) -> None:
    with Watchdog(lambda seconds: None):
        assert [systemd.recv(99) for _ in range(4)] == [b"READY=1", *[b"WATCHDOG=1"] * 3]
    said = b""
    while said != b"STOPPING=1":
        said = systemd.recv(99)


def test_what_stands_still_says_why_and_not_that_it_lives(systemd: socket.socket) -> None:
    with Watchdog(lambda seconds: f"nothing for {seconds:g} s"):
        assert systemd.recv(99) == b"READY=1"
        assert {systemd.recv(99) for _ in range(3)} == {b"STATUS=stands still: nothing for 0.3 s"}


@pytest.mark.parametrize("variable", ["NOTIFY_SOCKET", "WATCHDOG_USEC"])
def test_a_service_that_nobody_watches_starts_no_thread(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.delenv(variable)
    with Watchdog(lambda seconds: None) as watchdog:
        assert watchdog._thread is None


def test_a_frame_that_never_ends_is_a_stall_and_a_slow_one_is_none(systemd: socket.socket) -> None:
    said: list[bytes] = []

    def hang(pts: float, frames: int) -> None:
        if frames == 3:
            while not said or not said[-1].startswith(b"STATUS"):
                said.append(systemd.recv(99))

    frames = (Frame(picture(i), float(i), i) for i in range(5))
    with Engine(NumpyVlm()).session(memory="1MiB", policy="window", kernel_threads=1) as session:
        ended = stream_live(session, frames, progress=hang)
    assert ended.frames == 5
    assert said[0] == b"READY=1" and b"WATCHDOG=1" in said
    assert said[-1].startswith(b"STATUS=stands still: a frame takes over 0 s")


class _Deaf:
    """A connection of a driver that gives two pictures and then never comes back."""

    timeless, patient, over, broken, broke_off, rate = False, False, False, 0, None, 25.0

    def pictures(self) -> Iterator[tuple[RgbPicture, float]]:
        yield RgbPicture(picture(0)), 0.0
        yield RgbPicture(picture(1)), 0.04
        time.sleep(3600)

    def abort(self) -> None: ...

    def close(self) -> None: ...


def test_a_driver_that_never_comes_back_is_a_stall_once_every_timeout_has_passed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Deaf(LiveSource):
        def _check(self) -> None: ...

        def _connect(self, connect_s: float, read_s: float) -> Any:
            return _Deaf()

    source = Deaf("/dev/video0")
    assert source.stuck(60.0) is None, "nobody reads it"
    frames = iter(source)
    next(frames)
    assert source.stuck(0.0) is None
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + 69.0)
    assert source.stuck(60.0) is None
    monkeypatch.setattr(time, "monotonic", lambda: real() + 71.0)
    assert "/dev/video0 did not answer for 71 s" in str(source.stuck(60.0))


def test_systemd_waits_longer_than_any_timeout_of_a_camera() -> None:
    unit = (Path(__file__).parents[3] / "jetson" / "mosaic-edge.service").read_text()
    assert "Type=notify" in unit and "WatchdogSec=60" in unit and "--power-aware" in unit
