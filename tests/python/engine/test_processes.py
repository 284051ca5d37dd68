"""Sessions in processes of their own: the ways that start a fresh interpreter work, as in docs/cli.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import multiprocessing as mp
import sys
import numpy as np
from mosaic_edge import Engine

def answer(number):
    engine = Engine.load("mosaic-tiny", threads=1)
    with engine.session(memory="1MiB", kernel_threads=1) as session:
        for i in range(5):
            session.append(np.full((48, 48, 3), 40 * number + i, np.uint8), float(i))
        return session.ask("what colour was the ball ?").text

if __name__ == "__main__":
    engine = Engine.load("mosaic-tiny", threads=1)          # the parent has a session too, with a spill file
    with engine.session(memory="1MiB", disk="4MiB", kernel_threads=1) as session:
        session.append(np.zeros((48, 48, 3), np.uint8), 0.0)
        with mp.get_context(sys.argv[1]).Pool(2) as pool:
            print(*pool.map(answer, [1, 2, 3]), sep=",")
        session.append(np.zeros((48, 48, 3), np.uint8), 1.0)
        session.check_invariants()
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_sessions_run_in_processes_that_start_afresh(method: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    ran = subprocess.run(
        [sys.executable, str(script), method], capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.strip().split(",")) == 3 and "" not in ran.stdout.strip().split(",")
