"""mukv against an independent float64 version: which tokens units hold, which units a question reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from played import PlayedMemory, Token

PATCH, FRAME, SEGMENT = 0, 1, 2
SHARE, ATTENTION, K, WEIGHT = (0.1, 0.1, 0.8), (0.5, 0.7, 0.8), (20, 32, 12), (0.3, 0.3, 0.0)
NAMES = ("patch", "frame", "segment")


def play(settings: dict[str, Any] | None = None, segment: int = 4, **memory: Any) -> PlayedMemory:
    """A memory with `segment` frames a segment and room for everything."""
    played = PlayedMemory("mukv", {"segment": segment, **(settings or {})}, **{"clusters": 600, **memory})
    played.batch_frames = segment
    return played


# ---- which tokens a unit holds -----------------------------------------------------------------------


def energy(keys: np.ndarray) -> np.ndarray:
    """High-frequency energy of keys [n, d] along the tokens: mean |inverse DFT of the upper frequencies|."""
    n = len(keys)
    spectrum = np.fft.fft(keys, axis=0)
    spectrum[np.abs(np.fft.fftfreq(n)) < 0.25 - 1e-12] = 0
    return np.abs(np.fft.ifft(spectrum, axis=0).real).mean(1)


def random_signal(token: Token) -> float:
    mask = (1 << 64) - 1
    x = (token.position << 32 | token.y << 16 | token.x) + 0x9E3779B97F4A7C15 & mask
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
    x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
    return float((x ^ x >> 31) >> 40)


def normalised(x: np.ndarray) -> np.ndarray:
    return (x - x.min()) / (x.max() - x.min()) if x.max() > x.min() else np.zeros_like(x)


@dataclass
class Wanted:
    """A unit of the paper: its candidates, their importance, how many of them it keeps."""

    kind: int
    frame: int
    tokens: list[Token]
    importance: np.ndarray
    keep: int


def wanted_units(
    segment: list[list[Token]], layer: int, signal: str, patch: int, share: tuple[float, ...]
) -> list[Wanted]:
    """The units of one segment, finest first."""
    tokens = [t for frame in segment for t in frame]
    attention = np.array([t.received[layer] for t in tokens])
    if signal == "random":
        high = np.array([random_signal(t) for t in tokens])
    else:
        high = energy(np.stack([t.k[layer].ravel() for t in tokens]))
    first = tokens[0].position
    found: dict[int, list[Wanted]] = {PATCH: [], FRAME: [], SEGMENT: []}

    def add(kind: int, frame: int, members: list[Token]) -> None:
        at = [t.position - first for t in members]
        a = {"both": ATTENTION[kind], "attention": 1.0}.get(signal, 0.0)
        importance = a * normalised(attention[at]) + (1 - a) * normalised(high[at])
        keep = max(1, int(np.floor(share[kind] * len(members) + 0.5)))
        found[kind].append(Wanted(kind, frame, members, importance, keep))

    for number, frame in enumerate(segment):
        height, width = max(t.y for t in frame) + 1, max(t.x for t in frame) + 1
        rows, columns = (patch, patch) if patch else (-(-height // 2), -(-width // 2))
        if patch == 0 and share[PATCH] * rows * columns < 1:
            rows, columns = height, width
        for top in range(0, height, rows):
            for left in range(0, width, columns):
                inside = [t for t in frame if t.y // rows * rows == top and t.x // columns * columns == left]
                if inside:
                    add(PATCH, number, inside)
        add(FRAME, number, frame)
    add(SEGMENT, 0, tokens)
    return found[PATCH] + found[FRAME] + found[SEGMENT]


def check_units(
    played: PlayedMemory,
    signal: str = "both",
    patch: int = 0,
    share: tuple[float, ...] = SHARE,
    slack: float = 1e-4,
) -> None:
    """Every stored token is in the unit that the oracle puts it in, up to ties within `slack`."""
    step = played.batch_frames
    assert len(played.stored) % step == 0
    for layer in range(played.layers):
        cluster_of = played.members(layer)
        clusters = played.memory.store.clusters(layer)
        tag = dict(zip(clusters["id"].tolist(), clusters["tag"].tolist(), strict=True))
        born = dict(zip(clusters["id"].tolist(), clusters["born"].tolist(), strict=True))
        used: set[int] = set()
        for at in range(0, len(played.stored), step):
            segment = played.stored[at : at + step]
            finer: set[int] = set()  # positions that a finer unit holds
            for unit in wanted_units(segment, layer, signal, patch, share):
                importance = dict(zip((t.position for t in unit.tokens), unit.importance, strict=True))
                own = {p for p in importance if p in cluster_of and tag[cluster_of[p]] % 4 == unit.kind}
                ids = {cluster_of[p] for p in own}
                assert len(ids) <= 1, "a unit is one cluster"
                used |= ids
                for c in ids:
                    assert born[c] == segment[0][0].frame
                    assert unit.kind == SEGMENT or tag[c] // 4 == unit.frame
                # The unit is its best `keep`; those that a finer one holds stay there.
                held = own | (finer & importance.keys())
                least = np.sort(unit.importance)[::-1][unit.keep - 1]
                for position, value in importance.items():
                    if value > least + slack:
                        assert position in held
                    if position in own:
                        assert value > least - slack
                best = sorted(importance, key=lambda p: (-importance[p], p))[: unit.keep]
                clear = [v for v in unit.importance if abs(v - least) <= slack]
                if len(clear) == 1:
                    assert own == set(best) - finer
                finer |= own
            stored = {t.position for frame in segment for t in frame if t.position in cluster_of}
            assert stored == finer
        assert used == set(clusters["id"].tolist()), "no cluster holds nothing"
    stats = played.memory.stats()
    assert stats["tokens"]["collapsed"] == 0
    played.memory.check_invariants()


@pytest.mark.parametrize("exact", ["fp32", "fp16"])
@pytest.mark.parametrize("segment", [1, 3, 4])
@pytest.mark.parametrize(("tokens", "grid_w"), [(16, 4), (15, 5), (13, 5), (1, 1), (6, 1)])
def test_units_hold_what_signals_most(exact: str, segment: int, tokens: int, grid_w: int) -> None:
    played = play(segment=segment, exact=exact, frame_tokens=tokens)
    for _ in range(4 + 3 * segment):
        played.frame(tokens, grid_w)
    assert played.stored
    check_units(played, slack=1e-4 if exact == "fp32" else 2e-3)


@pytest.mark.parametrize("signal", ["both", "attention", "frequency", "random"])
@pytest.mark.parametrize("patch", [0, 2, 3, 99])
def test_each_signal_and_super_patches_of_any_side(signal: str, patch: int) -> None:
    played = play({"signal": signal, "patch": patch}, frame_tokens=35)  # patch=0: four of 3 x 4 and less
    for _ in range(13):
        played.frame(35, 7)
    check_units(played, signal, patch)


def test_shares_are_settings_and_a_frame_size_may_change_from_frame_to_frame() -> None:
    share = (0.3, 0.5, 0.6)
    played = play(dict(zip((f"{n}_share" for n in NAMES), share, strict=True)), frame_tokens=16)
    for n in range(17):
        played.frame([16, 9, 1, 12, 7][n % 5], [4, 3, 1, 5, 7][n % 5])
    check_units(played, share=share)


def test_equal_frames_and_equal_tokens_are_told_apart_by_their_order_alone() -> None:
    played = play(frame_tokens=16)
    token = [played.floats(2, 1, heads, 16) for heads in (4, 2, 2)]
    for _ in range(13):
        played.frame(16, 4, tuple(np.repeat(x, 16, axis=1) for x in token))
    check_units(played, "frequency")  # constant keys: no energy but rounding; attention tells them apart
    same = tuple(played.floats(2, 16, heads, 16) for heads in (4, 2, 2))
    played = play(frame_tokens=16)
    for _ in range(13):
        played.frame(16, 4, same)
    check_units(played)


def test_nan_is_refused_and_changes_nothing() -> None:
    played = play(frame_tokens=16)
    for _ in range(13):
        played.frame(16)
    before = played.members(1)
    q, k, v = (played.floats(16, heads, 16) for heads in (4, 2, 2))
    v[0, 0, 0] = np.inf
    played.memory.begin_frame(99.0, np.ones(4, np.float32), 16, 4)
    with pytest.raises(ValueError, match="NaN or infinity"):
        played.memory.attend(0, q, k, v, np.empty((16, 4, 16), np.float32), 16)
    assert played.members(1) == before
    for _ in range(4):
        played.frame(16)
    check_units(played)


# ---- which units a question reads --------------------------------------------------------------------


@dataclass
class Unit:
    kind: int
    clusters: list[int]
    score: float
    mean: np.ndarray
    place: int  # in time order, for ties


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm > 0 else 0.0


def read_clusters(
    played: PlayedMemory,
    layer: int,
    q: np.ndarray,
    budget: int,
    retrieval: str = "semi",
    score: str = "cosine",
    k: tuple[int, ...] = K,
    weight: tuple[float, ...] = WEIGHT,
    context: int = 5,
    since_ms: int = -1,
) -> set[int]:
    """Ids of the clusters that a question reads."""
    store = played.memory.store
    columns = {name: col.tolist() for name, col in store.clusters(layer).items()}
    means = store.mean_k(layer).astype(np.float64)
    info = {
        c: (b, t, n)
        for c, b, t, n, last in zip(
            *(columns[x] for x in ("id", "born", "tag", "count", "last_ms")), strict=True
        )
        if last >= since_ms
    }
    order = sorted(info, key=lambda c: (info[c][0], info[c][1], c))
    query = q[layer].mean(0).reshape(played.kv_heads, -1, played.d).mean(1).ravel()
    mass: dict[int, float] = {}
    if score == "mass" and order:
        group = played.q_heads // played.kv_heads
        rows = np.repeat(means[order].reshape(len(order), played.kv_heads, played.d), group, axis=1)
        logits = np.einsum("tqd,cqd->tqc", q[layer], rows) / np.sqrt(played.d)
        logits += np.log([info[c][2] for c in order])
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        mass = dict(zip(order, (weights / weights.sum(-1, keepdims=True)).sum((0, 1)), strict=True))

    groups: dict[tuple[int, int, int], list[int]] = {}
    for c in order:
        born, tag, _ = info[c]
        if tag % 4 == PATCH:
            groups[PATCH, born, c] = [c]
        if tag % 4 != SEGMENT:
            groups.setdefault((FRAME, born, tag // 4), []).append(c)
        groups.setdefault((SEGMENT, born, 0), []).append(c)
    lists: list[list[Unit]] = [[], [], []]
    for (kind, _, _), ids in groups.items():
        counts = np.array([info[c][2] for c in ids])
        mean = (means[ids] * counts[:, None]).sum(0) / counts.sum()
        value = sum(mass[c] for c in ids) if score == "mass" else cosine(mean, query)
        lists[kind].append(Unit(kind, ids, value, mean, order.index(ids[0])))
    for kind in (SEGMENT, FRAME, PATCH):
        if retrieval == "strict" and kind != SEGMENT:
            above = lists[kind + 1]
            lists[kind] = [b for b in lists[kind] if any(set(b.clusters) <= set(a.clusters) for a in above)]
        lists[kind].sort(key=lambda b: (-b.score, b.place))
        del lists[kind][k[kind] * (2 if retrieval == "semi" else 1) :]
        if score == "mass" and lists[kind] and lists[kind][0].score > 0:
            best = lists[kind][0].score
            for unit in lists[kind]:
                unit.score /= best
    if retrieval == "semi" and lists[SEGMENT]:
        centre = np.mean([b.mean for b in lists[SEGMENT][:context]], axis=0)
        for kind in (SEGMENT, FRAME, PATCH):
            for unit in lists[kind]:
                unit.score = (1 - weight[kind]) * unit.score + weight[kind] * cosine(unit.mean, centre)
            lists[kind].sort(key=lambda b: (-b.score, b.place))
            del lists[kind][k[kind] :]
    turns = sorted(((i + 0.5) / k[kind], -kind, i) for kind in range(3) for i in range(len(lists[kind])))
    read: set[int] = set()
    tokens = 0
    for _, kind, i in turns:
        fresh = set(lists[-kind][i].clusters) - read
        cost = sum(info[c][2] for c in fresh)
        if tokens + cost <= budget:
            read |= fresh
            tokens += cost
    return read


def check_questions(
    played: PlayedMemory, budget: int, since: float | None = None, **search: Any
) -> list[int]:
    """Every question's attention is over what the oracle reads and no more; returns how many tokens."""
    sizes = []
    for tokens in (1, 6, 3):
        q, k, v, out = played.ask(tokens, since)
        for layer in range(played.layers):
            wanted = read_clusters(
                played, layer, q, budget, since_ms=-1 if since is None else int(since * 1000), **search
            )
            cluster_of = played.members(layer)
            read = [t for frame in played.stored for t in frame if cluster_of.get(t.position) in wanted]
            sizes.append(len(read))
            truth = played.expected(layer, read, q, k, v, -1 if since is None else since)
            np.testing.assert_allclose(out[layer], truth, atol=2e-4)
    return sizes


