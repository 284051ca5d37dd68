"""infinipot-v against the published algorithm in float64 NumPy: what is kept after many compressions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from mosaic_edge._core import KvMemory, MemoryCapError

from mosaic_edge.config import SessionConfig
from played import give_frame

Array = np.ndarray
PAGE = 16
LAYERS, Q_HEADS, HEADS, DIM = 2, 4, 2, 12
LANES = LAYERS * HEADS
TIE = 1e-5
SETTINGS: dict[str, Any] = {"alpha": 0.5, "keep": 0.75, "recent": 0.125, "pool": False, "order": "both"}
KERNELS = ((0.1, 3, 3, 3), (0.2, 0, 2, 2), (0.4, 0, 0, 1))  # variation below which: frames, rows, columns

# Keys and values of frame f in every lane: ([lanes, tokens, DIM], the same).
Source = Callable[[np.random.Generator, int, int], tuple[Array, Array]]


def lively(rng: np.random.Generator, frame: int, tokens: int) -> tuple[Array, Array]:
    del frame
    k, v = rng.normal(size=(2, LANES, tokens, DIM))
    return k, v


def still(rng: np.random.Generator, frame: int, tokens: int) -> tuple[Array, Array]:
    """The same frame over and over, but for one place that changes now and then."""
    del rng
    same = np.random.default_rng(5)
    k, v = same.normal(size=(2, LANES, tokens, DIM))
    k[:, tokens // 2] += 0.3 * (frame // 3)
    return k, v


def equal(rng: np.random.Generator, frame: int, tokens: int) -> tuple[Array, Array]:
    del rng, frame
    return np.ones((LANES, tokens, DIM)), np.ones((LANES, tokens, DIM))


def zero_keys(rng: np.random.Generator, frame: int, tokens: int) -> tuple[Array, Array]:
    k, v = lively(rng, frame, tokens)
    return k * (rng.random((LANES, tokens, 1)) < 0.5), v * (frame % 3 != 0)


def even_norms(rng: np.random.Generator, frame: int, tokens: int) -> tuple[Array, Array]:
    """Value norms that vary by 2 to 40 percent, lane by lane: every kernel is used."""
    k, v = lively(rng, frame, tokens)
    v /= np.linalg.norm(v, axis=2, keepdims=True)
    spread = np.array([0.02, 0.15, 0.3, 0.8])[:, None]
    return k, v * np.exp(spread * rng.normal(size=(LANES, tokens)))[:, :, None]


class Lane:
    """One pot, replayed: tokens as (frame, place in the frame, keys, values), oldest first."""

    def __init__(self) -> None:
        self.tokens: list[tuple[int, int, Array, Array]] = []
        self.margin: dict[
            tuple[int, int], float
        ] = {}  # of the last compression: how near each token was to the cut

    def pages(self) -> int:
        return -(-len(self.tokens) // PAGE)

    def compress(self, target: int, grid_w: int, cut: bool, settings: dict[str, Any]) -> None:
        """cut: the last frame is not all here yet."""
        n = len(self.tokens)
        self.margin = {}
        if n <= target:
            return
        kept = np.zeros(n, bool)
        if settings["order"] == "uniform":
            for i in range(n):
                kept[i] = (i + 1) * target // n > i * target // n
        else:
            kept = self.choose(n, target, grid_w, cut, settings)
        self.tokens = [token for token, stays in zip(self.tokens, kept, strict=True) if stays]

    def choose(self, n: int, target: int, grid_w: int, cut: bool, settings: dict[str, Any]) -> Array:
        order = settings["order"]
        alpha = {"tar": 1.0, "van": 0.0}.get(order, settings["alpha"])
        frames = np.array([token[0] for token in self.tokens])
        places = np.array([token[1] for token in self.tokens])
        keys = np.array([token[2] for token in self.tokens], np.float64)
        norms = np.linalg.norm(np.array([token[3] for token in self.tokens], np.float64), axis=1)
        # The newest frames, at least a whole one, while they are at most `recent` of the tokens.
        recent = frames >= np.unique(frames)[-2 if cut else -1 :][0]
        for frame in np.unique(frames)[::-1]:
            if (frames >= frame).sum() > settings["recent"] * n:
                break
            recent |= frames >= frame
        length = np.linalg.norm(keys, axis=1, keepdims=True)
        unit = np.divide(keys, length, out=np.zeros_like(keys), where=length > 0)
        tar = np.zeros(n)
        for i in np.flatnonzero(~recent):
            same = recent & (places == places[i])
            if same.any():
                tar[i] = -np.mean(unit[same] @ unit[i])
        van = self.pooled(frames, places, norms, grid_w) if settings["pool"] else norms
        if order == "reversed":
            tar, van = -tar, -van
        kept = np.zeros(n, bool)
        if alpha > 0:
            newest = np.flatnonzero(recent)[::-1][:target]
            kept[newest] = True
            self.take(kept, tar, ~recent, int(alpha * target) - int(kept.sum()))
        self.take(kept, van, np.ones(n, bool), target - int(kept.sum()))
        return kept

    @staticmethod
    def pooled(frames: Array, places: Array, norms: Array, grid_w: int) -> Array:
        mean = norms.mean()
        variation = norms.std() / mean if mean > 0 else 0.0
        kernel = next((k[1:] for k in KERNELS if variation < k[0]), None)
        if mean == 0 or kernel is None:
            return norms
        ordinal = np.unique(frames, return_inverse=True)[1]
        place = np.stack([ordinal, places // grid_w, places % grid_w], axis=1)
        near = np.abs(place[:, None] - place[None]) <= np.array(kernel)
        weight = near.all(axis=2)
        return (weight @ norms) / weight.sum(axis=1)

    def take(self, kept: Array, score: Array, among: Array, wanted: int) -> None:
        free = np.flatnonzero(among & ~kept)
        wanted = min(max(wanted, 0), len(free))
        ranked = sorted(free, key=lambda i: (-score[i], -i))
        kept[ranked[:wanted]] = True
        if 0 < wanted < len(ranked):
            cut = (score[ranked[wanted - 1]] + score[ranked[wanted]]) / 2
            for i in free:
                at = self.tokens[i][:2]
                self.margin[at] = min(self.margin.get(at, np.inf), abs(score[i] - cut))


class Replay:
    """Pages and pots of all lanes, as the published loop would fill and compress them."""

    def __init__(self, slots: int, grid_w: int, settings: dict[str, Any]) -> None:
        self.slots, self.grid_w = slots, grid_w
        self.settings = {**SETTINGS, **settings}
        self.lanes = [Lane() for _ in range(LANES)]
        self.compressions = 0

    def file(self, frame: int, k: Array, v: Array) -> None:
        tokens = k.shape[1]
        full = self.slots // LANES * PAGE
        for at, lane in enumerate(self.lanes):
            for i in range(tokens):
                if len(lane.tokens) % PAGE == 0 and sum(x.pages() for x in self.lanes) == self.slots:
                    self.compressions += 1
                    for other, pot in enumerate(self.lanes):
                        coming = 0 if other < at else tokens - (i if other == at else 0)
                        target = max(0, int(self.settings["keep"] * full) - coming)
                        pot.compress(target, self.grid_w, other == at and i > 0, self.settings)
                lane.tokens.append((frame, i, k[at, i], v[at, i]))


def model(tokens: int) -> dict[str, Any]:
    return {
        "layers": LAYERS, "q_heads": Q_HEADS, "kv_heads": HEADS, "head_dim": DIM, "rope": {"rotary_dim": DIM},
        "embedding_dim": 2, "frame_tokens": tokens, "video_window": 2,
    }  # fmt: skip


def least_cap(tokens: int) -> int:
    low, high = 0, 4 << 20
    while low + 64 < high:
        middle = (low + high) // 2
        try:
            make(tokens, middle, {})
            high = middle
        except MemoryCapError:
            low = middle
    return high


def make(tokens: int, cap: int, settings: dict[str, Any]) -> KvMemory:
    memory = {
        "cap_bytes": cap, "exact": "fp32", "packed": "fp32", "window_frames": 2, "branch_tokens": 32,
        "max_cluster_tokens": 2,
    }  # fmt: skip
    return KvMemory(model(tokens), memory, "infinipot-v", settings, threads=1)


def push(memory: KvMemory, frame: int, k: Array, v: Array, grid_w: int) -> None:
    """k, v [lanes, tokens, DIM] as one frame through every layer."""
    tokens = k.shape[1]
    q = np.ones((LAYERS, tokens, Q_HEADS, DIM))
    k, v = (x.reshape(LAYERS, HEADS, tokens, DIM).transpose(0, 2, 1, 3) for x in (k, v))
    give_frame(memory, float(frame), np.ones(2), grid_w, q, k, v)


def compare(
    source: Source, tokens: int, grid_w: int, settings: dict[str, Any], spare: int = 24 << 10, rounds: int = 5
) -> int:
    """Plays a stream until the pots were compressed `rounds` times; returns how many tokens were checked."""
    rng = np.random.default_rng(tokens * 31 + grid_w)
    memory = make(tokens, least_cap(tokens) + spare, settings)
    slots = sum(tier["pages"] for tier in memory.plan()["tiers"])
    replay = Replay(slots, grid_w, settings)
    seen: list[tuple[Array, Array]] = []
    checked = 0
    while replay.compressions < rounds:
        frame = len(seen)
        assert frame < 4000
        k, v = (x.astype(np.float32) for x in source(rng, frame, tokens))
        seen.append((k, v))
        push(memory, frame, k, v, grid_w)
        leaves = frame - 2  # the window keeps two; the first frame is kept elsewhere for ever
        if leaves < 1:
            continue
        before = replay.compressions
        replay.file(leaves, *seen[leaves])
        if replay.compressions == before:
            continue
        memory.check_invariants()
        for at, lane in enumerate(replay.lanes):
            members = memory.store.members(at)
            position = members["position"]
            assert (np.diff(position) > 0).all(), "kept in time order"
            kept = [(int(p) // tokens, int(p) % tokens) for p in position]
            expected = [token[:2] for token in lane.tokens]
            assert len(kept) == len(expected)
            for token in set(kept) ^ set(expected):
                assert lane.margin.get(token, np.inf) <= TIE, f"lane {at}: {token} was no tie"
            checked += len(kept)
            np.testing.assert_array_equal(members["k"], [seen[f][0][at, i] for f, i in kept])
            np.testing.assert_array_equal(members["v"], [seen[f][1][at, i] for f, i in kept])
            # Ties may fall either way: go on from what is there.
            lane.tokens = [(f, i, seen[f][0][at, i], seen[f][1][at, i]) for f, i in kept]
    stats = memory.stats()
    assert stats["events"]["thinned_clusters"] >= rounds
    assert stats["events"]["unread_pages"] == 0
    return checked


@pytest.mark.parametrize("source", [lively, still, equal, zero_keys, even_norms])
@pytest.mark.parametrize(("tokens", "grid_w"), [(15, 5), (16, 4), (13, 5), (1, 1), (7, 9)])
def test_what_is_kept_is_what_the_published_algorithm_keeps(source: Source, tokens: int, grid_w: int) -> None:
    assert compare(source, tokens, grid_w, {}) > 0


@pytest.mark.parametrize("order", ["both", "tar", "van", "reversed", "uniform"])
@pytest.mark.parametrize("pool", [True, False])
def test_every_order_of_the_ablation_keeps_what_its_name_says(order: str, pool: bool) -> None:
    assert compare(even_norms, 15, 3, {"order": order, "pool": pool}) > 0


@pytest.mark.parametrize(
    "settings", [{"alpha": 0.9, "keep": 0.5}, {"alpha": 0.0, "recent": 0.0}, {"alpha": 1.0, "recent": 0.6}]
)
def test_shares_are_taken_as_set(settings: dict[str, float]) -> None:
    assert compare(still, 15, 5, settings, spare=48 << 10) > 0


def test_a_cap_for_a_few_frames_keeps_the_published_share() -> None:
    assert compare(lively, 16, 4, {}, spare=0, rounds=8) > 0


def test_nan_is_refused_and_leaves_the_pot_as_it_was() -> None:
    rng = np.random.default_rng(3)
    memory = make(15, least_cap(15), {})
    for frame in range(40):
        push(memory, frame, *lively(rng, frame, 15), 5)
    before = [memory.store.members(lane)["position"] for lane in range(LANES)]
    k, v = lively(rng, 40, 15)
    v[-1, 3, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        push(memory, 40, k, v, 5)
    for lane, positions in enumerate(before):
        np.testing.assert_array_equal(memory.store.members(lane)["position"], positions)
    push(memory, 40, *lively(rng, 40, 15), 5)
    memory.check_invariants()


def test_one_frame_and_no_frame_need_no_compression() -> None:
    memory = make(15, least_cap(15), {})
    assert all(len(memory.store.members(lane)["position"]) == 0 for lane in range(LANES))
    push(memory, 0, *lively(np.random.default_rng(0), 0, 15), 5)
    assert memory.stats()["tokens"]["dropped"] == 0
    memory.check_invariants()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("alpha", 1.5),
        ("keep", 0.0),
        ("keep", 1.0),
        ("recent", -0.1),
        ("pool", 2),
        ("order", "best"),
        ("beta", 1),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=setting):
        make(15, 1 << 20, {setting: value})


def test_words_reach_the_policy_through_a_session_config() -> None:
    chosen = SessionConfig(policy_settings={"order": "uniform", "pool": False, "alpha": 1}).core_settings()
    assert chosen == {"order": "uniform", "pool": 0.0, "alpha": 1.0}
    make(15, 1 << 20, chosen)
