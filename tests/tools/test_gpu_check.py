"""tools/gpu_check.sh: rehearsed on the CPU from first line to table, with stand-ins for what is not here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "gpu_check.sh"


def build_tree() -> Path:
    """The newest build that has the C++ tests, the bench and the module."""
    built = [
        path.parent for path in ROOT.glob("build/*/kernels_bench") if list(path.parent.glob("_core*.so"))
    ]
    if not built:
        pytest.fail("no build has kernels_bench and _core: run tools/test once, it builds them")
    return max(built, key=lambda tree: (tree / "kernels_bench").stat().st_mtime)


@pytest.fixture
def stand_ins(tmp_path: Path) -> dict[str, str]:
    """cmake and compute-sanitizer that write down how they were called; the latter runs the command."""
    tools = tmp_path / "tools"
    tools.mkdir()
    note = f'echo "$(basename "$0") $*" >>{tmp_path}/called'
    (tools / "cmake").write_text(f"#!/bin/bash\n{note}\n")
    skip = 'while [ "${1#--}" != "$1" ]; do shift 2; done'
    (tools / "compute-sanitizer").write_text(f'#!/bin/bash\n{note}\n{skip}\nexec "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    return {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHON": sys.executable}


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)


def test_a_rehearsal_runs_every_step_and_the_table_comes_last(
    tmp_path: Path, stand_ins: dict[str, str]
) -> None:
    out = tmp_path / "out"
    done = run("--cpu", "--tree", build_tree(), out, **stand_ins)
    assert done.returncode == 0, done.stdout + done.stderr
    called = (tmp_path / "called").read_text().splitlines()
    assert "-DMOSAIC_PYTHON=ON" in called[0]
    assert called[1].startswith("cmake --build")
    checked = sorted(line.split("--tool ")[1].split()[0] for line in called[2:])
    assert checked == ["memcheck", "memcheck", "racecheck", "racecheck"]
    for name in ("tests-kernels", "tests-device", "memcheck-kernels", "racecheck-sessions"):
        assert f"{name} " in done.stdout
    assert "REHEARSAL" in done.stdout
    result = json.loads((out / "gpu.json").read_text())
    assert result["rehearsal"] is True
    rows = result["kernels"]["rows"]
    assert {row["op"] for row in rows} == {"copy", "link", "extent", "attend", "assign"}
    assert all(row["seconds"] > 0 for row in rows)
    streams = result["streams"]
    assert [(row["model"], row["policy"]) for row in streams] == [
        (f"{size}, tiny", policy) for size in ("3B", "7B") for policy in ("full", "rekv", "mosaic")
    ]
    for row in streams:
        assert row["frames"] == row["of_frames"] == 14
        assert sum(row["tokens"].values()) == 2 * row["tokens"]["seen"] > 0
    table = done.stdout[done.stdout.index("REHEARSAL") :]
    for words in ("attend int4", "gather + SDPA", "assign 128 x 128 x 64", "rekv / mosaic", "first token ms"):
        assert words in table


def test_a_test_that_fails_ends_it_and_its_log_is_shown(tmp_path: Path, stand_ins: dict[str, str]) -> None:
    sanitizer = tmp_path / "tools" / "compute-sanitizer"
    sanitizer.write_text(
        '#!/bin/bash\n[ "$2" = memcheck ] || exit 0\necho "Invalid __global__ read"\nexit 9\n'
    )
    done = run("--cpu", "--no-bench", "--tree", build_tree(), tmp_path / "out", **stand_ins)
    assert done.returncode == 1
    assert "Invalid __global__ read" in done.stdout
    assert "FAILED: memcheck-kernels" in done.stderr
    assert "FAILED: racecheck" not in done.stderr
    assert "all passed" not in done.stdout


def test_without_a_gpu_the_real_check_fails_where_it_needs_one(
    tmp_path: Path, stand_ins: dict[str, str]
) -> None:
    done = run("--tree", build_tree(), tmp_path / "out", **stand_ins)
    assert done.returncode == 1
    assert "cuda: not compiled in" in done.stdout or "driver" in done.stdout
    assert "cuda cannot be used here" in done.stderr
    assert not (tmp_path / "out" / "tests-kernels.log").exists()


def test_it_shows_what_it_would_do_and_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    shown = run("--dry-run", tmp_path / "out")
    assert shown.returncode == 0
    assert "would" in shown.stdout
    assert not (tmp_path / "out").exists()
    refused = run("--nonsense")
    assert refused.returncode == 2
    assert "--nonsense" in refused.stderr
    broken = run("--cpu", PYTHON="false")
    assert broken.returncode == 1
    assert "PYTHON=" in broken.stderr
