"""Cameras in processes of their own that stall, hang up, begin anew and send too much: nothing hangs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fake_camera import Plan, camera
from mosaic_edge.sources import LiveSource, SourceError, ffmpeg, open_live, open_source
from numbered import number_of, write_numbered

KINDS = ["rtsp", "tcp", "http"]
QUICK = {"read_s": 1.5, "give_up_s": 1.0}
ENDS_S = 10.0
"""On a machine that does nothing else it is a tenth of a second."""


def seen(source: LiveSource, pause: float = 0.0) -> tuple[list[tuple[int, float]], SourceError | None]:
    """Numbers and times, looked at so slowly, and the error at the end."""
    frames: list[tuple[int, float]] = []
    try:
        for frame in source:
            frames.append((number_of(frame.image), frame.pts))
            time.sleep(pause)
    except SourceError as error:
        return frames, error
    return frames, None


@pytest.mark.parametrize("kind", KINDS)
def test_a_camera_that_hangs_up_stalls_and_restarts_its_clock_is_one_stream(kind: str) -> None:
    plan: Plan = [
        [{"frames": 12, "fps": 25}],
        [{"frames": 12, "fps": 25}, {"stall": 60}],
        [{"frames": 12, "fps": 25}],
    ]
    said: list[str] = []
    with camera(kind, plan) as url:
        source = LiveSource(url, notify=said.append, **QUICK)
        frames, _ = seen(source)
    numbers = [number for number, _ in frames]
    assert numbers == sorted(set(numbers))
    assert {number // 12 for number in numbers} == {0, 1, 2}, "of each connection"
    assert all(sooner < later for (_, sooner), (_, later) in pairwise(frames))
    assert all(later[1] - sooner[1] < 30 for sooner, later in pairwise(frames)), "no clock is believed alone"
    stats = source.stats()
    assert stats.reconnects == 2
    assert len(frames) + stats.dropped >= 34
    assert stats.age_seconds is not None and not stats.connected
    assert sum("opened again" in line for line in said) >= 2
    assert sum("it is back" in line for line in said) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_camera_that_sends_more_than_is_looked_at_is_kept_up_with(kind: str) -> None:
    with camera(kind, [[{"frames": 90, "fps": 60}]]) as url:
        source = LiveSource(url, **QUICK)
        numbers = [number for number, _ in seen(source, 0.3)[0]]
    stats = source.stats()
    assert numbers == sorted(set(numbers))
    assert numbers[-1] >= 85
    assert stats.dropped > 45
    assert 88 <= len(numbers) + stats.dropped <= 90


def test_a_camera_that_is_not_there_is_given_up_and_says_why() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for url in ("rtsp://127.0.0.1:9/cam", f"tcp://127.0.0.1:{silent.getsockname()[1]}"):
            _, error = seen(LiveSource(url, connect_s=0.5, give_up_s=1.0))
            assert error is not None
            assert error.reached is None
            assert "no frame in" in str(error)


def test_a_picture_that_does_not_convert_costs_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ffmpeg.upright

    def upright(picture: Any, pixel: Any) -> Any:
        image = real(picture, pixel)
        if number_of(image) % 3 == 1:
            raise ValueError("a format that nobody knows")
        return image

    monkeypatch.setattr(ffmpeg, "upright", upright)
    with camera("tcp", [[{"frames": 75}]]) as url:
        source = LiveSource(url, 5.0, **QUICK)
        assert [number for number, _ in seen(source)[0]] == [n for n in range(0, 75, 5) if n % 3 != 1]
    assert source.stats().broken == 5


def test_a_password_is_not_shown() -> None:
    _, error = seen(LiveSource("rtsp://user:s3cret@127.0.0.1:9/cam", give_up_s=0.1))
    assert "s3cret" not in str(error)
    assert "user:***@127.0.0.1" in str(error)


def test_close_ends_it_from_another_thread_while_it_waits() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        source = LiveSource(f"tcp://127.0.0.1:{silent.getsockname()[1]}", connect_s=60)
        threading.Timer(0.3, source.close).start()
        began = time.monotonic()
        assert seen(source) == ([], None)
        assert time.monotonic() - began < ENDS_S


def test_a_source_that_was_closed_may_be_read_again() -> None:
    plan: Plan = [[{"frames": 12, "fps": 25}, {"stall": 60}], [{"frames": 12, "fps": 25}]]
    with camera("tcp", plan) as url:
        source = LiveSource(url, **QUICK)
        first = []
        for frame in source:
            first.append(number_of(frame.image))
            source.close()
        again = [number for number, _ in seen(source)[0]]
    assert len(first) == 1
    assert len(again) >= 6 and min(again) > first[0]


@pytest.mark.parametrize("settings", [{"start": 1.0}, {"end": 5.0}])
def test_a_live_source_has_no_start_and_no_end(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="is live"):
        open_source("rtsp://127.0.0.1:9/cam", **settings)  # type: ignore[arg-type]


def test_a_pipe_is_opened_once_and_read_whole_live_or_not(tmp_path: Path) -> None:
    data = write_numbered(tmp_path / "a.ts", [i / 25 for i in range(75)]).read_bytes()
    for is_live in (True, False):
        fifo = tmp_path / f"{is_live}.fifo"
        os.mkfifo(fifo)
        writer = threading.Thread(target=fifo.write_bytes, args=(data,))
        writer.start()
        assert isinstance(open_live(f"file://{fifo}", 1.0), LiveSource)
        source = open_live(str(fifo), 1.0) if is_live else open_source(fifo, 1.0)
        assert [number_of(frame.image) for frame in source] == [0, 25, 50]
        writer.join()
        if not is_live:
            with pytest.raises(SourceError, match="it can be read once"):
                list(source)


def test_a_server_for_one_client_is_connected_to_once(tmp_path: Path) -> None:
    with camera("tcp", [[{"frames": 75}]]) as url:
        source = LiveSource(url, 1.0, **QUICK)
        assert [number for number, _ in seen(source)[0]] == [0, 25, 50]
    with camera("tcp", [[{"frames": 75}]]) as url:
        assert [number_of(frame.image) for frame in open_source(url, 1.0)] == [0, 25, 50]


LIVE = [sys.executable, "-m", "mosaic_edge", "live", "--source"]


@pytest.mark.parametrize(("kind", "number"), [("rtsp", signal.SIGTERM), ("tcp", signal.SIGINT)])
def test_live_ends_well_at_a_signal_while_a_camera_says_nothing(
    tmp_path: Path, kind: str, number: signal.Signals
) -> None:
    plan: Plan = [[{"frames": 25, "fps": 50}, {"stall": 600}]]
    sent = tmp_path / "sent"
    with camera(kind, plan, sent) as url:
        process = subprocess.Popen(
            [*LIVE, url, "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while process.poll() is None and (not sent.exists() or sent.stat().st_size < 8 * 25):  # all frames
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(number)
        began = time.monotonic()
        out, err = process.communicate(timeout=60)
    assert time.monotonic() - began < ENDS_S
    assert (process.returncode, err) == (0, "")
    document = json.loads(out)
    assert document["error"] is None
    assert {"dropped", "reconnects"} <= set(document)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_file_on_a_disk_is_not_live_as_a_url_either(tmp_path: Path, scheme: str) -> None:
    path = tmp_path / "a.mp4"
    write_numbered(path, [k / 25 for k in range(13)])
    source = open_live(f"{scheme}{path}", None)
    assert not isinstance(source, LiveSource)
    assert [number_of(frame.image) for frame in source] == list(range(13))
    path.write_text("no video")
    with pytest.raises(SourceError, match="not a readable video"):
        list(open_live(f"{scheme}{path}", None))
