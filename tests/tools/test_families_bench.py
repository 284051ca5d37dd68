"""tools/bench/families.py: the video goes round on one timeline, a cell tells what it took, faults show."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from videos import MakeVideo

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def families(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "tools" / "bench"))
    import families

    return families


def test_a_video_goes_round_on_one_rising_timeline(families: Any, make_video: MakeVideo) -> None:
    path = make_video(times=[0.0, 0.1, 0.2, 0.3, 0.5])
    seen = list(islice(families.looped(str(path)), 12))
    times = [round(pts, 6) for _, pts in seen]
    # The longest gap of the file stands between its end and its beginning.
    assert times == [0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.2, 1.4, 1.5]
    assert (seen[1][0] == seen[6][0]).all()


@pytest.mark.parametrize("policy", ["edge", "edge[unit=summaries]", "full"])
def test_a_cell_tells_what_was_taken_and_full_refuses(
    families: Any, make_video: MakeVideo, tmp_path: Path, policy: str
) -> None:
    torch = pytest.importorskip("torch", reason="the models are of transformers")
    from fixtures_hf import write_checkpoint

    torch.set_num_threads(1)
    folder, video = write_checkpoint("internvl", tmp_path / "internvl"), str(make_video())
    row = families.run_cell(str(folder), "hf", policy, 90, 0.9, video)
    assert row["breaches"] == []
    assert row["taken_bytes"] <= row["cap_bytes"] == int(0.9 * row["whole_bytes"])
    assert row["whole_bytes"] == 90 * row["tokens_per_frame"] * 3 * 2 * 16 * 2 * 2
    assert (row["frames"], bool(row["refused"])) == (
        (row["frames"], True) if policy == "full" else (90, False)
    )
    assert families.fault_of(row, 90, allow=0) == ""  # no sample after frame 500: RSS is not judged


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, ""),
        ({"rss_most_bytes": 1100}, ""),
        ({"rss_most_bytes": 1101}, "RSS grew by 101 bytes after frame 500; it may by 100"),
        ({"breaches": ["tier host int4 held 9 B"]}, "tier host int4 held 9 B"),
        ({"frames": 7, "refused": "no room"}, "refused frame 8: no room"),
        ({"policy": "full"}, "full held a stream ten times its cap"),
        ({"policy": "full", "frames": 7, "refused": "no room"}, ""),
        ({"error": "MemoryCapError: needs more"}, "MemoryCapError: needs more"),
    ],
)
def test_what_fails_a_row(families: Any, change: dict[str, Any], fault: str) -> None:
    row = {
        "path": "hf", "family": "internvl", "policy": "edge", "frames": 600, "breaches": [], "refused": "",
        "tokens_per_frame": 9, "cap_bytes": 9, "taken_bytes": 8, "rss_warm_bytes": 1000,
        "rss_most_bytes": 1000, "rss_end_bytes": 900, "frames_per_second": 3.0,
    } | change  # fmt: skip
    assert families.fault_of(row, 600, allow=100) == fault
    cells = [cell.strip() for cell in families.line(row | {"fault": fault}).strip("| ").split("|")]
    assert cells[:3] == ["hf", "internvl", row["policy"]]
    assert fault in cells[-1]
