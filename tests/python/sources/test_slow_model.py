"""A camera at 30 frames a second that stalls, hangs up and restarts its clock, and a model that takes two:
`--camera-seconds 600` is ten minutes of it, whose figures are printed (`-s`).

"Within one frame time" is the model's: when a frame is taken, it is at most as old as the model takes for
one (half a second), so that what is looked at next is what came while the last was. Seconds depend on what
else the machine does and are printed; what is asserted is the same in frames: never as many newer ones were
read as the camera sends in that time.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import slow_live
from fake_camera import Plan, camera

FPS = 30
STALL = {"stall": 600.0}
ENDS_S = 10.0
"""On a machine that does nothing else it is a tenth of a second."""


def plan_of(seconds: int) -> Plan:
    """Four kinds of connection in turn, the last one a camera that stands still."""
    part = {"frames": FPS * max(2, seconds // 12), "fps": FPS}
    kinds: Plan = [
        [part],  # hangs up
        [part, STALL],
        [part, {"clock": 0}, part],  # its clock begins anew while it sends
        [{"clock": 90000 * 86400 * 7}, part, STALL],  # a clock that was on for a week
    ]
    plan, sent = [], 0
    while sent < FPS * seconds:
        plan.append(kinds[len(plan) % len(kinds)])
        sent += sum(int(act.get("frames", 0)) for act in plan[-1])
    return [*plan, [part, STALL]]


def test_a_model_that_takes_two_frames_a_second_of_a_bad_camera_is_shown_the_newest(
    tmp_path: Path, camera_seconds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, log = plan_of(camera_seconds), tmp_path / "sent"
    total = sum(int(act.get("frames", 0)) for acts in plan for act in acts)
    paths = [str(Path(slow_live.__file__).parent), os.environ.get("PYTHONPATH", "")]
    with camera("rtsp", plan, log) as url:
        process = subprocess.Popen(
            [sys.executable, slow_live.__file__, url],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        until = time.monotonic() + 120 + 3 * camera_seconds
        while process.poll() is None and log.stat().st_size < 8 * total and time.monotonic() < until:
            time.sleep(0.2)
        time.sleep(1.2)  # the last is looked at, and the camera says nothing
        process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        out, _ = process.communicate(timeout=60)
        took = time.monotonic() - asked
    assert process.returncode == 0 and took < ENDS_S
    said = json.loads(out)
    assert said["error"] is None and said["reconnects"] == len(plan) - 1
    assert len(said["newer"]) == len(said["looked"])
    assert max(said["newer"]) <= FPS * slow_live.MODEL_S, "read, and older than a frame of the model"
    numbers = np.unwrap([float(n) for n, _, _ in said["looked"]], period=1024).astype(int).tolist()
    assert numbers == sorted(set(numbers))
    assert all(sooner[1] < later[1] for sooner, later in pairwise(said["looked"]))
    assert numbers[-1] >= total - 2, "the newest, when nothing comes any more"
    seen = len(numbers) + said["dropped"]
    assert total - 2 * len(plan) <= seen <= total, "each is looked at or counted, but for those cut short"
    with capsys.disabled():
        print(f"\n{len(plan)} connections, {len(numbers)} looked at, {said['dropped']} dropped")
        print(ages(np.fromfile(log), numbers, [at for _, _, at in said["looked"]]))
        print(f"{np.mean(said['newer']):.2f} newer ones read by then, at most {max(said['newer'])}")
        print(f"SIGTERM to the end {took:.2f} s")


def ages(sent: np.ndarray, numbers: list[int], taken: list[float]) -> str:
    """How old frames were when they were looked at, and how many newer ones had been sent."""
    old = np.array(taken) - sent[numbers]
    behind = np.searchsorted(sent, taken) - 1 - np.array(numbers)
    middle, most, worst = np.percentile(1000 * old, [50, 99, 100])
    return (
        f"{len(sent)} frames sent in {sent[-1] - sent[0]:.0f} s; age when taken {middle:.0f} ms, "
        f"p99 {most:.0f}, at most {worst:.0f}; {np.median(behind):.0f} frames behind, at most {behind.max()}"
    )
