"""Whether the device computes at all, in seconds: one attend, and a session of 50 frames, as on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from mosaic_edge import Engine, SamplingParams, _core
from numpy_vlm import NumpyVlm, picture

SHAPE = {"layers": 1, "q_heads": 4, "kv_heads": 2, "head_dim": 64, "embedding_dim": 4, "frame_tokens": 7}


def test_one_attend_is_the_cpus_and_the_sum_written_out(device: str) -> None:
    random = np.random.default_rng(1)
    q, k, v = (random.standard_normal((7, heads, 64)).astype(np.float32) for heads in (4, 2, 2))
    outs = []
    for backend in (device, "cpu"):
        memory = _core.KvMemory(
            SHAPE | {"rope": {"theta": 1e4}}, {"cap_bytes": 8 << 20}, "full", {}, backend, 1, 0
        )
        outs.append(np.full_like(q, np.nan))
        memory.begin_frame(0.0, np.zeros(4, np.float32), 7, 1)
        memory.attend(0, q, k, v, outs[-1], 7)
        memory.commit()
    np.testing.assert_allclose(outs[0], outs[1], atol=1e-4)
    # The first token sees itself alone, whatever the positions are.
    np.testing.assert_allclose(outs[0][0], np.repeat(v[0], 2, axis=0), atol=1e-4)


def test_fifty_frames_and_two_questions_are_answered_as_on_the_cpu(device: str) -> None:
    engine = Engine(NumpyVlm())
    settings: dict[str, Any] = {"memory": "8MiB", "policy": "full", "exact": "fp32"}
    logits: list[list[np.ndarray]] = []
    for backend in (device, "cpu"):
        with engine.session(**settings, backend=backend) as session:
            logits.append([])
            for number in range(50):
                session.append(picture(number), float(number))
                if number % 25 == 24:
                    reply = session.ask("what colour was the ball ?", sampling=SamplingParams(max_tokens=3))
                    logits[-1].append(reply.logits)
            session.check_invariants()
    assert len(logits[0]) == 2
    for there, here in zip(*logits, strict=True):
        np.testing.assert_allclose(there, here, atol=2e-3)
