"""`faults=n`: every nth page of the spill file fails, whatever a page is in the policy's codec."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mosaic_edge import _core
from played import EMBEDDING, KV_HEADS, LAYERS, MODEL, Q_HEADS, TOKENS, give_frame

HEAD_DIM, PAGE_TOKENS, EVERY = 64, 16, 3
LANES = LAYERS * KV_HEADS  # by record every KV head has pages of its own


def memory_on_disk(folder: Path, policy: str) -> _core.KvMemory:
    model = {**MODEL, "head_dim": HEAD_DIM, "rope": {"rotary_dim": HEAD_DIM}}
    cap = {"cap_bytes": 1_500_000, "disk_bytes": 64 << 20, "spill_dir": str(folder), "window_frames": 2}
    return _core.KvMemory(model, cap, policy, {}, "cpu", 1, EVERY)


def test_of_a_policy_by_record_every_nth_page_fails_and_no_other(tmp_path: Path) -> None:
    memory, frames, random = memory_on_disk(tmp_path, "edge"), 100, np.random.default_rng(3)
    for number in range(frames):
        q, k, v = (
            random.standard_normal((LAYERS, TOKENS, heads, HEAD_DIM))
            for heads in (Q_HEADS, KV_HEADS, KV_HEADS)
        )
        give_frame(memory, float(number), np.ones(EMBEDDING), 3, q, k, v)
    memory.drain()
    apart = 1 + 2  # the first frame and the window's never leave for the disk
    pages = (frames - apart) * TOKENS // PAGE_TOKENS * LANES
    refused = pages // EVERY
    failed = (pages - refused) // EVERY
    disk = memory.stats()["disk"]
    assert (disk["no_space"], disk["io_errors"]) == (refused, failed)


@pytest.mark.parametrize("policy", ["window", "full"])
def test_faults_of_a_policy_without_pages_on_disk_are_refused(tmp_path: Path, policy: str) -> None:
    with pytest.raises(ValueError, match=f"faults={EVERY} needs a disk"):
        memory_on_disk(tmp_path, policy)
