"""tools/wheels: what it would build and try with the Pythons at hand; what the source distribution has."""

from __future__ import annotations

import os
import platform
import subprocess
import tarfile
from pathlib import Path

import pytest
from scikit_build_core import build

ROOT = Path(__file__).resolve().parents[2]
OWN, FOREIGN = sorted(("x86_64", "aarch64"), key=lambda name: name != platform.machine())


def plan(*arguments: str, pyenv: Path) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "tools/wheels"), "--dry-run", *arguments]
    environment = os.environ | {"PYENV_ROOT": str(pyenv)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def interpreter(pyenv: Path, release: str, without: str = "nothing") -> Path:
    """A stand-in that fails when it is asked about one thing."""
    path = pyenv / "versions" / release / "bin" / f"python{release.rpartition('.')[0]}"
    path.parent.mkdir(parents=True)
    path.write_text(f'#!/bin/bash\n[[ "$*" != *{without}* ]]\n')
    path.chmod(0o755)
    return path


def test_each_python_has_a_wheel_of_each_architecture_built_by_its_newest_release(
    tmp_path: Path,
) -> None:
    interpreter(tmp_path, "3.12.9")
    newest = interpreter(tmp_path, "3.12.10")
    other = interpreter(tmp_path, "3.13.0")
    shown = plan("--no-test", "--python", "3.12,3.13", "--arch", "x86_64,aarch64", pyenv=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines() == [
        f"would build cp{digits}-cp{digits}-manylinux_2_28_{arch} with the headers of {python}"
        for arch in ("x86_64", "aarch64")
        for digits, python in (("312", newest), ("313", other))
    ]


def test_a_python_that_is_missing_or_cannot_build_is_left_out_with_the_reason(tmp_path: Path) -> None:
    bare = interpreter(tmp_path, "3.10.1", without="ensurepip")
    short = interpreter(tmp_path, "3.11.1", without="Python.h")
    interpreter(tmp_path, "3.12.1")
    shown = plan("--python", "3.10,3.11,3.12,3.19", "--arch", OWN, pyenv=tmp_path)
    assert shown.returncode == 0, shown.stderr
    *lines, last = shown.stdout.splitlines()
    assert [line for line in lines if "312" not in line] == []
    assert last == (
        f"== left out: Python 3.10 ({bare} has no venv), 3.11 ({short} has no headers), 3.19 (there is none)"
    )


def test_a_foreign_wheel_is_tried_where_debian_has_its_python_and_else_said_not_to_be(tmp_path: Path) -> None:
    for release in ("3.11.1", "3.12.1"):
        interpreter(tmp_path, release)
    shown = plan("--test", "--python", "3.11,3.12", "--arch", f"{OWN},aarch64", pyenv=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert f"would try cp311 {OWN} in a fresh environment" in shown.stdout
    assert "would build" not in shown.stdout
    if FOREIGN == "aarch64":
        assert "would try cp311 aarch64 under qemu with the Python of Debian bookworm" in shown.stdout
        assert "cp312 aarch64: not run: Debian has no Python 3.12 for arm64" in shown.stdout


@pytest.mark.parametrize(
    ("option", "value"), [("--python", "2.7"), ("--python", "three"), ("--arch", "riscv64")]
)
def test_what_is_no_version_or_architecture_is_refused_before_anything_is_done(
    option: str, value: str, tmp_path: Path
) -> None:
    interpreter(tmp_path, "3.12.1")
    refused = plan("--python", "3.12", option, value, pyenv=tmp_path)
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert f"got {option} '{value}'" in refused.stderr


def test_the_source_distribution_has_what_installing_takes_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with tarfile.open(tmp_path / build.build_sdist(str(tmp_path))) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml"}
    for folder in ("cpp", "python/mosaic_edge", "jetson/profiles"):
        needed |= {
            str(path.relative_to(ROOT))
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and path.suffix not in (".pyc", ".so")
        }
    assert inside == needed | {"PKG-INFO"}