SMALL: dict[str, Any] = {"k": (5, 4, 2), "weight": (0.6, 0.4, 0.5), "context": 2}
SMALL_SETTINGS = {
    **{f"{n}_k": SMALL["k"][i] for i, n in enumerate(NAMES)},
    **{f"{n}_weight": SMALL["weight"][i] for i, n in enumerate(NAMES)},
    "context": 2,
}


@pytest.mark.parametrize("exact", ["fp32", "fp16"])
@pytest.mark.parametrize("retrieval", ["semi", "parallel", "strict"])
@pytest.mark.parametrize("score", ["cosine", "mass"])
@pytest.mark.parametrize(("tokens", "grid_w"), [(16, 4), (15, 5), (1, 1)])
def test_a_question_reads_the_units_of_the_oracle(
    exact: str, retrieval: str, score: str, tokens: int, grid_w: int
) -> None:
    settings = {**SMALL_SETTINGS, "retrieval": retrieval, "score": score}
    played = play(settings, exact=exact, frame_tokens=tokens, retrieve_tokens=600)
    check_questions(played, 600, retrieval=retrieval, score=score, **SMALL)  # nothing is stored yet
    for _ in range(33):
        played.frame(tokens, grid_w)
    sizes = check_questions(played, 600, retrieval=retrieval, score=score, **SMALL)
    assert min(sizes) > 0
    assert max(sizes) < len(played.members(0)), "not everything is read"


