"""A transformers model under the memory answers as the library does with a full cache, and lives under a
small cap."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from fixtures_hf import FAMILIES, HIDDEN, Library, picture, write_checkpoint
from mosaic_edge import _core
from mosaic_edge.engine import Engine, Session
from mosaic_edge.models.vlm import EncodedFrame
from mosaic_edge.sampling import SamplingParams

TIMES = [0.5 * i for i in range(32)]
FRAMES = [picture(i) for i in range(32)]
STEPS = 64
EXACT: dict[str, Any] = dict(
    memory="64MiB", policy="full", exact="fp32", positions="original", branch_tokens=400, kernel_threads=1
)
QUESTION, OTHER = "What is it {now}?", "And before?"
FOLLOW_UP = {
    "qwen": "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    "llava_onevision": "<|im_end|><|im_start|>user \n{}<|im_end|><|im_start|>assistant\n",
    "smolvlm": "<end_of_utterance>\nUser: {}<end_of_utterance>\nAssistant:",
    "internvl": "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
}


@dataclass
class Case:
    kind: str
    folder: Path
    engine: Engine
    reference: Any
    images: Any
    logits: list[np.ndarray]
    encoded: dict[tuple[Any, ...], EncodedFrame] = field(default_factory=dict)

    def library(self) -> Library:
        return Library(self.kind, self.reference, self.images)

    def session(self, **settings: Any) -> Session:
        return self.engine.session(**(EXACT | settings))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads only wait for each other in models this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """A checkpoint of one family, loaded by the engine, and once more by the library alone."""
    folder = write_checkpoint(request.param, tmp_path_factory.mktemp(request.param))
    reference = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    images = transformers.AutoImageProcessor.from_pretrained(folder)
    limit = 6 if request.param.startswith("qwen") else None  # 2 x 3 of a frame of 60 x 92
    engine = Engine.load(folder, device="cpu", tokens_per_frame=limit)
    logits: list[np.ndarray] = []
    forward = engine.model.forward

    def record(embeds: Any, attend: Any, want_logits: bool = True) -> Any:
        made = forward(embeds, attend, want_logits)
        if made is not None:
            logits.append(made)
        return made

    engine.model.forward = record  # type: ignore[method-assign]
    yield Case(request.param, folder, engine, reference, images, logits)


def fill(session: Session, first: int = 0, last: int = 32) -> None:
    for i in range(first, last):
        session.append(FRAMES[i], TIMES[i])


def ask(
    case: Case, session: Session, question: str, dialogue: bool = False, steps: int = STEPS
) -> list[np.ndarray]:
    """The logits of every step."""
    del case.logits[:]
    reply = session.ask(question, dialogue=dialogue, sampling=SamplingParams(max_tokens=steps))
    assert reply.tokens == steps
    assert reply.finish == "length"
    return list(case.logits)


def agree(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    theirs = theirs[: len(ours)]
    assert len(ours) >= STEPS // 4
    worst = max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))
    assert worst < 1e-4, f"logits differ by {worst}"
    assert [int(a.argmax()) for a in ours] == [int(b.argmax()) for b in theirs]


def follow_up(kind: str, question: str) -> str:
    return FOLLOW_UP["qwen" if kind.startswith("qwen") else kind].format(question)


def test_one_question_is_answered_as_by_the_library_with_a_full_cache(case: Case) -> None:
    library = case.library()
    _, theirs = library.answer(library.read(FRAMES, TIMES, QUESTION), STEPS)
    assert len({int(logits.argmax()) for logits in theirs}) > 4  # not one token over and over
    with case.session() as session:
        fill(session)
        agree(ask(case, session, QUESTION), theirs)
        assert session.memory()["frames"] == 32


def test_a_dialogue_of_several_turns_is_the_librarys(case: Case) -> None:
    from fixtures_hf import text_ids

    library = case.library()
    _, first = library.answer(library.read(FRAMES[:9], TIMES[:9], QUESTION), 20)
    _, second = library.answer(library.say(text_ids(follow_up(case.kind, OTHER))), 20)
    _, third = library.answer(library.say(text_ids(follow_up(case.kind, QUESTION))), 20)
    with case.session() as session:
        fill(session, 0, 9)
        agree(ask(case, session, QUESTION, True, 20), first)
        agree(ask(case, session, OTHER, True, 20), second)
        agree(ask(case, session, QUESTION, True, 20), third)


def test_a_turn_that_is_dropped_leaves_nothing_and_frames_go_on_behind_it(case: Case) -> None:
    library = case.library()
    _, theirs = library.answer(library.read(FRAMES, TIMES, OTHER), STEPS)
    with case.session() as session:
        fill(session, 0, 20)
        ask(case, session, QUESTION, steps=16)
        fill(session, 20, 32)
        agree(ask(case, session, OTHER), theirs)


def test_clusters_that_are_all_read_are_exact_too(case: Case) -> None:
    library = case.library()
    _, theirs = library.answer(library.read(FRAMES, TIMES, QUESTION), 16)
    with case.session(
        policy="mosaic", packed="fp32", retrieve_tokens=1 << 14, max_cluster_tokens=64
    ) as session:
        fill(session)
        agree(ask(case, session, QUESTION, steps=16), theirs)
        assert session.memory()["tokens"]["collapsed"] == 0


def least_cap(engine: Engine, **settings: Any) -> int:
    """The smallest cap, to a KiB, that a plan accepts: models this small hold a few hundred tokens in it."""
    low, high = 0, 4096
    while high - low > 1:
        middle = (low + high) // 2
        try:
            engine.plan(memory=middle << 10, **settings)
            high = middle
        except _core.MemoryCapError:
            low = middle
    return high << 10


@pytest.fixture
def encoded_once(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame at its time goes through the tower once for all policies: they differ in what comes behind."""
    encode = case.engine.model.encode

    def known(frame: np.ndarray, *when: Any) -> EncodedFrame:
        key = (frame.tobytes(), *when)
        if key not in case.encoded:
            case.encoded[key] = encode(frame, *when)
        return deepcopy(case.encoded[key])

    monkeypatch.setattr(case.engine.model, "encode", known)


