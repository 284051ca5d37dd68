"""Stage 4: sessions: every policy under pressure, pages on disk, refusals, a 7B shape at 16k tokens."""

from __future__ import annotations

import device_tests
from check import Check

NEEDS = ("module",)
LEAST_SECONDS = 25.0


def play(check: Check) -> None:
    # A rehearsal plays what shows that the path works; the CPU's own tests have the rest of it.
    few = ("-k", "shape or refused_whole") if check.cpu else ()
    device_tests.play(check, "test_sessions.py", 180.0, *few)
    if not check.cpu:
        device_tests.play(check, "test_arrays.py", 60.0)
