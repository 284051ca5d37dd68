"""cpp/policy/policies.cmake: policies are listed by what stands in their files; odd lines stop the build."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LISTING = ROOT / "cpp" / "policy" / "policies.cmake"
LINE = 'MOSAIC_POLICY("{name}", make_{stem}) {{\n'

CMAKE = shutil.which("cmake", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
"""Beside this Python, or on the path; without it nothing here is built."""


def configured(folder: Path, files: dict[str, str]) -> tuple[list[str], str]:
    """policies.def of a project with these files in cpp/policy, by line, and what CMake complained of."""
    sources = folder / "cpp" / "policy"
    sources.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (sources / name).write_text(text)
    (folder / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.22)\nproject(listing LANGUAGES NONE)\n"
        "file(GLOB MOSAIC_CORE_SOURCES ${PROJECT_SOURCE_DIR}/cpp/policy/*.cc)\n"
        f"include({LISTING.as_posix()})\n"
    )
    build = folder / "build"
    assert CMAKE is not None
    ran = subprocess.run(
        [CMAKE, "-S", str(folder), "-B", str(build)], capture_output=True, text=True, check=False
    )
    listed = build / "generated" / "policy" / "policies.def"
    return listed.read_text().split("\n")[:-1] if listed.is_file() else [], ran.stderr


def test_every_file_with_the_line_is_listed_by_name(tmp_path: Path) -> None:
    files = {
        "window.cc": "// newest frames\n" + LINE.format(name="window", stem="window") + "}\n",
        "lru_k.cc": LINE.format(name="lru-k", stem="lru_k") + "}\n",
        "clustering.cc": "int none;\n",
    }
    listed, complaint = configured(tmp_path, files)
    assert listed == ['MOSAIC_LISTED("lru-k", make_lru_k)', 'MOSAIC_LISTED("window", make_window)']
    assert complaint == ""


def test_a_policy_that_is_added_or_renamed_is_seen_at_the_next_build(tmp_path: Path) -> None:
    configured(tmp_path, {"window.cc": LINE.format(name="window", stem="window")})
    listed, _ = configured(tmp_path, {"window.cc": LINE.format(name="newest", stem="window")})
    assert listed == ['MOSAIC_LISTED("newest", make_window)']


@pytest.mark.parametrize(
    "line",
    [
        'MOSAIC_POLICY("Window", make_window) {',
        "MOSAIC_POLICY(window, make_window) {",
        '  MOSAIC_POLICY("window", make_window) {',
        'MOSAIC_POLICY("window",\n              make_window) {',
        'MOSAIC_POLICY("window", make_window)',
    ],
)
def test_a_line_that_cannot_be_read_stops_the_build_and_is_named(tmp_path: Path, line: str) -> None:
    listed, complaint = configured(tmp_path, {"window.cc": line + "\n"})
    assert listed == []
    assert "window.cc" in complaint
    assert "expected 'MOSAIC_POLICY" in " ".join(complaint.split())


def test_two_policies_of_one_name_stop_the_build(tmp_path: Path) -> None:
    files = {f"{stem}.cc": LINE.format(name="lru", stem=stem) for stem in ("lru", "other")}
    listed, complaint = configured(tmp_path, files)
    assert listed == []
    assert 'two policies are called "lru"' in " ".join(complaint.split())
