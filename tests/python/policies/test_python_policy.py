"""Policies written in Python: as good as those in C++; their errors surface; none can break the memory."""

from __future__ import annotations

import gc
import re
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mosaic_edge import Eviction, InvalidInput, Policy, _core
from mosaic_edge.engine import Engine
from numpy_vlm import NumpyVlm, picture
from played import EXACT, LAYERS, MODEL, ROW, TOKENS, Array, Played
from python_policies import Broken, Nearest, Uniform, Window

TIGHT = {"cap_bytes": 78_000, "branch_tokens": 16, "clusters": 0}
ROOT = Path(__file__).resolve().parents[3]


def kept(played: Played, lane: int = 0) -> list[int]:
    return sorted(played.memory.store.clusters(lane)["born"].tolist())


def account(played: Played) -> None:
    """Every token seen is somewhere."""
    played.memory.check_invariants()
    tokens = dict(played.memory.stats()["tokens"])
    seen = tokens.pop("seen")
    assert (
        seen
        == sum(tokens.values())
        == sum(k.shape[1] for k, _, _ in played.frames) * played.memory.plan()["lanes"]
    )


@pytest.mark.parametrize(("name", "twin"), [("window", Window), ("uniform", Uniform)])
@pytest.mark.parametrize("positions", ["contiguous", "original"])
def test_a_policy_written_again_in_python_keeps_and_answers_the_same(
    name: str, twin: type[Policy], positions: str
) -> None:
    settings = {**TIGHT, "window_frames": 3, "positions": positions, "context": 5000}
    ours, theirs = Played(twin(), seed=3, **settings), Played(name, seed=3, **settings)
    for number in range(150):
        tokens = 1 + number * 7 % TOKENS
        assert (ours.random_frame(tokens) == theirs.random_frame(tokens)).all()
        if number % 10 == 9:
            assert (ours.ask(3) == theirs.ask(3)).all()
            assert (ours.ask(2, number / 2) == theirs.ask(2, number / 2)).all()
    assert all(kept(ours, lane) == kept(theirs, lane) for lane in range(LAYERS))
    assert 0 < len(kept(ours)) < 100
    assert ours.memory.stats()["tokens"] == theirs.memory.stats()["tokens"]
    account(ours)


@pytest.mark.parametrize("disk", [False, True])
@pytest.mark.parametrize("policy", [*_core.policies(), Window, Uniform, Nearest])
def test_random_streams_keep_every_invariant(policy: Any, disk: bool, tmp_path: Path) -> None:
    spill = {"disk_bytes": 1 << 17, "spill_dir": str(tmp_path)} if disk else {}
    for seed in range(2):
        chosen = policy if isinstance(policy, str) else policy()
        settings = {
            "packed": "k4v4" if policy == "edge" else "int4",
            "branch_tokens": 16,
            "clusters": 0,
            "retrieve_tokens": 64,
            "scenes": 3,
            **spill,
        }
        played = Played(chosen, seed=seed, **{**settings, "cap_bytes": 400_000})
        refused = 0
        for step in range(160):
            try:
                played.random_frame(1 + int(played.random.integers(TOKENS)))
            except MemoryError:
                refused += 1
            if step % 9 == 4:
                since = float(played.random.uniform(0, played.pts)) if step % 2 else None
                assert np.isfinite(played.ask(1 + step % 4, since)).all()
            if step % 3 == 0:
                account(played)
        assert policy == "full" or not refused
        if policy is Nearest:
            assert {"scene", "admit", "select"} <= set(chosen.calls)


def test_two_runs_of_a_python_policy_answer_the_same_bits() -> None:
    runs = [
        Played(Nearest(), cap_bytes=200_000, branch_tokens=16, clusters=20, retrieve_tokens=32)
        for _ in range(2)
    ]
    for number in range(90):
        first, second = (run.random_frame() for run in runs)
        assert (first == second).all()
        if number % 8 == 0:
            assert (runs[0].ask() == runs[1].ask()).all()
    assert runs[0].memory.stats()["events"]["merges"] > 0


