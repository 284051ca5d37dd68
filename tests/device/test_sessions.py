"""Sessions on a device: answers as on the CPU, policies under pressure, errors that leave the next whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mosaic_edge import Engine, InvalidInput, SamplingParams, Session, _core
from numpy_vlm import NumpyVlm, picture

QUESTION = "what colour was the ball ?"


@pytest.fixture
def engine() -> Engine:
    return Engine(NumpyVlm())


def stream(session: Session, frames: int, ask_every: int = 10) -> list[np.ndarray]:
    """Frames with questions in between: the logits of every first token."""
    logits = []
    for number in range(frames):
        session.append(picture(number), float(number))
        if number % ask_every == ask_every - 1:
            logits.append(session.ask(QUESTION, sampling=SamplingParams(max_tokens=3)).logits)
    return logits


def attend_blocks(
    backend: str, shape: dict[str, Any], settings: dict[str, Any], blocks: int
) -> list[np.ndarray]:
    """What every block of a stream of random frames attended, on one backend; without a model."""
    random = np.random.default_rng(6)
    memory = _core.KvMemory(shape, settings, "full", {}, backend, 0, 0)
    tokens, heads = shape["frame_tokens"], {"q": shape["q_heads"], "kv": shape["kv_heads"]}
    outs = []
    for number in range(blocks):
        q, k, v = (
            random.standard_normal((tokens, heads[name], shape["head_dim"])).astype(np.float32)
            for name in ("q", "kv", "kv")
        )
        out = np.full_like(q, np.nan)
        memory.begin_frame(float(number), np.zeros(shape["embedding_dim"], np.float32), tokens, 1)
        for layer in range(shape["layers"]):
            memory.attend(layer, q, k, v, out, tokens)
            outs.append(out.copy())
        memory.commit()
    return outs


def bytes_taken(device: str, session: Session) -> int:
    """Of the whole device, so that an allocation by anyone shows; on the CPU what the session says."""
    if device != "cuda":
        return int(session.memory()["taken_bytes"])
    import torch

    free, total = torch.cuda.mem_get_info()
    return int(total - free)


def test_with_a_cap_that_holds_all_the_answers_are_the_cpus(engine: Engine, device: str) -> None:
    settings: dict[str, Any] = {"memory": "8MiB", "policy": "full", "exact": "fp32"}
    with engine.session(**settings, backend=device) as there, engine.session(**settings) as here:
        for ours, theirs in zip(stream(there, 30), stream(here, 30), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-3)


@pytest.mark.parametrize("policy", _core.policies())
def test_every_policy_streams_under_pressure_and_gives_equal_bytes_twice(
    engine: Engine, device: str, policy: str
) -> None:
    # `full` lets nothing go, so it gets what it needs.
    settings: dict[str, Any] = {"memory": "4MiB" if policy == "full" else "256KiB", "policy": policy}
    settings |= {"branch_tokens": 16, "backend": device}
    runs = []
    for _ in range(2):
        with engine.session(**settings) as session:
            runs.append(stream(session, 120, 20))
            session.check_invariants()
            memory = session.memory()
        tokens = memory["tokens"]
        assert memory["taken_bytes"] <= memory["cap_bytes"]
        assert sum(tokens.values()) - tokens["seen"] == tokens["seen"] > 0
    for first, second in zip(*runs, strict=True):
        assert np.isfinite(first).all()
        np.testing.assert_array_equal(first, second)


def test_pages_on_disk_come_back_to_the_device(engine: Engine, device: str) -> None:
    settings: dict[str, Any] = {"memory": "448KiB", "policy": "rekv", "disk": "1MiB", "branch_tokens": 16}
    with engine.session(**settings, backend=device) as session:
        logits = stream(session, 150, 30)
        events = session.memory()["events"]
        session.check_invariants()
    assert events["fetched_pages"] > 0
    assert np.isfinite(logits).all()


def test_after_warm_up_nothing_more_is_taken(engine: Engine, device: str) -> None:
    with engine.session(memory="256KiB", branch_tokens=16, backend=device) as session:
        stream(session, 60)
        before = bytes_taken(device, session)
        stream_on = [session.ask(QUESTION, sampling=SamplingParams(max_tokens=3)) for _ in range(5)]
        for number in range(60, 120):
            session.append(picture(number), float(number))
        assert bytes_taken(device, session) == before
    assert len(stream_on) == 5


def test_a_cap_beyond_the_machine_is_refused_with_the_knob_and_the_next_session_works(
    engine: Engine, device: str
) -> None:
    with pytest.raises((_core.MemoryCapError, _core.DeviceError), match="memory="):
        engine.session(memory="900000GiB", policy="full", backend=device)
    with engine.session(memory="256KiB", branch_tokens=16, backend=device) as session:
        assert np.isfinite(stream(session, 10)).all()


def test_a_frame_that_breaks_off_is_refused_whole_and_the_stream_goes_on(engine: Engine, device: str) -> None:
    with engine.session(memory="256KiB", branch_tokens=16, backend=device) as session:
        stream(session, 10)
        before = session.memory()["tokens"]
        engine.model.break_next = "nan"  # type: ignore[attr-defined]
        with pytest.raises(InvalidInput, match="layer 1"):
            session.append(picture(10), 10.0)
        assert session.memory()["tokens"] == before
        session.append(picture(10), 10.0)
        session.check_invariants()


def test_in_the_shape_of_a_7b_model_16k_tokens_are_attended_as_on_the_cpu(device: str) -> None:
    frames, tokens = (84, 196) if device == "cuda" else (5, 7)
    shape = {
        "layers": 1, "q_heads": 28, "kv_heads": 4, "head_dim": 128, "embedding_dim": 4,
        "frame_tokens": tokens, "rope": {"theta": 1e6, "sections": [16, 24, 24]}, "video_window": 2,
    }  # fmt: skip
    settings = {"cap_bytes": 256 << 20, "packed": "fp16", "branch_tokens": 16}
    there, here = (attend_blocks(name, shape, settings, frames) for name in (device, "cpu"))
    for ours, theirs in zip(there, here, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_a_short_session_for_the_sanitizer(engine: Engine, device: str) -> None:
    for policy in ("edge", "mosaic", "infinipot-v"):
        with engine.session(memory="192KiB", policy=policy, branch_tokens=16, backend=device) as session:
            assert np.isfinite(stream(session, 20)).all()
