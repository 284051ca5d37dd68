"""tools/requirements.py lists what pip would install for an extra of this package, but the package."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def listed(extra: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "tools" / "requirements.py"), extra]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("extra", "some"),
    [
        ("cpu", {"numpy", "onnxruntime"}),
        ("dev", {"numpy", "onnxruntime", "fastapi", "matplotlib", "pytest"}),
        ("quantized", {"numpy", "transformers", "bitsandbytes"}),
    ],
)
def test_an_extra_has_its_own_those_it_names_and_the_packages(extra: str, some: set[str]) -> None:
    shown = listed(extra)
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert some <= {re.split(r"[<>=;]", line)[0] for line in lines}
    assert len(lines) == len(set(lines))
    assert not [line for line in lines if line.startswith("mosaic_edge")]


def test_an_extra_that_is_not_there_is_named() -> None:
    shown = listed("none-such")
    assert shown.returncode != 0
    assert "none-such" in shown.stderr
