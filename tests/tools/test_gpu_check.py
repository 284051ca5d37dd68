"""tools/gpu_check: rehearsed on the CPU from first line to summary, with stand-ins for what is not here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What one case of the contract suite writes when it fails, as doctest's JUnit reporter has it.
FAILING_SUITE = """#!/bin/bash
for word in "$@"; do case $word in --out=*) out=${word#--out=} ;; esac; done
cat >"$out" <<'XML'
<?xml version="1.0" encoding="UTF-8"?>
<testsuites><testsuite name="mosaic_tests" errors="0" failures="2" tests="3">
<testcase classname="attend_test.cc" name="planted: a key is rotated twice"><failure message="no"/></testcase>
<testcase classname="attend_test.cc" name="this one passes" time="0"/>
<testcase classname="attend_test.cc" name="planted: a sum is short"><failure message="no"/></testcase>
</testsuite></testsuites>
XML
echo "planted: CHECK( 1 == 2 ) is NOT correct!"
exit 1
"""


def build_tree() -> Path:
    """The newest build that has the C++ tests, the bench and the module."""
    built = [
        path.parent for path in ROOT.glob("build/*/kernels_bench") if list(path.parent.glob("_core*.so"))
    ]
    if not built:
        pytest.fail("no build has kernels_bench and _core: run tools/test once, it builds them")
    return max(built, key=lambda tree: (tree / "kernels_bench").stat().st_mtime)


def built_with(folder: Path, suite: str | None = None) -> Path:
    """A folder for --built: what was built, but for another mosaic_tests."""
    folder.mkdir()
    for path in (build_tree() / "kernels_bench", *build_tree().glob("_core*.so")):
        (folder / path.name).symlink_to(path)
    if suite is None:
        (folder / "mosaic_tests").symlink_to(build_tree() / "mosaic_tests")
    else:
        program(folder / "mosaic_tests", suite)
    return folder


def program(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@dataclass
class Checked:
    """A run of tools/gpu_check that ended, and what it left."""

    code: int
    text: str
    out: Path

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / "results.jsonl").read_text().splitlines()]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["line"] == kind]

    @property
    def states(self) -> dict[str, str]:
        return {line["stage"]: line["state"] for line in self.of("stage")}


def check(folder: Path, *arguments: object, **environment: str) -> Checked:
    out = folder / "out"
    command = [sys.executable, ROOT / "tools/gpu_check", "--tree", folder / "tree", "--out", out, *arguments]
    made = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""} | environment
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=made, check=False)
    return Checked(done.returncode, done.stdout + done.stderr, out)


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of tools/gpu_check by their names, as they find each other."""
    monkeypatch.syspath_prepend(str(ROOT / "tools/gpu_check"))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Checked:
    """All stages, of which the second has two cases that fail."""
    folder = tmp_path_factory.mktemp("planted")
    return check(folder, "--cpu", "--keep-going", "--built", built_with(folder / "built", FAILING_SUITE))


def test_a_failure_in_stage_2_still_gives_stages_3_to_6(planted: Checked) -> None:
    assert planted.code == 1
    wanted = {"build": "adopted", "smoke": "passed", "contract": "failed"}
    assert planted.states == wanted | dict.fromkeys(("kernels", "sessions", "streams", "profiles"), "passed")
    assert {row["case"] for row in planted.of("failed")} == {
        "attend_test: planted: a key is rotated twice",
        "attend_test: planted: a sum is short",
    }
    assert "CHECK( 1 == 2 ) is NOT correct" in planted.text


def test_the_kernels_and_the_streams_are_rows_with_their_peers(planted: Checked) -> None:
    rows = planted.of("row")
    kernels = [row for row in rows if row["op"] != "stream"]
    assert {row["op"] for row in kernels} == {"copy", "link", "extent", "attend", "assign", "score"}
    assert all(row["seconds"] > 0 for row in kernels)
    assert all(row["sdpa_seconds"] > 0 for row in kernels if row["op"] == "attend")
    assert all(row["torch_seconds"] > 0 for row in kernels if row["op"] in ("assign", "score"))
    streams = [row for row in rows if row["op"] == "stream"]
    assert [(row["model"], row["policy"]) for row in streams] == [
        (f"{size}, tiny", policy) for size in ("3B", "7B") for policy in ("edge", "rekv", "full", "mosaic")
    ]
    for row in streams:
        assert row["frames"] == row["of_frames"] == 14
        assert sum(row["tokens"].values()) == 2 * row["tokens"]["seen"] > 0
        assert row["first_token_seconds_by_frames"]["14"] > 0


def test_the_summary_comes_last_and_says_what_failed(planted: Checked) -> None:
    end = planted.text[planted.text.index("REHEARSAL") :]
    assert (planted.out / "summary.txt").read_text().strip() in planted.text
    for words in (
        "attend int4",
        "7B, tiny: first token after 14 frames, rekv / edge",
        "FAILED contract",
        "2 contract",
    ):
        assert words in end
    assert end.rstrip().splitlines()[-1].startswith("6 profiles")


def test_few_files_come_back_and_the_logs_are_in_one(planted: Checked) -> None:
    assert sorted(path.name for path in planted.out.iterdir()) == [
        "logs.tar.gz",
        "results.jsonl",
        "summary.txt",
    ]
    with tarfile.open(planted.out / "logs.tar.gz") as tar:
        names = set(tar.getnames())
    assert {
        "logs/contract-attend_test.log",
        "logs/kernels.log",
        "logs/test_smoke.xml",
        "logs/streams.log",
    } <= names


def test_without_keep_going_a_failure_ends_it_and_the_real_suite_is_rehearsed(tmp_path: Path) -> None:
    built = built_with(tmp_path / "built")
    (tmp_path / "built" / "kernels_bench").unlink()
    program(tmp_path / "built" / "kernels_bench", "#!/bin/bash\necho out of memory >&2\nexit 1\n")
    done = check(tmp_path, "--cpu", "--stages", "2,3,4", "--built", built)
    assert done.code == 1
    assert done.states == {"build": "adopted", "contract": "passed", "kernels": "failed"}
    assert done.of("tests") == [done.of("tests")[0] | {"file": "attend_test", "cases": 1, "failed": 0}]
    assert "out of memory" in done.text
    assert "4 sessions  not played" in done.text


def test_a_build_that_fails_costs_only_what_it_did_not_leave(tmp_path: Path) -> None:
    # CMake that never finds doctest, and a compiler that leaves the bench alone.
    tools = tmp_path / "tools"
    called = tmp_path / "called"
    bench = built_with(tmp_path / "built") / "kernels_bench"
    program(
        tools / "cmake",
        f'#!/bin/bash\necho "$*" >>{called}\n'
        '[[ $* == *-DMOSAIC_TESTS=ON* ]] && { echo "doctest/doctest.h was not found"; exit 1; }\n'
        f"[[ $1 != --build ]] || {{ ln -s {bench} {tmp_path}/tree/; exit 1; }}\n",
    )
    path = f"{tools}:{os.environ['PATH']}"
    done = check(tmp_path, "--cpu", "--keep-going", "--stages", "1,2", PATH=path)
    assert done.code == 1
    assert done.states == {"build": "failed", "smoke": "skipped", "contract": "skipped"}
    why = {line["stage"]: line["why"] for line in done.of("stage")}
    assert "module, tests" in why["build"]
    assert "needs module" in why["smoke"]
    assert "doctest/doctest.h was not found" in done.text
    first, second, build = called.read_text().splitlines()[:3]
    assert "-DMOSAIC_TESTS=ON" in first and "-DMOSAIC_WERROR=OFF" in first
    assert "-DMOSAIC_TESTS=OFF" in second and "-DMOSAIC_PYTHON=ON" in second
    assert build.startswith("--build") and "-k" in build


def test_what_does_not_fit_the_budget_is_skipped_and_said(tmp_path: Path) -> None:
    done = check(tmp_path, "--cpu", "--budget", "3.5", "--built", built_with(tmp_path / "built"))
    assert done.code == 0
    assert set(done.states.values()) == {"adopted", "skipped"}
    assert "of the budget are left" in done.text


def test_a_command_that_never_ends_is_ended_and_its_log_is_kept(tmp_path: Path, modules: None) -> None:
    from check import Check

    (tmp_path / "tree/gpu_check").mkdir(parents=True)
    one = Check(tmp_path / "tree", tmp_path, sys.executable, cpu=True, budget=None)
    done = one.run("hangs", ["bash", "-c", "sleep 600 & wait"], 1.0)
    assert done.timed_out and done.code == -signal.SIGKILL
    assert done.ended(1) == "no end after 1 s"
    assert done.tail() == "$ bash -c sleep 600 & wait"


def test_sanitizers_that_find_something_fail_and_machines_that_refuse_them_do_not(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    program(tools / "ncu", '#!/bin/bash\necho "ERR_NVGPUCTRPERM"\nexit 1\n')
    program(
        tools / "compute-sanitizer",
        '#!/bin/bash\n[ "$2" = memcheck ] || { echo "Device not supported"; exit 255; }\n'
        'echo "Invalid __global__ read"\nexit 9\n',
    )
    path = f"{tools}:{os.environ['PATH']}"
    done = check(tmp_path, "--cpu", "--stages", "6", "--built", built_with(tmp_path / "built"), PATH=path)
    assert done.states["profiles"] == "failed"
    assert "memcheck found something" in done.text and "Invalid __global__ read" in done.text
    why = {line["tool"]: line["why"] for line in done.of("profile")}
    assert why == {"ncu": "ended with 1", "memcheck": "ended with 9", "racecheck": "ended with 255"}
    assert len(done.of("profile")) == 3  # what the machine does not allow once it is not asked again


def test_without_a_gpu_the_real_check_says_so_and_still_ends_with_the_summary(tmp_path: Path) -> None:
    done = check(tmp_path, "--stages", "1", "--built", built_with(tmp_path / "built"))
    assert done.code == 1
    assert done.states["smoke"] == "failed"
    assert "cuda is needed, but" in done.text
    assert len(done.of("failed")) == 2


def test_what_it_does_not_know_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    for arguments, words in ((["--nonsense"], "--nonsense"), (["--stages", "1,9"], "numbers of 0 to 6")):
        done = check(tmp_path, *arguments)
        assert done.code == 2
        assert words in done.text
    assert not (tmp_path / "out").exists()