class OopsError(Exception):
    """What a policy raises in these tests."""


@pytest.mark.parametrize("after", [0, 1, 5])
def test_what_admit_raises_reaches_the_caller_and_the_frame_that_left_is_dropped(after: int) -> None:
    error = OopsError("no")
    policy = Broken("admit", error, after)
    played = Played(policy)
    raised = 0
    for _ in range(14):
        try:
            played.random_frame()
        except OopsError as caught:
            assert caught is error
            raised += 1
            policy.method = ""  # once
        account(played)
    assert raised == 1
    # Lanes before the one that failed were filed: the rest of that frame is dropped, nothing else.
    assert played.memory.stats()["tokens"]["dropped"] == TOKENS * (LAYERS - after % LAYERS)
    assert played.memory.stats()["frames"] == 14
    assert np.isfinite(played.ask()).all()


def test_what_admit_raises_by_frame_drops_that_frame_in_every_layer() -> None:
    policy = Broken("admit", OopsError("no"), 3, by_token=False, means=False, summaries=False, selects=False)
    played = Played(policy)
    for number in range(12):
        if number == 6:
            with pytest.raises(OopsError):
                played.random_frame()
            policy.method = ""
        else:
            played.random_frame()
    account(played)
    assert played.memory.stats()["tokens"]["dropped"] == TOKENS * LAYERS
    assert kept(played) == [1, 2, 3, 5, 6, 7, 8, 9]


def test_what_evict_raises_drops_what_was_not_filed() -> None:
    policy = Broken("evict", KeyError("which"), 2)
    played = Played(policy, clusters=20)
    raised = 0
    for _ in range(20):
        try:
            played.random_frame()
        except KeyError as error:
            assert error.args == ("which",)
            raised += 1
            policy.method = ""
        account(played)
    assert raised == 1
    assert 0 < played.memory.stats()["tokens"]["dropped"] <= TOKENS * LAYERS


def test_what_select_raises_refuses_the_question_whole() -> None:
    policy = Broken("select", OopsError("no"), 10**9)
    played, twin = Played(policy), Played(Broken("", None))
    for _ in range(9):
        played.random_frame()
        twin.random_frame()
    before = played.memory.stats()
    state = played.random.bit_generator.state
    policy.after = 1  # in the second layer
    played.memory.open_question(None)
    played.memory.begin_text(2)
    with pytest.raises(OopsError):
        played.attend(*(np.ones((LAYERS, 2, ROW)) for _ in range(2)))
    played.memory.close_question(True)
    after = played.memory.stats()
    assert {**after, "questions": 0} == {**before, "questions": 0}
    policy.method = ""
    played.random.bit_generator.state = state
    account(played)
    assert (played.ask() == twin.ask()).all()
    assert (played.random_frame() == twin.random_frame()).all()


ADMIT = [
    ([0] * (TOKENS - 1), "5 values for 6 tokens"),
    ([[0] * TOKENS], "not one row"),
    (np.zeros(TOKENS), "expected integers or booleans"),
    (["a"] * TOKENS, "expected integers or booleans"),
    (object(), "expected"),
    ([399] * TOKENS, "cluster 399, which is not live in lane 0"),
    ([-7] * TOKENS, "cluster -7"),
    ({"clusters": [0] * TOKENS}, 'column "clusters"; there are cluster, keep, tag, together'),
    ({"tag": [300] * TOKENS}, "tag=300, expected 0 to 255"),
    ({"keep": [2] * TOKENS}, "keep=2"),
    ({"together": [-5] * TOKENS}, "together=-5"),
]
SELECT = [
    ([0, 0], "cluster 0 twice"),
    ([0, 400], "cluster 400, which is not live"),
    ([0.5], "expected cluster ids"),
    ("best", "expected cluster ids"),
    (np.broadcast_to(np.int64(0), (10**13,)), "10000000000000 cluster ids; a lane has 100"),
]
EVICT = [
    (3, "expected a list of Eviction"),
    ([("drop", 0, 0)], "expected a list of Eviction"),
    (lambda _: [Eviction.drop(9, 0)], "lane 9 of 2"),
    (lambda _: [Eviction.drop(0, 10**6)], "which is not live"),
    (lambda _: [Eviction.drop(0, 1), Eviction.collapse(0, 1)], "cluster 1 of lane 0 twice"),
    (lambda _: [Eviction.merge(0, 0, 0)], "twice"),
    (lambda _: [Eviction.demote(0, 0, 5)], "demote from tier 5"),
    (lambda _: [Eviction.thin(0, 0, [True] * 99)], "thin with 99 values for"),
]


