"""`mosaic-edge stress`: what it measures, what a breach is, and that faults cost pages and nothing else."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mosaic_edge import _core, cli
from mosaic_edge.engine import Engine, Session
from mosaic_edge.evaluation import stress
from mosaic_edge.evaluation.stress import COLUMNS, StressSettings, robust_slope, run_stress

QUICK = StressSettings(memory="1MiB", frames=500, ask_every=25, check_every=50)
ARGUMENTS = ["stress", "--memory", "1MiB", "--frames", "60", "--ask-every", "20", "--json", "--out"]


@pytest.fixture(autouse=True)
def one_engine(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    monkeypatch.setattr(Engine, "load", classmethod(lambda cls, model: engine))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load("mosaic-tiny")


# One policy that spills by token and one by frame: what is tested is the run, not the policy.
@pytest.mark.parametrize("policy", ["mosaic", "rekv"])
@pytest.mark.parametrize("faults", [0, 5])
def test_a_stream_with_or_without_faults_breaches_nothing(tmp_path: Path, policy: str, faults: int) -> None:
    result = run_stress(
        replace(QUICK, policy=policy, disk="128KiB" if policy == "rekv" else None, faults=faults),
        tmp_path,
    )
    assert result["breach"] is None
    assert result["frames"] == 500
    assert result["questions"] == result["answers"] > 15
    memory = result["memory"]
    tokens = dict(memory["tokens"])
    assert tokens.pop("seen") == sum(tokens.values())
    assert memory["taken_bytes"] <= memory["cap_bytes"] == 1 << 20
    assert memory["disk"]["bytes_written"] > 0  # rekv lets go of what is on disk first
    events = memory["events"]
    assert (events["failed_spills"] > 0) == (faults > 0)
    assert (events["spill_pauses"] > 0) == (events["paused_frames"] > 0) == (faults > 0)
    if policy == "mosaic":
        assert result["disk_bytes"] == 4 << 20
        assert result["right"] > 0.5 * result["questions"]
        assert tokens["dropped"] == 0
        assert (events["lost_pages"] > 0) == (faults > 0)
        assert (memory["disk"]["bad_checksums"] > 0) == (faults > 0)
    rss = result["rss"]
    assert rss["judged"]
    assert 125 <= rss["warm_frame"] <= 500
    assert rss["peak_bytes"] >= rss["warm_bytes"] > 1 << 20


def test_the_curve_is_written_as_numbers_and_as_a_picture(tmp_path: Path) -> None:
    run_stress(replace(QUICK, frames=60), tmp_path / "out")
    rows = list(csv.reader((tmp_path / "out" / "memory.csv").open()))
    assert tuple(rows[0]) == COLUMNS
    assert [int(row[0]) for row in rows[1:]] == list(range(1, 61))
    assert all(int(row[COLUMNS.index("rss_bytes")]) > 0 for row in rows[1:])
    assert (tmp_path / "out" / "memory.png").stat().st_size > 1000
    assert json.loads((tmp_path / "out" / "stress.json").read_text())["frames"] == 60


def test_the_same_stream_with_the_same_faults_ends_the_same(tmp_path: Path) -> None:
    ends = []
    for name in ("a", "b"):
        memory = run_stress(replace(QUICK, frames=300, faults=7), tmp_path / name)["memory"]
        ends.append((memory["tokens"], memory["events"], memory["tiers"]))
    assert ends[0] == ends[1]


def test_a_cap_never_filled_is_said_and_not_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(["stress", "--memory", "16MiB", "--frames", "40", "--out", str(tmp_path)])
    assert code == 0
    assert "RSS was not judged" in capsys.readouterr().out


def breached(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *more: str, named: tuple[str, ...]
) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.main([*ARGUMENTS, str(tmp_path), *more]) == 3
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    for name in named:
        assert name in shown.err
    result = json.loads(shown.out)
    assert result["breach"] in shown.err
    assert (tmp_path / "memory.csv").exists()
    return result


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda m: m.update(taken_bytes=m["cap_bytes"] + 1), ("the cap is 1.0 MiB", "--memory")),
        (lambda m: m["tiers"][0].update(peak_bytes=1 << 30), ("1.0 GiB", "--memory")),
        (lambda m: m["tiers"][-1].update(used_bytes=1 << 40), ("disk", "--disk")),
        (lambda m: m["tokens"].update(exact=m["tokens"]["exact"] + 1), ("tokens", "were seen")),
    ],
    ids=["cap", "dram", "disk", "account"],
)
def test_a_breach_of_the_account_ends_the_stream_with_3(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    change: Any,
    named: tuple[str, ...],
) -> None:
    honest = Session.memory

    def memory(self: Session) -> dict[str, Any]:
        stats = honest(self)
        if stats["frames"] >= 10:
            change(stats)
        return stats

    monkeypatch.setattr(Session, "memory", memory)
    assert breached(tmp_path, capsys, named=("frame 10", *named))["frames"] == 10


def test_a_broken_invariant_ends_the_stream_with_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Session) -> None:
        raise _core.InvariantError("ClusterStore: used slots equal pages in the tier")

    monkeypatch.setattr(Session, "check_invariants", broken)
    breached(tmp_path, capsys, "--check-every", "20", named=("frame 20", "used slots equal pages"))


def test_rss_that_grows_after_warm_up_ends_with_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Leaking:
        rss = 100 << 20

        def memory_info(self) -> Leaking:
            self.rss += 1 << 20
            return self

    monkeypatch.setattr(stress.psutil, "Process", Leaking)
    more = ("--frames", "300", "--memory", "600KiB", "--policy", "window", "--disk", "none")
    result = breached(tmp_path, capsys, *more, named=("RSS grew by", "8.0 MiB", "--allow"))
    assert result["frames"] == 300
    assert result["rss"]["slope_bytes_per_1000_frames"] == pytest.approx(1000 << 20)
    assert cli.main([*ARGUMENTS, str(tmp_path), *more, "--allow", "1GiB"]) == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--frames", "3"], "frames="),
        (["--frames", "2000000"], "frames="),
        (["--warm-up", "1"], "warm_up="),
        (["--difficulty", "hard"], "difficulty="),
        (["--faults", "--disk", "none"], "disk="),
        (["--faults-every", "0"], "faults-every"),
        (["--disk", "lots"], "disk="),
        (["--allow", "some"], "allow="),
        (["--policy", "nope"], "policy="),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_a_bad_value_ends_with_2_before_anything_is_streamed(
    capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    assert cli.main(["stress", *arguments]) == 2
    assert named in capsys.readouterr().err


def test_results_without_a_place_are_refused_before_anything_is_streamed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stress._Stress, "stream", lambda *_: pytest.fail("it streams"))
    (tmp_path / "file").touch()
    for place, code in ((tmp_path / "file", 2), (tmp_path / "file" / "x", 2), (Path("/proc/x"), 1)):
        assert cli.main([*ARGUMENTS, str(place)]) == code
        assert "out=" in capsys.readouterr().err


def test_faults_without_a_disk_are_refused_by_the_session(engine: Engine) -> None:
    with pytest.raises(ValueError, match="faults=5 needs a disk"):
        engine.session(memory="1MiB", faults=5)
    with pytest.raises(ValueError, match="faults="):
        engine.session(memory="1MiB", disk="4MiB", faults=-1)


def test_the_slope_is_the_median_of_all_pairs() -> None:
    x = np.arange(1000.0)
    y = 3 * x + 7
    y[::10] += 1e6  # outliers
    assert robust_slope(x, y) == pytest.approx(3)
    assert robust_slope(x[:1], y[:1]) == 0


def test_growth_is_judged_without_a_disk_too(tmp_path: Path) -> None:
    result = run_stress(replace(QUICK, policy="edge", memory="512KiB", disk="none"), tmp_path)
    assert result["breach"] is None
    assert result["memory"]["tokens"]["dropped"] > 0
    assert result["rss"]["judged"]


def test_a_disk_that_is_full_at_the_end_takes_no_result_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "memory.csv").symlink_to("/dev/full")
    assert cli.main([*ARGUMENTS, str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["frames"] == 60
    assert err == f"mosaic-edge: {json.loads(out)['unwritten']}\n"
    assert "not all of it was written there (No space left on device)" in err
