"""Pipelines of GStreamer, played by a program of that name that does as its plan says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import fake_camera
from mosaic_edge.sources import LiveSource, SourceError, open_live, open_source
from numbered import number_of

PROGRAM = Path(fake_camera.__file__).with_name("gst-launch-1.0")
QUICK = {"read_s": 1.5, "give_up_s": 1.0}


class Played:
    """A plan, and what its starts left behind."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "a plan.json"
        self.where = f"gst:plan '{self._file}'"

    def write(self, *plan: dict[str, Any]) -> None:
        self._file.write_text(json.dumps(plan))

    def starts(self) -> list[list[Any]]:
        """[process id, words behind the plan] of each."""
        return [json.loads(line) for line in self._file.with_suffix(".starts").read_text().splitlines()]

    def are_gone(self) -> bool:
        return not any(Path(f"/proc/{process}").exists() for process, _ in self.starts())


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Played:
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / PROGRAM.name
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{PROGRAM}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return Played(tmp_path)


def live(where: str, fps: float | None = None, **settings: Any) -> LiveSource:
    opened = type(open_source(where))(where, fps, **{**QUICK, **settings})  # type: ignore[call-arg]
    assert isinstance(opened, LiveSource)
    return opened


def test_pictures_come_whole_in_order_with_the_time_of_day(played: Played) -> None:
    played.write({"frames": 25, "fps": 50, "width": 157, "live": False})
    began = time.time()
    frames = [(f.image.shape, number_of(f.image), f.pts) for f in live(played.where)]
    assert {shape for shape, _, _ in frames} == {(96, 157, 3)}
    assert [number for _, number, _ in frames] == list(range(25))
    assert all(sooner[2] < later[2] for sooner, later in pairwise(frames))
    assert began <= frames[0][2] and frames[-1][2] <= time.time()
    assert played.are_gone()


def test_a_pipeline_that_stalls_breaks_and_changes_its_size_is_one_stream(played: Played) -> None:
    played.write(
        {"frames": 7, "fps": 50, "stall": True},
        {"frames": 7, "fps": 50, "error": "Could not read from resource."},
        {"frames": 7, "fps": 50, "resize": 96, "stall": True},
        {"frames": 7, "fps": 50, "width": 96},
    )
    said: list[str] = []
    source = live(f"{played.where} ! capsfilter caps='video/x-raw, width=160'", notify=said.append)
    frames = [(number_of(frame.image), frame.pts) for frame in source if frame.index < 28]
    assert [number for number, _ in frames] == list(range(28))
    assert all(sooner[1] < later[1] for sooner, later in pairwise(frames))
    assert source.stats().reconnects == 3
    causes = [line.partition("width=160': ")[2].partition(";")[0] for line in said if "opened again" in line]
    assert causes[0] == "no data came in time"
    assert causes[1] == "Could not read from resource."
    assert causes[2] == "its pictures were (160, 96), and are (96, 96): width, height"
    assert source.stats().trouble == "nobody is there"
    assert played.are_gone()


def test_the_newest_picture_wins(played: Played) -> None:
    played.write({"frames": 60, "fps": 60, "live": False})
    source, numbers = live(played.where), []
    for frame in source:
        numbers.append(number_of(frame.image))
        time.sleep(0.3)
    assert numbers == sorted(set(numbers)) and numbers[-1] >= 55
    assert source.stats().dropped > 30 and len(numbers) + source.stats().dropped == 60


def test_a_pipeline_that_does_not_listen_is_killed_when_it_is_closed(played: Played) -> None:
    played.write({"frames": 3, "fps": 25, "stall": True, "deaf": True})
    source = live(played.where, read_s=60.0)
    for frame in source:
        if frame.index == 2:
            break
    until = time.monotonic() + 10
    while not played.are_gone() and time.monotonic() < until:
        time.sleep(0.05)
    assert played.are_gone()


def test_a_camera_that_is_gone_is_given_up_with_what_gstreamer_said(played: Played) -> None:
    played.write({"error": "Cannot identify device '/dev/video7'."})
    with pytest.raises(SourceError, match=r"no frame in \d+ s of trying \(Cannot identify device"):
        list(live(f"{played.where} device=/dev/video7", give_up_s=0.1))
    assert played.starts()[0][1] == ["device=/dev/video7"]


@pytest.mark.parametrize(
    ("pipeline", "said"),
    [("nosuch ! x", 'no element "nosuch"'), ("", "expected a pipeline"), ("a 'b", "No closing quotation")],
)
def test_what_is_no_pipeline_is_refused_in_one_line(played: Played, pipeline: str, said: str) -> None:
    with pytest.raises(ValueError, match="source=") as refused:
        list(open_source(f"gst:{pipeline}"))
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_machine_without_gstreamer_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SourceError, match=r"apt-get install gstreamer1\.0-tools"):
        open_source("gst:videotestsrc")


def test_live_ends_well_at_a_signal_while_a_pipeline_says_nothing(played: Played) -> None:
    played.write({"frames": 9, "fps": 25, "stall": True})
    assert isinstance(open_live(played.where), LiveSource)
    process = subprocess.Popen(
        [sys.executable, "-m", "mosaic_edge", "live", "--source", played.where, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    number = played._file.with_suffix(".number")
    while process.poll() is None and not (number.exists() and number.read_text() == "9"):
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert json.loads(out)["frames"] >= 1
    assert played.are_gone()
