"""edge against an independent float64 version: what a token joins, what merges, what a question attends to.

Decisions are replayed frame by frame from what the store holds. Means are half precision and distances
single precision in the core, so a decision within MARGIN may fall either way: the oracle tries both, and one
of what it finds must be what the store holds afterwards, every cluster of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from played import PlayedMemory, Token

Array = np.ndarray
MARGIN = 2e-5
REACH = 0.02
ALWAYS: Any = 1
"""members=: kept in pages of DRAM too."""


def half(x: Array) -> Array:
    return x.astype(np.float32).astype(np.float16).astype(np.float64)


# ---- what is admitted ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """A cluster: means [kv_heads * D] as half precision holds them."""

    k: Array
    v: Array
    count: int
    position: float
    first: int
    last: int

    def joined(self, other: Summary) -> Summary:
        """Means of two clusters, or of a cluster and a token, weighted by what they count."""
        share = other.count / (self.count + other.count)
        return Summary(
            half(self.k + share * (other.k - self.k)),
            half(self.v + share * (other.v - self.v)),
            self.count + other.count,
            self.position + share * (other.position - self.position),
            min(self.first, other.first),
            max(self.last, other.last),
        )


def distances(one: Summary, many: list[Summary], value_weight: float) -> Array:
    """2 - 2 cos, of keys and (weighted) values."""

    def cosines(a: Array, b: Array) -> Array:
        norm = np.linalg.norm(a) * np.linalg.norm(b, axis=1)
        return np.divide(b @ a, norm, out=np.zeros_like(norm), where=norm > 0)

    similar = cosines(one.k, np.stack([m.k for m in many]))
    similar = similar + value_weight * cosines(one.v, np.stack([m.v for m in many]))
    return np.asarray(np.maximum(0, 2 - 2 * similar / (1 + value_weight)))


class Script:
    """Which way each decision goes that is too near to call; walks through all ways there are."""

    def __init__(self) -> None:
        self.ways: list[list[int]] = []  # [taken, there are]
        self.at = 0

    def pick(self, ways: int) -> int:
        if self.at == len(self.ways):
            self.ways.append([0, ways])
        self.at += 1
        return self.ways[self.at - 1][0]

    def next(self) -> bool:
        self.at = 0
        while self.ways and self.ways[-1][0] + 1 == self.ways[-1][1]:
            self.ways.pop()
        if self.ways:
            self.ways[-1][0] += 1
        return bool(self.ways)

    def nearest(
        self, token: Summary, ids: list[int], live: dict[int, Summary], weight: float
    ) -> tuple[int, float]:
        if not ids:
            return -1, np.inf
        apart = distances(token, [live[c] for c in ids], weight)
        near = np.flatnonzero(apart <= apart.min() + MARGIN)
        best = int(near[self.pick(len(near))]) if len(near) > 1 else int(near[0])
        return ids[best], float(apart[best])

    def within(self, apart: float, reach: float) -> bool:
        if np.isfinite(apart) and abs(apart - reach) < MARGIN and not apart == reach == 0:
            return self.pick(2) == 0
        return apart <= reach


def closest_pairs(live: dict[int, Summary], weight: float) -> tuple[list[tuple[int, int]], float]:
    """Pairs that may be the closest one, and their distance."""
    ids = list(live)
    found: list[tuple[float, int, int]] = []
    for i, c in enumerate(ids[1:], 1):
        apart = distances(live[c], [live[other] for other in ids[:i]], weight)
        found += [(float(d), c, other) for d, other in zip(apart, ids[:i], strict=True)]
    least = min(found)[0]
    return [(a, b) for d, a, b in found if d <= 1.002 * least + MARGIN], least


def admitted(
    script: Script, before: list[Summary], frame: list[Summary], reach: float, capacity: int, weight: float
) -> tuple[list[Summary], float]:
    """The clusters after one frame, and the reach."""
    live = dict(enumerate(before))
    made = len(before)
    old = list(live)
    labels = []
    for token in frame:  # all against the clusters there were before the frame
        c, apart = script.nearest(token, old, live, weight)
        labels.append(c if script.within(apart, reach) else -1)
    fresh: list[int] = []
    for i, token in enumerate(frame):
        while True:
            if labels[i] < 0 and fresh:
                c, apart = script.nearest(token, fresh, live, weight)
                labels[i] = c if script.within(apart, reach) else -1
            if labels[i] >= 0:
                live[labels[i]] = live[labels[i]].joined(token)
                break
            if len(live) < capacity:
                live[made] = token
                fresh.append(made)
                made += 1
                break
            pairs, apart = closest_pairs(live, weight)
            a, b = pairs[script.pick(len(pairs))] if len(pairs) > 1 else pairs[0]
            if live[b].count > live[a].count:
                a, b = b, a
            live[a] = live[a].joined(live.pop(b))
            labels = [a if label == b else label for label in labels]
            fresh = list(dict.fromkeys(a if c == b else c for c in fresh))
            reach = max(reach, apart)
    return list(live.values()), reach


def stored(played: PlayedMemory, lane: int) -> list[Summary]:
    store = played.memory.store
    columns, k, v = store.clusters(lane), store.mean_k(lane), store.mean_v(lane)
    return [
        Summary(k[c].astype(np.float64), v[c].astype(np.float64), int(n), float(at), int(first), int(last))
        for c, n, at, first, last in zip(
            *(columns[x] for x in ("id", "count", "position", "first_ms", "last_ms")), strict=True
        )
    ]


def same(ours: list[Summary], theirs: list[Summary]) -> bool:
    """Each of ours is one of theirs, none twice."""

    def alike(a: Summary, b: Summary) -> bool:
        return (
            (a.count, a.first, a.last) == (b.count, b.first, b.last)
            and abs(a.position - b.position) < 1e-6
            and np.allclose(a.k, b.k, rtol=2e-3, atol=2e-3)
            and np.allclose(a.v, b.v, rtol=2e-3, atol=2e-3)
        )

    left = list(theirs)
    for a in ours:
        found = next((i for i, b in enumerate(left) if alike(a, b)), None)
        if found is None:
            return False
        left.pop(found)
    return not left


class PlayedEdge:
    """A stream whose every admission is judged."""

    def __init__(self, settings: dict[str, Any] | None = None, clusters: int = 40, **memory: Any) -> None:
        self.settings = settings or {}
        self.clusters = clusters
        self.played = PlayedMemory("edge", self.settings, clusters=clusters, **memory)
        self.reach = [float(self.settings.get("reach", REACH))] * self.played.layers
        self.forks = 0
        """Frames in which something was too near to call."""

    def frame(self, tokens: int, qkv: tuple[Any, ...] | None = None) -> None:
        before = [stored(self.played, lane) for lane in range(self.played.layers)]
        old = len(self.played.stored)
        self.played.frame(tokens, 4, qkv)
        for lane in range(self.played.layers):
            leaving = [
                Summary(
                    half(t.k[lane].ravel()),
                    half(t.v[lane].ravel()),
                    1,
                    t.position,
                    t.frame * 1000,
                    t.frame * 1000,
                )
                for frame in self.played.stored[old:]
                for t in frame
            ]
            self.judge(lane, before[lane], leaving)

    def judge(self, lane: int, before: list[Summary], leaving: list[Summary]) -> None:
        after = stored(self.played, lane)
        weight = float(self.settings.get("value_weight", 1))
        script = Script()
        for _ in range(3000):
            ours, reach = admitted(script, before, leaving, self.reach[lane], self.clusters, weight)
            if same(ours, after):
                self.forks += bool(script.ways)
                self.reach[lane] = reach
                return
            if not script.next():
                break
        raise AssertionError(
            f"frame {self.played.frames}, lane {lane}: the store holds what no decision leads to"
        )

    def account(self) -> None:
        self.played.memory.check_invariants()
        tokens = sum(len(frame) for frame in self.played.stored)
        for lane in range(self.played.layers):
            assert sum(s.count for s in stored(self.played, lane)) == tokens
        stats = self.played.memory.stats()["tokens"]
        assert stats["dropped"] == 0


Frames = Callable[[PlayedMemory, int], Iterator[tuple[Any, ...]]]


def around(noise: float, kinds: int = 9) -> Frames:
    """Frames of tokens around a few directions."""

    def frames(played: PlayedMemory, tokens: int) -> Iterator[tuple[Any, ...]]:
        centres = played.floats(2, played.layers, kinds, played.kv_heads, played.d)
        while True:
            pick = played.random.integers(kinds, size=tokens)
            q = played.floats(played.layers, tokens, played.q_heads, played.d)
            k, v = (c[:, pick] + np.float32(noise) * played.floats(*c[:, pick].shape) for c in centres)
            yield q, k, v

    return frames


@pytest.mark.parametrize("exact", ["fp32", "fp16"])
@pytest.mark.parametrize("value_weight", [0.0, 1.0, 2.5])
@pytest.mark.parametrize(("tokens", "clusters"), [(16, 40), (13, 7), (5, 2), (7, 63), (1, 5)])
def test_every_token_joins_opens_or_merges_as_the_oracle_decides(
    exact: str, value_weight: float, tokens: int, clusters: int
) -> None:
    edge = PlayedEdge({"value_weight": value_weight}, clusters, exact=exact, frame_tokens=tokens)
    frames = around(0.15)(edge.played, tokens)
    for _ in range(30):
        edge.frame(tokens, next(frames))
    edge.account()
    assert edge.forks < 2 * 30 / 3, "most decisions are clear"


ODD: dict[str, Callable[[PlayedMemory, int, int], tuple[Array, Array]]] = {}


def odd(make: Callable[[PlayedMemory, int, int], tuple[Array, Array]]) -> Callable[..., Any]:
    """make(played, tokens, frame): k and v [layers, tokens, kv_heads, D] of a stream that is trouble."""
    ODD[make.__name__] = make
    return make


@odd
def all_frames_equal(played: PlayedMemory, tokens: int, frame: int) -> tuple[Array, Array]:
    k, v = np.random.default_rng(4).standard_normal((2, played.layers, tokens, played.kv_heads, played.d))
    return k, v


@odd
def one_place_changes(played: PlayedMemory, tokens: int, frame: int) -> tuple[Array, Array]:
    k, v = all_frames_equal(played, tokens, frame)
    k[:, tokens // 2] *= np.cos(frame // 3)
    return k, v


@odd
def all_alike(played: PlayedMemory, tokens: int, frame: int) -> tuple[Array, Array]:
    one = np.ones((played.layers, tokens, played.kv_heads, played.d))
    return one, -one


@odd
def zero_keys(played: PlayedMemory, tokens: int, frame: int) -> tuple[Array, Array]:
    k, v = np.asarray(played.random.standard_normal((2, played.layers, tokens, played.kv_heads, played.d)))
    return np.zeros_like(k), v


@odd
def opposites(played: PlayedMemory, tokens: int, frame: int) -> tuple[Array, Array]:
    """Means of what merges are near zero."""
    k, v = all_frames_equal(played, tokens, frame)
    return k * (-1) ** frame, v * (-1) ** (frame // 2)


@odd
def no_two_alike(played: PlayedMemory, tokens: int, frame: int) -> tuple[Array, Array]:
    k, v = np.asarray(played.random.standard_normal((2, played.layers, tokens, played.kv_heads, played.d)))
    return k, v


@odd
def many_sizes(played: PlayedMemory, tokens: int, frame: int) -> tuple[Array, Array]:
    """Keys of one direction, a hundredth to ten long: the metric sees none of it."""
    k, v = no_two_alike(played, tokens, frame)
    return k[:, :1] * 10.0 ** np.linspace(-2, 1, tokens)[None, :, None, None], v


def odd_frame(played: PlayedMemory, name: str, tokens: int, frame: int) -> tuple[Any, ...]:
    k, v = (x.astype(np.float32) for x in ODD[name](played, tokens, frame))
    return played.floats(played.layers, tokens, played.q_heads, played.d), k, v


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize(("tokens", "clusters"), [(13, 6), (7, 40), (1, 2)])
def test_streams_that_ask_for_trouble_are_filed_as_the_oracle_decides(
    name: str, tokens: int, clusters: int
) -> None:
    edge = PlayedEdge({}, clusters, frame_tokens=tokens)
    for n in range(20):
        edge.frame(tokens, odd_frame(edge.played, name, tokens, n))
    edge.account()
    if name == "all_alike":
        assert all(len(stored(edge.played, lane)) == 1 for lane in range(edge.played.layers))
    if name == "all_frames_equal" and clusters > tokens:
        assert all(len(stored(edge.played, lane)) == tokens for lane in range(edge.played.layers))
    if name == "no_two_alike" and clusters < tokens:
        assert edge.played.memory.stats()["events"]["merges"] >= 8 * edge.played.layers


def test_keys_and_values_that_are_all_zero_are_kept_as_zero_and_counted() -> None:
    """Every pair is equally far: any may merge."""
    played = PlayedMemory("edge", clusters=5, frame_tokens=7)
    nothing = np.zeros((2, 7, 2, 16), np.float32)
    for _ in range(20):
        played.frame(7, 4, (played.floats(2, 7, 4, 16), nothing, nothing))
    for lane in range(played.layers):
        held = stored(played, lane)
        assert 0 < len(held) <= 5
        assert sum(s.count for s in held) == sum(len(frame) for frame in played.stored)
        assert all((s.k == 0).all() and (s.v == 0).all() for s in held)
    assert np.isfinite(played.ask(3)[3]).all()
    played.memory.check_invariants()


@pytest.mark.parametrize("exact", ["fp32", "fp16"])
def test_without_members_no_token_takes_a_page(exact: str) -> None:
    played = PlayedMemory("edge", exact=exact, clusters=60, frame_tokens=13)
    stream = around(0.3, 20)(played, 13)
    for _ in range(30):
        played.frame(13, 4, next(stream))
        assert all(not played.memory.store.clusters(lane)["members"].any() for lane in range(played.layers))
    stats = played.memory.stats()
    assert stats["events"]["summarised_clusters"] == 0
    seen = sum(len(frame) for frame in played.stored) * played.layers
    alone = sum(s.count == 1 for lane in range(played.layers) for s in stored(played, lane))
    assert stats["tokens"]["summarised"] == seen - (alone if exact == "fp16" else 0)
    played.memory.check_invariants()


def test_one_frame_is_kept_apart_and_makes_no_cluster() -> None:
    played = PlayedMemory("edge", frame_tokens=13)
    played.frame(13)
    assert all(not stored(played, lane) for lane in range(played.layers))
    check_questions(played)


def test_with_a_cluster_for_every_token_each_is_that_token_bit_by_bit_and_all_are_read() -> None:
    played = PlayedMemory("edge", {"reach": 0, "frames": 0}, exact="fp16", clusters=400, frame_tokens=13)
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


# ---- what a question attends to -----------------------------------------------------------------------


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
    played = PlayedMemory("edge", settings, exact=exact, frame_tokens=tokens, clusters=60)
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
    played = PlayedMemory("edge", {"frames": 2}, frame_tokens=7, clusters=30)
    for n in range(25):
        played.frame(7, 4, odd_frame(played, name, 7, n))
    # Where keys are very long one cluster takes all there is and the rest tie at nothing.
    check_questions(played, most=14, clear=0 if name == "many_sizes" else 5)


@pytest.mark.parametrize("since", [0.0, 7.0, 20.5, 36.0, 99.0])
@pytest.mark.parametrize("members", [False, True])
def test_since_leaves_out_every_mean_that_is_older_in_part(since: float, members: bool) -> None:
    settings = {"frames": 3, **({"members": ALWAYS, "share": 0.3} if members else {})}
    played = PlayedMemory("edge", settings, frame_tokens=13, clusters=60, retrieve_tokens=40)
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
        {"members": ALWAYS, "share": share, "frames": 3},
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
    played, twin = (PlayedMemory("edge", frame_tokens=7, clusters=20) for _ in range(2))
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
