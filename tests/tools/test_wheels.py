"""tools/wheels: what it would build and try with the Pythons at hand; what the source distribution has, what
the metadata says and what the module of a wheel asks for.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from scikit_build_core import build

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

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


def test_unless_it_is_told_otherwise_every_python_of_the_project_has_a_wheel_of_every_architecture(
    tmp_path: Path,
) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    prefix = "Programming Language :: Python :: "
    versions = [line.removeprefix(prefix) for line in project["classifiers"] if line.startswith(prefix)]
    for version in versions:
        interpreter(tmp_path, f"{version}.1")
    shown = plan("--no-test", pyenv=tmp_path)
    tags = [f"cp{v.replace('.', '')}-cp{v.replace('.', '')}-manylinux_2_28" for v in versions]
    assert [line.split()[2] for line in shown.stdout.splitlines()] == [
        f"{tag}_{arch}" for arch in ("x86_64", "aarch64") for tag in tags
    ]


def test_the_metadata_admits_the_oldest_python_that_has_a_wheel_and_none_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    folder = tmp_path / build.prepare_metadata_for_build_wheel(str(tmp_path))
    metadata = message_from_bytes((folder / "METADATA").read_bytes())
    named = [re.search(r"3\.(\d+)$", line) for line in metadata.get_all("Classifier")]
    minors = [int(found[1]) for found in named if found]
    assert minors == list(range(minors[0], minors[0] + len(minors)))
    assert metadata["Requires-Python"] == f">=3.{minors[0]}"


def test_a_python_that_is_missing_or_cannot_build_is_left_out_with_the_reason(tmp_path: Path) -> None:
    bare = interpreter(tmp_path, "3.10.1", without="ensurepip")
    short = interpreter(tmp_path, "3.11.1", without="Python.h")
    interpreter(tmp_path, "3.12.1")
    shown = plan("--python", "3.10,3.11,3.12,3.19", "--arch", OWN, pyenv=tmp_path)
    assert shown.returncode == 0, shown.stderr
    *lines, last = shown.stdout.splitlines()
    assert [line for line in lines if "312" not in line and "3.12" not in line] == []
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
    assert "would try the source distribution, Python 3.12 compiled in a fresh environment" in shown.stdout
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


MODULE = "int PyInit__core(void) { return %s; }\n"


def look_at(wheel: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools/module_symbols.py"), str(wheel), sys.executable]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def small_wheel(folder: Path, source: str, *, arch: str = OWN, minor: int = sys.version_info.minor) -> Path:
    """One whose module is compiled from `source` for this machine, whatever its name says."""
    (folder / "core.c").write_text(source)
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None
    flags = ["-shared", "-fPIC", "-o", str(folder / "core.so")]
    subprocess.run([compiler, *flags, str(folder / "core.c")], check=True)
    wheel = folder / f"mosaic_edge-0-cp3{minor}-cp3{minor}-manylinux_2_28_{arch}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(folder / "core.so", f"mosaic_edge/_core.cpython-3{minor}-{arch}-linux-gnu.so")
    return wheel


def test_a_module_that_asks_for_what_its_python_has_is_taken(tmp_path: Path) -> None:
    source = "extern int PyGILState_Check(void);\n" + MODULE % "PyGILState_Check()"
    looked = look_at(small_wheel(tmp_path, source))
    assert (looked.returncode, looked.stderr) == (0, "")


def test_a_module_that_asks_for_what_its_python_does_not_have_is_refused_by_the_names(tmp_path: Path) -> None:
    source = "extern int PyNo_Such, _PyNor_This(void);\n" + MODULE % "PyNo_Such + _PyNor_This()"
    looked = look_at(small_wheel(tmp_path, source))
    assert looked.returncode == 1
    assert re.search(r"asks for (PyNo_Such, _PyNor_This|_PyNor_This, PyNo_Such), which", looked.stderr)


def test_a_module_that_hands_out_more_than_its_entry_is_refused(tmp_path: Path) -> None:
    looked = look_at(small_wheel(tmp_path, "int a_symbol_of_the_core;\n" + MODULE % "0"))
    assert looked.returncode == 1
    assert "a_symbol_of_the_core" in looked.stderr


def test_a_wheel_named_for_another_machine_or_python_than_its_module_is_refused(
    tmp_path: Path,
) -> None:
    foreign = look_at(small_wheel(tmp_path, MODULE % "0", arch=FOREIGN))
    assert (foreign.returncode, "its module is not for " + FOREIGN in foreign.stderr) == (1, True)
    wheel = small_wheel(tmp_path, MODULE % "0")
    minor = sys.version_info.minor
    other = look_at(wheel.rename(tmp_path / wheel.name.replace(f"cp3{minor}", f"cp3{minor + 1}")))
    assert other.returncode == 1
    assert f"_core.cpython-3{minor}-{OWN}-linux-gnu.so" in other.stderr
