"""The bench of `mosaic-edge serve` under load, a second of it: every client does its work, nothing is wrong,
and the page says what was counted. What it times is not looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mosaic_edge

BENCH = Path(__file__).resolve().parents[2] / "tools" / "bench"


def test_sessions_under_one_budget_stay_in_it_and_are_counted_as_their_clients_do(tmp_path: Path) -> None:
    words = ["--sessions=2", "--seconds=1", "--ask-every=0.2", "--memory=6MiB", "--json", "--write"]
    ran = subprocess.run(
        [sys.executable, BENCH / "serve_load.py", *words, tmp_path / "page.md"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(mosaic_edge.__file__).parents[1])},
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    said = json.loads(ran.stdout)
    assert said["faults"] == []
    assert min(said["questions"], said["accounts_read"], said["refused_507"]) >= 1
    assert said["put"] and said["socket"], "one session is fed by PUT, the other over a WebSocket"
    assert said["drawn_peak_bytes"] <= said["budget_bytes"] == 6 << 20
    assert (
        f"{said['frames']:,} frames and {said['questions']:,} questions" in (tmp_path / "page.md").read_text()
    )


@pytest.fixture
def breaches(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    import serve_clients

    return serve_clients.breaches


def test_what_is_taken_beyond_a_cap_is_found(breaches: Any) -> None:
    tier = {"medium": "host", "used_bytes": 8, "capacity_bytes": 8}
    stats = {"id": "a", "taken_bytes": 10, "cap_bytes": 10, "drawn_bytes": 12, "tiers": [tier]}
    listed = {"drawn_bytes": 12, "budget_bytes": 12, "data": [stats]}
    metrics = {"budget_drawn_peak_bytes": 12, "budget_bytes": 12, 'session_thumbnail_bytes{session="a"}': 2}
    assert breaches(listed, metrics) == []
    assert breaches({**listed, "budget_bytes": 11}, metrics) == ["12 bytes drawn of 11"]
    assert breaches(listed, {**metrics, "budget_drawn_peak_bytes": 13}) == ["13 bytes were drawn of 12"]
    for wrong in ({"cap_bytes": 9}, {"tiers": [{**tier, "used_bytes": 9}]}, {"drawn_bytes": 11}):
        assert len(breaches({**listed, "data": [{**stats, **wrong}]}, metrics)) == 1
