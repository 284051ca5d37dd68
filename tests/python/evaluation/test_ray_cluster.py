"""Cells over a cluster: the same rows as in this process. It is played by fake_ray: an actor is a process."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

import played
from mosaic_edge.evaluation.ray_cluster import pack, unpack
from mosaic_edge.evaluation.runner import EvalSettings, evaluate
from mosaic_edge.evaluation.variants import parse_caps, parse_policies

FAKE = str(Path(played.__file__).parent / "fake_ray")
TIMED = ("ms", "seconds", "per_hour")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FAKE)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([FAKE, os.environ.get("PYTHONPATH", "")]))


def settings(**changed: Any) -> EvalSettings:
    given: dict[str, Any] = {
        "policies": parse_policies("full,window"),
        "caps": parse_caps("25%"),
        "lengths": (24,),
        "seeds": (7, 8),
        "difficulties": ("plain",),
        "questions": 8,
    }
    return EvalSettings(**{**given, **changed})


def untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What does not say how long it took."""
    return [{k: v for k, v in row.items() if not any(word in k for word in TIMED)} for row in rows]


def test_a_cluster_gives_the_rows_of_one_process(cluster: None, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    rows = evaluate(settings(), tmp_path / "ray", ray="local", progress=lambda *step: seen.append(step[:2]))
    assert untimed(rows) == untimed(evaluate(settings(), tmp_path / "one"))
    assert len(rows) == 2 and seen[-1] == (6, 6)
    assert not hasattr(sys.modules["ray"], "_actors") or not sys.modules["ray"]._actors, "they are gone"


def test_a_cluster_that_is_not_there_is_one_line_and_jobs_are_its_own(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ray='ray://nowhere:1': nobody is at"):
        evaluate(settings(), tmp_path, ray="ray://nowhere:1")
    with pytest.raises(ValueError, match="with ray= the processes are the cluster's CPUs"):
        evaluate(settings(), tmp_path, ray="local", jobs=2)


def test_what_an_actor_raises_is_raised_here(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no-such-setting"):
        evaluate(settings(session={"no-such-setting": 1}), tmp_path, ray="local")


def test_without_ray_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'mosaic_edge\[ray\]'"):
        evaluate(settings(), tmp_path, ray="local")


def test_a_folder_travels_as_bytes(tmp_path: Path) -> None:
    source = tmp_path / "stream"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "a").write_bytes(b"\0" * 5000)
    (source / "b").write_text("7")
    made = unpack(pack(source), tmp_path / "there")
    files = {str(p.relative_to(made)): p.read_bytes() for p in made.rglob("*") if p.is_file()}
    assert files == {"deep/a": b"\0" * 5000, "b": b"7"}