@pytest.mark.parametrize(
    ("method", "what", "said"),
    [("admit", *a) for a in ADMIT] + [("select", *s) for s in SELECT] + [("evict", *r) for r in EVICT],
)
def test_a_wrong_answer_is_refused_in_one_line_that_names_the_policy(
    method: str, what: Any, said: str
) -> None:
    policy = Broken(method, what, 8 * LAYERS if method == "select" else 0)
    played = Played(policy, clusters=20 if method == "evict" else 100)
    with pytest.raises(InvalidInput) as refused:
        for _ in range(10):
            played.random_frame()
        played.ask()
    message = str(refused.value)
    assert message.startswith(f"policy Broken: {method} returned ")
    assert said in message
    assert "\n" not in message
    policy.method = ""
    if played.memory.asking:
        played.memory.close_question(False)
    played.memory.abort()
    for _ in range(5):
        played.random_frame()
        played.memory.check_invariants()
    assert np.isfinite(played.ask()).all()


@pytest.mark.parametrize(
    ("needs", "said"),
    [
        ({"summaries": True}, "means"),
        ({"frames": 0}, "frames"),
        ({"frames": 4}, "by_token"),
        ({"value_weight": -1}, "value_weight"),
        ({"clusters": -1}, "clusters"),
    ],
)
def test_needs_that_contradict_each_other_are_refused(needs: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        Policy(**needs)


def test_a_policy_without_a_method_it_needs_is_refused_when_it_is_handed_over() -> None:
    class Silent(Policy):
        def admit(self, store: Any, batch: Any) -> None: ...

    with pytest.raises(InvalidInput, match=r"policy Silent has no evict\(\)"):
        Played(Silent())
    with pytest.raises(InvalidInput, match="expected a name, or an object of a class that derives from"):
        Played(3.5)
    with pytest.raises(InvalidInput, match="give it its settings when it is made"):
        Played(Window(), {"stride": 2})


def test_one_object_serves_one_session_and_lives_as_long() -> None:
    policy = Window()
    _core.plan(MODEL, EXACT, policy)  # a plan does not count
    played = Played(policy)
    with pytest.raises(
        InvalidInput, match="policy Window: this object serves or served a session; make another one"
    ):
        Played(policy)
    alive = weakref.ref(policy)
    del policy
    gc.collect()
    assert alive() is not None
    for _ in range(6):
        played.random_frame()
    del played
    gc.collect()
    assert alive() is None


def test_a_cap_that_is_refused_does_not_use_the_object_up() -> None:
    policy = Window()
    with pytest.raises(MemoryError, match="policy Window needs at least"):
        Played(policy, cap_bytes=1000)
    Played(policy).random_frame()


def test_a_store_that_a_policy_kept_says_when_its_memory_is_gone() -> None:
    class Keeping(Window):
        store: Any = None

        def admit(self, store: Any, batch: Any) -> bool:
            self.store = store
            return True

    policy = Keeping()
    played = Played(policy)
    for _ in range(5):
        played.random_frame()
    assert policy.store.lanes == LAYERS
    del played
    gc.collect()
    with pytest.raises(InvalidInput, match="gone"):
        policy.store.clusters(0)


def test_a_mask_keeps_its_tokens_together_in_one_cluster() -> None:
    class Half(Policy):
        def admit(self, store: Any, batch: Any) -> Array:
            return batch.h * 3 + batch.w < 2

        def evict(self, store: Any, need: Any) -> list[Eviction]:
            return []

    played = Played(Half(by_token=True), clusters=50)
    for _ in range(8):
        played.random_frame()
    account(played)
    for lane in range(LAYERS):
        assert played.memory.store.clusters(lane)["members"].tolist() == [2] * 5
        assert sorted(played.memory.store.members(lane)["position"] % TOKENS) == [0] * 5 + [1] * 5
    assert played.memory.stats()["tokens"]["dropped"] == 5 * LAYERS * (TOKENS - 2)


def test_without_means_the_index_takes_little_from_the_pages() -> None:
    class Bare(Window):
        def __init__(self) -> None:
            super().__init__(by_token=True)

    sizes = dict(_core.plan(MODEL, {"cap_bytes": 4 << 20}, Bare())["parts"])
    assert 4 * sizes["index"] < sizes["pages"]


def test_a_session_takes_a_policy_object_and_its_errors_come_through() -> None:
    engine = Engine(NumpyVlm())
    policy = Broken("admit", OopsError("no"), 10**9, means=False, summaries=False, selects=False)
    assert engine.plan(policy=Window(), memory="1MiB")["total_bytes"] <= 1 << 20
    with engine.session(policy=policy, memory="1MiB", kernel_threads=1) as session:
        for number in range(12):
            session.append(picture(number), float(number))
        policy.after = 0
        with pytest.raises(OopsError):
            session.append(picture(12), 12.0)
        policy.method = ""
        session.append(picture(13), 13.0)
        session.check_invariants()
        assert session.memory()["tokens"]["dropped"] > 0
        assert session.ask("what was the ball ?").tokens > 0


def test_the_policy_of_the_documentation_works_as_it_stands_there(
    monkeypatch: pytest.MonkeyPatch, make_video: Any
) -> None:
    text = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")
    blocks = [b for b in re.findall(r"```python\n(.*?)```", text, re.S) if "(Policy)" in b]
    assert len(blocks) == 1
    assert len(blocks[0].splitlines()) <= 30
    monkeypatch.chdir(make_video(name="video.mp4", times=[i / 2 for i in range(60)]).parent)
    space: dict[str, Any] = {}
    exec(compile(blocks[0], "policies.md", "exec"), space)
    assert space["reply"].text is not None
    tokens = space["session_tokens"]
    assert tokens["seen"] == sum(count for name, count in tokens.items() if name != "seen") > 0
    assert tokens["dropped"] > 0


def test_what_a_policy_kept_stays_what_it_was_when_the_session_is_gone() -> None:
    class Keeper(Window):
        def admit(self, store: Any, batch: Any) -> Any:
            kept.append((batch.k, batch.k.copy(), batch.time_ms, batch.time_ms.copy()))
            return super().admit(store, batch)

    kept: list[Any] = []
    played = Played(Keeper(), **TIGHT)
    for _ in range(30):
        played.random_frame()
    del played
    assert kept
    for k, k_then, time, time_then in kept:
        assert np.array_equal(k, k_then)
        assert np.array_equal(time, time_then)


def test_a_policy_cannot_call_the_session_that_is_calling_it() -> None:
    class Reentrant(Window):
        def admit(self, store: Any, batch: Any) -> Any:
            session.ask("what colour was the ball ?")
            return super().admit(store, batch)

    session = Engine.load("mosaic-tiny").session(memory="512KiB", policy=Reentrant())
    with session, pytest.raises(ValueError, match="calling it"):
        for i in range(30):
            session.append(np.zeros((48, 48, 3), np.uint8), float(i))
