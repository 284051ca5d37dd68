"""Stage 1: the device is there and computes: one attend and a session of 50 frames, as on the CPU."""

from __future__ import annotations

import device_tests
from check import Check

NEEDS = ("module",)
LEAST_SECONDS = 15.0


def play(check: Check) -> None:
    device_tests.play(check, "test_smoke.py", limit=90.0)
