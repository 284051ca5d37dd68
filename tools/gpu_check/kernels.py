"""Stage 3: the kernels' times beside torch and the ceilings that the same run measured."""

from __future__ import annotations

import benches
from check import Check

NEEDS = ("bench",)
LEAST_SECONDS = 40.0


def play(check: Check) -> None:
    benches.play(check, "kernels", 150.0, "--bench", str(check.tree / "kernels_bench"))
