"""Files of tests/device under pytest, every failing case a line of results."""

from __future__ import annotations

from check import Check, StageError, cases_of


def play(check: Check, file: str, limit: float, *options: str) -> None:
    report = check.work / f"{file.removesuffix('.py')}.xml"
    report.unlink(missing_ok=True)
    command = [check.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *options]
    done = check.run(report.stem, [*command, f"tests/device/{file}"], limit)
    ran, bad = cases_of(report)
    for case in bad:
        check.write("failed", case=case)
    check.write("tests", file=file, cases=ran, failed=len(bad), seconds=round(done.seconds, 1))
    if done.code != 0 or ran == 0:
        why = f"{len(bad)} of {ran} cases" if bad else f"{file}: {done.ended(limit)}"
        raise StageError(why, done.tail())