@pytest.mark.usefixtures("encoded_once")
@pytest.mark.parametrize("policy", _core.policies())
def test_every_policy_runs_under_the_least_cap_without_a_breach(case: Case, policy: str) -> None:
    settings = dict(policy=policy, kernel_threads=1, branch_tokens=96)
    cap = least_cap(case.engine, **settings) + (8 << 10)
    refused = False
    with case.engine.session(memory=cap, **settings) as session:
        try:
            for i in range(100):
                session.append(FRAMES[i % 32], float(i))
        except _core.MemoryCapError:
            refused = True
        reply = session.ask(OTHER, sampling=SamplingParams(max_tokens=4))
        assert np.isfinite(reply.logits).all()
        session.check_invariants()
        stats = session.memory()
        assert stats["taken_bytes"] <= cap
        tokens = stats["tokens"]
        assert sum(count for name, count in tokens.items() if name != "seen") == tokens["seen"]
        assert refused == (policy == "full")
        assert refused or tokens["exact"] < tokens["seen"]


def test_the_spec_tells_the_shapes(case: Case) -> None:
    spec = case.engine.spec
    assert (spec.layers, spec.q_heads, spec.kv_heads) == (3, 6, 2)
    assert spec.head_dim == (24 if case.kind == "qwen3_vl" else 16)
    assert spec.hidden == HIDDEN * (3 if case.kind == "qwen3_vl" else 1)
    made = case.engine.model.encode(FRAMES[0], 0.0, 0.0, 0)
    assert made.tokens.shape[1] == spec.hidden
    assert len(made.tokens) <= spec.tokens_per_frame
    assert made.embedding.shape == (spec.embedding_dim,)
