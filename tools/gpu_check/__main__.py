"""`python tools/gpu_check [OPTION]...`: all that needs a GPU, in one command, most worth first.

0 build      for the GPU that is there: bench, C++ tests, Python module; none needs another
1 smoke      the device is found, one attend, a session of 50 frames: answers equal the CPU's
2 contract   the kernels' test suite on CUDA alone, every case that fails named
3 kernels    attend, assign, score beside torch and the measured ceilings
4 sessions   every policy under pressure, pages on disk, refusals, the shape of a 7B model
5 streams    frame and first-token times in the shapes of a 3B and a 7B model
6 profiles   ncu and compute-sanitizer, where the machine lets them

Every stage writes to OUT/results.jsonl when it ends (rows earlier), and a stage that fails stops only what
needs what it should have made. The summary comes last, always. No network is used. The machine has nvcc, g++,
cmake, and Python with numpy, pybind11, pytest and torch; doctest in build/doctest or DOCTEST_INCLUDE_DIR.
`python tools/gpu_check/report.py OUT` makes docs/results/gpu-*.md of what came back.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from importlib import import_module
from pathlib import Path
from types import FrameType, ModuleType

sys.path.insert(0, str(Path(__file__).parent))

from check import ROOT, Check, StageError

STAGES = ("build", "smoke", "contract", "kernels", "sessions", "streams", "profiles")


def stage_numbers(text: str) -> list[int]:
    """Of "1,2": the stages to play; the build belongs to all of them."""
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        numbers = [-1]
    if not all(0 <= number < len(STAGES) for number in numbers):
        raise argparse.ArgumentTypeError(f"got '{text}', expected numbers of 0 to {len(STAGES) - 1}, as 1,2")
    return numbers


def options_of(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = ",".join(str(number) for number in range(len(STAGES)))
    parser.add_argument("--out", type=Path, help="results, few files (default: gpu_check/out of the tree)")
    parser.add_argument("--stages", type=stage_numbers, default=stage_numbers(every), help="as 1,2")
    parser.add_argument("--budget", type=float, help="seconds in all; what will not fit is skipped and said")
    parser.add_argument(
        "--keep-going", action=argparse.BooleanOptionalAction, default=None,
        help="after a failure, all that does not need its result (default on a GPU, not with --cpu)",
    )  # fmt: skip
    parser.add_argument("--cpu", action="store_true", help="a rehearsal: no GPU, tiny sizes, no measurements")
    parser.add_argument("--tree", type=Path, help="build tree (default build/gpu, build/rehearsal)")
    parser.add_argument("--built", type=Path, help="build nothing: what an earlier built.tar.gz holds")
    parser.add_argument("--python", default=sys.executable, help="of the module, the tests and the benches")
    return parser.parse_args(arguments)


def why_not(stage: ModuleType, check: Check) -> str:
    """Why a stage cannot be played now; empty: it can."""
    missing = sorted(set(stage.NEEDS) - check.parts)
    if missing:
        return f"needs {', '.join(missing)}, which the build did not leave"
    least = stage.LEAST_SECONDS if not check.cpu else 1.0
    if check.left() < least:
        return (
            f"needs {least:.0f} s, {max(check.left(), 0):.0f} s of the budget are left (--budget, --stages)"
        )
    return ""


def play(number: int, check: Check) -> bool:
    """One stage, whatever becomes of it: its line of results. True: nothing failed."""
    check.stage = STAGES[number]
    stage = import_module(check.stage)
    began = time.monotonic()
    state, why, tail = "passed", why_not(stage, check), ""
    if why:
        state = "skipped"
    else:
        print(f"== {began - check.began:.0f} s: {number} {check.stage}", flush=True)
        try:
            stage.play(check)
        except StageError as failed:
            state, why, tail = "failed", failed.what, failed.tail
        except Exception as error:  # a fault of ours here must not cost the stages that follow
            state, why = "failed", f"{type(error).__name__}: {error}"
    check.write("stage", number=number, state=state, seconds=round(time.monotonic() - began, 1), why=why)
    check.pack_logs()
    if tail:
        print(tail, flush=True)
    return state != "failed"


def summary(check: Check) -> str:
    """What was found, a screen or two: of a borrowed machine one may see only the end of the output."""
    from report import kernel_table, stream_table

    machine = next(iter(check.rows(line="machine")), {})
    text = ["", str(machine.get("device", "no device was found")), ""]
    if check.cpu:
        text.insert(1, "REHEARSAL on the CPU with tiny sizes: these are no measurements")
    text += kernel_table(check.lines) + stream_table(check.lines) + [""]
    for row in check.rows(line="failed"):
        text.append(f"FAILED {row['stage']}: {row['case']}")
    for row in check.rows(line="profile"):
        if not row["good"]:
            text.append(f"{row['tool']} {row['of']}: {row['why']}")
    for row in check.rows(line="stage"):
        why = f"  {row['why']}" if row["why"] else ""
        text.append(f"{row['number']} {row['stage']:<9} {row['state']:<8}{row['seconds']:>6.0f} s{why}")
    played = {row["number"] for row in check.rows(line="stage")}
    text += [f"{number} {name:<9} not played" for number, name in enumerate(STAGES) if number not in played]
    return "\n".join(text)


def end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # so that the summary is printed


def main(arguments: list[str]) -> int:
    given = options_of(arguments)
    tree = (given.built or given.tree or ROOT / ("build/rehearsal" if given.cpu else "build/gpu")).resolve()
    keep_going = given.keep_going if given.keep_going is not None else not given.cpu
    work = given.tree.resolve() if given.built and given.tree else tree
    check = Check(
        tree=work, out=(given.out or work / "gpu_check/out").resolve(), python=given.python, cpu=given.cpu,
        budget=given.budget,
    )  # fmt: skip
    for folder in (check.work, check.out):
        folder.mkdir(parents=True, exist_ok=True)
    (check.out / "results.jsonl").unlink(missing_ok=True)
    signal.signal(signal.SIGTERM, end)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    good = True
    try:
        import build

        good = build.adopt(check, tree) if given.built else play(0, check)
        for number in (number for number in given.stages if number > 0):
            if not good and not keep_going:
                break
            good = play(number, check) and good
    finally:
        text = summary(check)
        (check.out / "summary.txt").write_text(text + "\n")
        print(text, flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
