"""tools/wheels: what the source distribution has."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from scikit_build_core import build

ROOT = Path(__file__).resolve().parents[2]


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
