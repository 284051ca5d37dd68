"""Without PyAV: OpenCV reads files and cameras, GStreamer cameras; without any of them one line says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fake_camera

MATERIAL = Path(fake_camera.__file__).parent
BEFORE = """
import json, sys
sys.modules["av"] = None
if not {cv2}:
    sys.modules["cv2"] = None
from mosaic_edge.sources import LiveSource, SourceError, open_live, open_source
def seen(source):
    return [[frame.image[0, 0].tolist(), round(frame.pts, 3), frame.index] for frame in source]
"""


def run(code: str, cv2: bool = True, **environment: str) -> object:
    """What `code` printed as JSON, in an interpreter that has no PyAV."""
    paths = [
        str(MATERIAL / "fake_opencv"),
        *([os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []),
    ]
    done = subprocess.run(
        [sys.executable, "-c", BEFORE.format(cv2=cv2) + code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def clip(tmp_path: Path) -> str:
    numbers = np.arange(50)
    numbers[13] = -1  # does not decode
    np.save(tmp_path / "clip.npy", numbers)
    return str(tmp_path / "clip.npy")


def test_opencv_reads_files_in_rgb_at_a_rate_and_between_two_times(clip: str) -> None:
    code = f"""
import cv2
whole = seen(open_source({clip!r}))
part = seen(open_source({clip!r}, fps=5.0, start=0.4, end=1.01))
print(json.dumps([whole, part, cv2.opened[0]]))
"""
    whole, part, opened = run(code)  # type: ignore[misc]
    numbers = [n for n in range(50) if n != 13]
    assert whole == [[[n, n, 7], round(n / 25, 3), i] for i, n in enumerate(numbers)]
    assert part == [[[n, n, 7], n / 25, i] for i, n in enumerate([10, 15, 20, 25])]
    assert opened == [clip, 1900, "protocol_whitelist;file,crypto,data"], "a playlist connects to nobody"


def test_opencv_says_of_a_file_what_is_wrong_with_it(clip: str, tmp_path: Path) -> None:
    (tmp_path / "no.mp4").write_bytes(b"no video")
    code = f"""
said = []
for where in [{clip!r}, {str(tmp_path / "no.mp4")!r}, {str(tmp_path)!r}]:
    try:
        seen(open_source(where, start=9.0))
    except SourceError as error:
        said.append(error.cause)
print(json.dumps(said))
"""
    assert run(code) == [
        "start=9: its last frame is at 1.96 s",
        "not a readable video (OpenCV does not say why)",
        "it is a directory, not a video file",
    ]


def test_opencv_reads_streams_with_timeouts_and_what_broke_is_counted(clip: str) -> None:
    code = f"""
import cv2
source = LiveSource("tcp://{clip}", 5.0, connect_s=2.5, read_s=3.0, give_up_s=0.1)
frames = seen(source)
print(json.dumps([frames, source.stats().broken, cv2.opened[0]]))
"""
    frames, broken, opened = run(code)  # type: ignore[misc]
    assert [frame[0][0] for frame in frames] == list(range(0, 50, 5))
    assert broken == 1
    assert opened[1:3] == [1900, [53, 2500, 54, 3000]]


def test_gstreamer_reads_cameras_where_there_is_neither(tmp_path: Path) -> None:
    program = tmp_path / "gst-launch-1.0"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/said\necho "ERROR: from element /a: no signal" >&2\nexit 1\n'
    )
    program.chmod(0o755)
    code = """
said = []
for where in ["rtsp://127.0.0.1:9/a b", "/dev/null"]:
    try:
        seen(LiveSource(where, give_up_s=0.1))
    except SourceError as error:
        said.append(error.cause)
print(json.dumps(said))
"""
    said = run(code, cv2=False, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert said == ["no frame in 0 s of trying (no signal)", "no signal"]
    lines = (tmp_path / "said").read_text().splitlines()
    assert lines[0].startswith("-v uridecodebin uri=rtsp://127.0.0.1:9/a b ! videoconvert ! ")
    assert lines[-1].startswith("-v filesrc location=/dev/null ! decodebin ! videoconvert ! ")


def test_a_machine_that_reads_no_video_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    code = f"""
said = []
for where in [{str(tmp_path / "a.mp4")!r}, "rtsp://127.0.0.1:9/a"]:
    try:
        seen(open_live(where, give_up_s=0.1))
    except (SourceError, ImportError) as error:
        said.append(str(error))
print(json.dumps(said))
"""
    said = run(code, cv2=False, PATH="/nowhere")
    assert all("pip install av, or opencv-python-headless" in line for line in said)  # type: ignore[union-attr]
    assert len(said) == 2  # type: ignore[arg-type]
