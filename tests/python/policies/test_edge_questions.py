"""edge against an independent float64 version: what a question attends to, and the attention itself."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest

from edge_oracle import ALWAYS, Array, same, stored
from odd_streams import ODD, around, odd_frame
from played import PlayedMemory, Token


def test_one_frame_is_kept_apart_and_makes_no_cluster() -> None:
    played = PlayedMemory("edge", {"unit": "summaries"}, frame_tokens=13)
    played.frame(13)
    assert all(not stored(played, lane) for lane in range(played.layers))
    check_questions(played)


def test_with_a_cluster_for_every_token_each_is_that_token_bit_by_bit_and_all_are_read() -> None:
    played = PlayedMemory(
        "edge", {"unit": "summaries", "radius": 0, "frames": 0}, exact="fp16", clusters=400, frame_tokens=13
    )
    for _ in range(20):
        played.frame(13)
    tokens = [t for frame in played.stored for t in frame]
    for lane in range(played.layers):
        held = {int(s.position): s for s in stored(played, lane)}
        assert sorted(held) == [t.position for t in tokens]
        for t in tokens:
            assert (held[t.position].k == t.k[lane].ravel()).all()
            assert (held[t.position].v == t.v[lane].ravel()).all()
    q, k, v, out = played.ask(5)
    for lane in range(played.layers):
        np.testing.assert_allclose(out[lane], played.expected(lane, tokens, q, k, v), atol=2e-4)


def scores(q: Array, means: Array, counts: Array, score: str) -> Array:
    """q [T, q_heads, D], means [n, kv_heads, D]. mass: attention per head and token, + log count, summed."""
    group = q.shape[1] // means.shape[1]
    if score == "dot":
        return np.asarray(np.einsum("qd,nqd->n", q.mean(0), np.repeat(means, group, axis=1)))
    logits = np.einsum("tqd,nqd->tqn", q, np.repeat(means, group, axis=1)) / np.sqrt(q.shape[-1]) + np.log(
        counts
    )
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray((weights / weights.sum(-1, keepdims=True)).sum((0, 1)))


@dataclass
class Read:
    """What a question reads: tokens of their own and means for the rest of their clusters."""

    tokens: list[Token]
    clear: bool
    members: int
    summaries: int


def wanted(
    played: PlayedMemory, layer: int, q: Array, score: str, most: int, budget: int, since: float
) -> Read:
    """The best `most` clusters: members within the budget, best first, all others as their summary."""
    store = played.memory.store
    c = {name: column.tolist() for name, column in store.clusters(layer).items()}
    shape = (played.kv_heads, played.d)
    rows = [
        i
        for i in range(len(c["id"]))
        if c["last_ms"][i] >= 1000 * since and (c["first_ms"][i] >= 1000 * since or c["members"][i] > 0)
    ]
    # Older clusters have no part in the softmax, those that only began earlier have.
    scored = [i for i in range(len(c["id"])) if c["last_ms"][i] >= 1000 * since]
    if not scored:
        return Read([], True, 0, 0)
    means = store.mean_k(layer).astype(np.float64)[[c["id"][i] for i in scored]].reshape(-1, *shape)
    counts = np.array([c["count"][i] for i in scored])
    value = dict(zip(scored, scores(q[layer], means, counts, score).round(12), strict=True))
    ranked = sorted(rows, key=lambda i: (-value[i], c["id"][i]))
    gaps = [value[a] - value[b] for a, b in itertools.pairwise(ranked)]
    near = 1e-5 * (1 + max(map(abs, value.values())))
    # Equal means tie, and the lowest row wins. The order matters at the cut, and where members are read
    # within a budget.
    cuts = gaps[most - 1 : most] + (gaps[:most] if any(c["members"]) else [])
    held = {t.position: t for frame in played.stored for t in frame}
    cluster_of = played.members(layer)
    read = Read([], all(gap == 0 or gap > near for gap in cuts), 0, 0)
    chosen: list[Token] = []
    others: list[Token] = []
    for i in ranked[:most]:
        members = [held[p] for p, at in cluster_of.items() if at == c["id"][i]] if c["members"][i] else []
        assert len(members) == c["members"][i]
        read_them = 0 < len(members) <= budget
        if read_them:
            budget -= len(members)
            read.tokens += [t for t in members if t.frame >= since]
        rest = c["count"][i] - len(members) * read_them
        if rest and c["first_ms"][i] >= 1000 * since:
            k, v = (
                np.broadcast_to(
                    mean(layer)[c["id"][i]].astype(np.float64).reshape(shape), (played.layers, *shape)
                )
                for mean in (store.mean_k, store.mean_v)
            )
            at, first = int(c["position"][i] + 0.5), c["first_ms"][i] // 1000
            summary = Token(at, first, 0, 0, k, v, np.zeros(played.layers), float(np.log(rest)))
            (chosen if read_them else others).append(summary)
    # Of what stands at one position tokens come first, then means of clusters that were read, best first.
    read.members, read.summaries = len(read.tokens), len(chosen) + len(others)
    read.tokens += chosen + others
    return read


def check_questions(
    played: PlayedMemory,
    score: str = "mass",
    most: int = 10**9,
    budget: int = 0,
    since: float | None = None,
    clear: int = 5,
) -> list[Read]:
    """Every question's attention is over what the oracle reads and no more."""
    reads = []
    for tokens in (1, 5, 2, 7):
        q, k, v, out = played.ask(tokens, since)
        for layer in range(played.layers):
            read = wanted(played, layer, q, score, most, budget, -1 if since is None else since)
            if read.clear:
                truth = played.expected(layer, read.tokens, q, k, v, -1 if since is None else since)
                np.testing.assert_allclose(out[layer], truth, atol=2e-4)
                reads.append(read)
    assert len(reads) >= clear, "too many questions are too near to call"
    return reads


