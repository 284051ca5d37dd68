"""tools/gpu_check/report.py: the page of made-up results of a GPU that does not exist."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
MACHINE: dict[str, Any] = {
    "line": "machine", "stage": "build", "device": "NVIDIA Made-Up 9000, sm_123, 8 GiB", "driver": "1.2",
    "nvcc": "nvcc 13.0", "torch": "2.11.0", "cores": 16, "commit": "abc1234", "rehearsal": False,
}  # fmt: skip
ATTEND: dict[str, Any] = {
    "line": "row", "stage": "kernels", "op": "attend", "name": "attend int4, 1 of 28/4 heads, 12544 tokens",
    "queries": 1, "tokens": 12544, "seconds": 2e-5, "rate": 1e12, "share": 0.625, "sdpa_seconds": 3e-5,
    "gather_sdpa_seconds": 5e-5,
}  # fmt: skip


def stream(policy: str, frames: int, by_frames: dict[str, float]) -> dict[str, Any]:
    return {
        "line": "row", "stage": "streams", "op": "stream", "model": "7B", "policy": policy, "frames": frames,
        "of_frames": 1800, "frame_seconds": 0.011, "memory_seconds": 0.005, "memory_bytes": 3 << 30,
        "first_token_seconds": by_frames[str(frames)], "first_token_seconds_by_frames": by_frames,
        "device_bytes": 5 << 29,
    }  # fmt: skip


LINES: list[dict[str, Any]] = [
    MACHINE,
    {"line": "tests", "stage": "contract", "file": "attend_test", "cases": 30, "failed": 1, "seconds": 4.0},
    {"line": "failed", "stage": "contract", "case": "attend_test: a sum is short"},
    {"line": "stage", "stage": "contract", "number": 2, "state": "failed", "seconds": 4.0, "why": "1 of 30"},
    ATTEND,
    stream("edge", 1800, {"960": 0.020, "1800": 0.030}),
    stream("rekv", 1800, {"960": 0.040, "1800": 0.045}),
    stream("full", 960, {"480": 0.080, "960": 0.160}),
    {"line": "row", "stage": "streams", "op": "stream", "model": "7B", "policy": "mosaic", "error": "Bad: x"},
]


def results(folder: Path, lines: list[dict[str, Any]], end: str = "") -> Path:
    folder.mkdir()
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "results.jsonl").write_text(text + end)
    return folder


def report(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "tools/gpu_check/report.py", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


@pytest.fixture
def page(tmp_path: Path) -> str:
    """Of two calls, the second of which was killed while it wrote."""
    first, second = (
        results(tmp_path / "first", LINES[:5]),
        results(tmp_path / "second", LINES[5:], '{"line": "row", "op"'),
    )
    done = report(first, second, "--write", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "gpu-made-up-9000.md")
    return (tmp_path / "gpu-made-up-9000.md").read_text()


def test_the_page_says_what_ran_where_and_what_failed(page: str) -> None:
    assert page.startswith("# NVIDIA Made-Up 9000, sm_123, 8 GiB\n")
    for words in ("commit abc1234", "driver 1.2", "torch 2.11.0", "30, of which 1 failed", "16 cores"):
        assert words in page
    assert "- failed: contract: attend_test: a sum is short" in page
    assert "| contract | failed | 4 | 1 of 30 |" in page


def test_a_kernel_has_its_rate_its_share_of_the_ceiling_and_its_ratio_to_torch(page: str) -> None:
    row = "| attend int4, 1 of 28/4 heads, 12544 tokens | 20.0 | 1000.0 GB/s | 62 % | 30.0 | 1.50 | 2.50 |"
    assert row in page
    assert "12544 tokens: 62 % of the copy rate (60 % is asked), torch's SDPA 1.50 of ours" in page


def test_first_tokens_are_compared_after_equally_many_frames_only(page: str) -> None:
    assert "- 7B: first token after 1800 frames, rekv / edge = 1.50" in page
    assert "- 7B: first token after 960 frames, full / edge = 8.00" in page
    assert "mosaic / edge" not in page
    assert "| 7B | mosaic | failed |" in page and "- 7B mosaic failed: Bad: x" in page
    assert "| 7B | full | 960 of 1800 | 11.00 | 5.00 | 160.00 | 3.00 | 2.50 |" in page


def test_a_rehearsal_and_results_without_a_machine_are_refused(tmp_path: Path) -> None:
    rehearsed = report(results(tmp_path / "rehearsed", [MACHINE | {"rehearsal": True}, *LINES[1:]]))
    assert rehearsed.returncode == 1
    assert "rehearsal" in rehearsed.stderr
    assert "names no machine" in report(results(tmp_path / "cut", LINES[1:])).stderr
