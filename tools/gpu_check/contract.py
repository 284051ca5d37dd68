"""Stage 2: the kernels' contract suite on CUDA alone, a process a file: one crash costs one file."""

from __future__ import annotations

from check import ROOT, Check, StageError, cases_of

NEEDS = ("tests",)
LEAST_SECONDS = 25.0
LIMIT = 90.0  # of a file
CPU_ONLY = ("cpu_sets_test", "shim_test")


def files() -> list[str]:
    """The suites that run over `implementations()`, attention first."""
    return sorted(
        path.stem for path in (ROOT / "tests/cpp/backend").glob("*_test.cc") if path.stem not in CPU_ONLY
    )


def play(check: Check) -> None:
    faults = []
    for file in files()[: 1 if check.cpu else None]:
        report = check.work / f"contract-{file}.xml"
        report.unlink(missing_ok=True)
        # A rehearsal takes one case that is quick on the shim.
        cases = ["--test-case=*no later one*"] if check.cpu else []
        command = [check.tree / "mosaic_tests", f"--source-file=*backend/{file}.cc", *cases]
        done = check.run(f"contract-{file}", [*command, "--reporters=junit", f"--out={report}"], LIMIT)
        ran, bad = cases_of(report)
        for case in bad:
            check.write("failed", case=f"{file}: {case}")
        check.write("tests", file=file, cases=ran, failed=len(bad), seconds=round(done.seconds, 1))
        if done.code != 0 or ran == 0:
            faults.append(f"{file}: {f'{len(bad)} of {ran} cases' if bad else done.ended(LIMIT)}")
            tail = done.tail()
    if faults:
        raise StageError("; ".join(faults), tail)