@pytest.mark.parametrize("retrieval", ["semi", "parallel", "strict"])
@pytest.mark.parametrize("budget", [2, 9, 40, 130])
def test_a_small_budget_is_kept_and_shared_by_the_granularities(retrieval: str, budget: int) -> None:
    # fp16: tokens alone lie in means and take no page; in fp32 each takes one; two pages per 16 are planned.
    played = play({"retrieval": retrieval}, exact="fp16", frame_tokens=16, retrieve_tokens=budget)
    for _ in range(41):
        played.frame(16)
    sizes = check_questions(played, budget, retrieval=retrieval)
    assert played.memory.stats()["events"]["unread_pages"] == 0
    assert max(sizes) <= budget
    assert max(sizes) > budget / 2 or budget < 3  # the least unit has two tokens


def test_published_settings_read_sixty_four_units_and_since_bounds_them() -> None:
    played = play(frame_tokens=16, retrieve_tokens=10**5, cap_bytes=64 << 20, clusters=2000)
    for _ in range(121):
        played.frame(16)
    check_questions(played, 10**5)
    check_questions(played, 10**5, since=57.0)


# ---- under a cap --------------------------------------------------------------------------------------


@pytest.mark.parametrize("clusters", [21, 45, 0])
@pytest.mark.parametrize("disk", [0, 60 << 10, 16 << 20])
@pytest.mark.parametrize("cap", [700 << 10, 1 << 20])
def test_the_coarse_yields_first_the_old_before_the_new_and_questions_stay_exact(
    clusters: int, disk: int, cap: int, tmp_path: Path
) -> None:
    played = play(
        SMALL_SETTINGS,
        exact="fp16",
        frame_tokens=16,
        cap_bytes=cap,
        clusters=clusters,
        disk_bytes=disk,
        spill_dir=str(tmp_path),
        retrieve_tokens=96,
    )
    for n in range(120):
        played.frame(16)
        if n % 10 == 9:
            played.memory.check_invariants()
    played.memory.drain()
    stats = played.memory.stats()
    assert stats["tokens"]["collapsed"] == 0
    assert stats["tokens"]["dropped"] > 0
    for layer in range(played.layers):
        columns = played.memory.store.clusters(layer)

        def born(kind: int, c: dict[str, Any] = columns) -> list[int]:
            return sorted(set(c["born"][(c["tag"] % 4 == kind) & (c["members"] > 1)].tolist()))

        assert born(SEGMENT)[-1] == 113, "the newest segment is whole"
        newest = set(range(min(born(SEGMENT)), 114, 4))
        assert set(born(SEGMENT)) == newest, "segments' own tokens go oldest first, none is left out"
        assert min(columns["born"]) <= min(born(SEGMENT)), "what is left of older segments is sparse"
    if disk == 0:
        check_questions(played, 96, **SMALL)
