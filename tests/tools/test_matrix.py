"""tools/matrix: what it would do with each version of transformers, and that a failure of one is its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(
    *arguments: str, script: str = "tools/matrix", **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)


def test_the_plan_has_three_versions_and_every_test_that_meets_transformers() -> None:
    shown = run("--matrix", "--dry-run", script="tools/test", PYTHON="")
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[0] == "would run: tools/setup dev"
    assert [line for line in lines if line.startswith("==")] == [
        f"== transformers {version}" for version in ("4.57", "5.2", "newest")
    ]
    installs = [line.rsplit(" ", 1)[1] for line in lines if " install " in line]
    assert installs == ["transformers==4.57.*", "transformers==5.2.*", "transformers"]
    runs = [line for line in lines if " -m pytest " in line]
    assert len(runs) == 3
    for line in runs:
        for name in ("hf/test_vlm.py", "hf/test_load.py", "hf/test_sessions.py", "models/test_frames.py"):
            assert f"tests/python/{name}" in line
            assert (ROOT / "tests" / "python" / name).is_file()


@pytest.mark.parametrize("argument", ["--nonsense", "main", "5"])
def test_what_is_no_version_is_refused_before_anything_is_done(argument: str) -> None:
    refused = run("--matrix", argument, script="tools/test")
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert f"got '{argument}', expected a version" in refused.stderr


def test_a_version_that_fails_is_named_after_the_others_have_run(tmp_path: Path) -> None:
    """With a stand-in for every interpreter: it writes down its calls and fails the tests of one version."""
    tree = tmp_path / "tree"
    (tree / "tools").mkdir(parents=True)
    (tree / "tools" / "matrix").write_text((ROOT / "tools" / "matrix").read_text())
    python = tmp_path / "python"
    python.write_text(
        f"""#!/bin/bash
echo "$*" >>{tmp_path}/called
case $* in
  "-m venv"*) mkdir -p "${{@: -1}}/bin"; cp "$0" "${{@: -1}}/bin/python" ;;
  *purelib*) mkdir -p "$(dirname "$0")/site"; echo "$(dirname "$0")/site" ;;
  *pytest*) [[ $0 != *4.9* ]] ;;
esac
"""
    )
    for script in (tree / "tools" / "matrix", python):
        script.chmod(0o755)
    done = subprocess.run(
        [str(tree / "tools" / "matrix"), "4.8", "4.9", "newest"],
        capture_output=True, text=True, env=os.environ | {"PYTHON": str(python)}, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "tools/matrix: FAILED with transformers 4.9"
    called = (tmp_path / "called").read_text().splitlines()
    assert sum("-m pytest" in call for call in called) == 3
    shown = (tree / "build/matrix/4.9/bin/site/behind.pth").read_text()
    assert shown == f"import site; site.addsitedir('{tmp_path}/site')\n"
