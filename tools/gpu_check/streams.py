"""Stage 5: frame time and first-token time over an hour of video, in the shapes of a 3B and a 7B model."""

from __future__ import annotations

import benches
from check import Check

NEEDS = ("module",)
LEAST_SECONDS = 60.0


def play(check: Check) -> None:
    # A stream that does not come to its end in its share is compared where all of them have been.
    seconds = max(40.0, min(check.left(), 420.0) - 60.0)
    benches.play(check, "streams", 420.0, "--seconds", f"{seconds:.0f}")