@pytest.mark.parametrize("exact", ["fp32", "fp16"])
@pytest.mark.parametrize("score", ["mass", "dot"])
@pytest.mark.parametrize(("tokens", "frames"), [(16, 1), (13, 2), (7, 3), (1, 5), (13, 0)])
def test_a_question_attends_to_the_best_summaries_in_time_order(
    exact: str, score: str, tokens: int, frames: int
) -> None:
    settings = {"score": score, "frames": frames}
    played = PlayedMemory(
        "edge", {"unit": "summaries", **settings}, exact=exact, frame_tokens=tokens, clusters=60
    )
    most = frames * tokens or 10**9
    stream = around(0.3, 20)(played, tokens)
    for n in range(40):
        played.frame(tokens, 4, next(stream))
        if n in (0, 3, 11):
            check_questions(played, score, most)
    reads = check_questions(played, score, most)
    assert {read.summaries for read in reads} == {min(most, len(stored(played, 0)))}
    played.memory.check_invariants()


@pytest.mark.parametrize("name", ODD)
def test_questions_to_odd_streams_are_answered_by_the_oracle(name: str) -> None:
    played = PlayedMemory("edge", {"unit": "summaries", "frames": 2}, frame_tokens=7, clusters=30)
    for n in range(25):
        played.frame(7, 4, odd_frame(played, name, 7, n))
    # Where keys are very long one cluster takes all there is and the rest tie at nothing.
    check_questions(played, most=14, clear=0 if name == "many_sizes" else 5)


@pytest.mark.parametrize("since", [0.0, 7.0, 20.5, 36.0, 99.0])
@pytest.mark.parametrize("members", [False, True])
def test_since_leaves_out_every_mean_that_is_older_in_part(since: float, members: bool) -> None:
    settings = {"frames": 3, **({"members": ALWAYS, "share": 0.3} if members else {})}
    played = PlayedMemory(
        "edge", {"unit": "summaries", **settings}, frame_tokens=13, clusters=60, retrieve_tokens=40
    )
    stream = around(0.3, 40)(played, 13)
    for _ in range(40):
        played.frame(13, 4, next(stream))
    reads = check_questions(played, most=39, budget=40, since=since)
    assert any(read.tokens for read in reads) or since > 30
    assert not any(read.tokens for read in reads) or since < 37, "the window is not in here"


@pytest.mark.parametrize("budget", [3, 24, 100])
@pytest.mark.parametrize("share", [0.2, 0.6])
def test_members_of_the_best_are_read_within_the_budget_and_the_rest_as_means(
    budget: int, share: float
) -> None:
    played = PlayedMemory(
        "edge",
        {"unit": "summaries", "members": ALWAYS, "share": share, "frames": 3},
        frame_tokens=13,
        clusters=60,
        retrieve_tokens=budget,
        max_cluster_tokens=16,
    )
    stream = around(0.2, 30)(played, 13)
    for _ in range(40):
        played.frame(13, 4, next(stream))
    reads = check_questions(played, most=39, budget=budget)
    assert max(read.members for read in reads) > 0
    assert max(read.members for read in reads) <= budget
    assert min(read.summaries for read in reads) > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["k", "v"])
def test_nan_and_infinity_are_refused_and_change_nothing(bad: float, where: str) -> None:
    played, twin = (
        PlayedMemory("edge", {"unit": "summaries"}, frame_tokens=7, clusters=20) for _ in range(2)
    )
    for _ in range(15):
        played.frame(7)
        twin.frame(7)
    before, state = played.memory.stats(), played.random.bit_generator.state
    for layer in range(played.layers):
        q, k, v = (played.floats(7, heads, 16) for heads in (4, 2, 2))
        out = np.empty((7, 4, 16), np.float32)
        played.memory.begin_frame(99.0, np.ones(4, np.float32), 7, 4)
        if layer == 1:
            played.memory.attend(0, q, k.copy(), v.copy(), out, 7)
        (k if where == "k" else v)[6, 1, 15] = bad
        with pytest.raises(ValueError, match="NaN or infinity"):
            played.memory.attend(layer, q, k, v, out, 7)
        played.memory.abort()
    assert played.memory.stats() == before
    played.random.bit_generator.state = state
    for _ in range(5):
        played.frame(7)
        twin.frame(7)
    assert (played.ask(3)[3] == twin.ask(3)[3]).all()
    for lane in range(played.layers):
        assert same(stored(played, lane), stored(twin, lane))
