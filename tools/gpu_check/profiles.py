"""Stage 6: what limits attend, assign and score (ncu), and sanitizers; each where the machine has it."""

from __future__ import annotations

import shutil
from pathlib import Path

from check import Check, Done, StageError

NEEDS = ("bench",)
LEAST_SECONDS = 30.0
NCU_SECONDS = 60.0
SANITIZER_SECONDS = 120.0
FOUND = 9
# The sections that name the limiter; the clocks are left as they are.
SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "WarpStateStats", "Occupancy", "LaunchStats")
KERNELS = (
    "tensor_kernel",
    "combine_kernel",
    "assign_kernel",
    "dot_kernel",
)  # attend, its join, assign, score
SANITIZED = "attend_test"  # of the contract suite; the kernels share the rest of their code with it


def find(tool: str) -> str | None:
    return shutil.which(tool) or next(
        (str(path) for path in (Path("/usr/local/cuda/bin") / tool,) if path.exists()), None
    )


def note(check: Check, tool: str, of: str, done: Done, limit: float) -> bool:
    """A line of results. True: it ran to a good end."""
    why = "" if done.code == 0 else done.ended(limit)
    check.write("profile", tool=tool, of=of, good=not why, seconds=round(done.seconds, 1), why=why)
    return not why


def profile(check: Check, ncu: str) -> None:
    """One launch of each kernel. A machine that does not let ncu count is no fault of ours."""
    for kernel in KERNELS:
        sections = [word for section in SECTIONS for word in ("--section", section)]
        options = [
            "--clock-control",
            "none",
            "--kernel-name",
            f"regex:^{kernel}",
            "--launch-count",
            "1",
            "--csv",
        ]
        command = [ncu, *options, *sections, check.tree / "kernels_bench", check.kernels, "--once"]
        if not note(check, "ncu", kernel, check.run(f"ncu-{kernel}", command, NCU_SECONDS), NCU_SECONDS):
            return  # it lets none


def sanitize(check: Check, sanitizer: str) -> list[str]:
    """One tool at a time. What they find ends with FOUND; all else is a machine that does not let them."""
    faults = []
    for tool in ("memcheck", "racecheck"):
        # A rehearsal takes one case that is quick on the shim.
        cases = ["--test-case=*no later one*"] if check.cpu else []
        program = [check.tree / "mosaic_tests", f"--source-file=*backend/{SANITIZED}.cc", *cases]
        command = [sanitizer, "--tool", tool, "--error-exitcode", FOUND, *program]
        done = check.run(tool, command, SANITIZER_SECONDS)
        note(check, tool, SANITIZED, done, SANITIZER_SECONDS)
        if done.code == FOUND:
            faults.append(f"{tool} found something: {tool}.log\n{done.tail()}")
    return faults


def play(check: Check) -> None:
    faults: list[str] = []
    ncu, sanitizer = find("ncu"), find("compute-sanitizer")
    for tool, found in (("ncu", ncu), ("compute-sanitizer", sanitizer)):
        if found is None:
            check.write("profile", tool=tool, of="", good=None, seconds=0, why="not on this machine")
    if ncu is not None:
        profile(check, ncu)
    if sanitizer is not None and "tests" in check.parts:
        faults += sanitize(check, sanitizer)
    if faults:
        raise StageError("; ".join(faults))
