"""Every CPU kernel against float64 NumPy, for every implementation this machine can run."""

from __future__ import annotations

import numpy as np
import pytest
from mosaic_edge._core import ops

Array = np.ndarray
IMPLEMENTATIONS = ops.implementations()
CODECS = ("fp32", "fp16", "int8", "int4")
TOLERANCE = {"fp32": 0, "fp16": 5e-4, "int8": 8e-3, "int4": 0.13}  # rms error over rms


@pytest.fixture(params=IMPLEMENTATIONS)
def kernels(request: pytest.FixtureRequest) -> ops.Kernels:
    return ops.Kernels(request.param, threads=2)


def angles(position: Array, rope: dict) -> Array:
    """[n, 3] positions to [n, rotary_dim / 2] angles."""
    n = rope["rotary_dim"] // 2
    frequency = rope["theta"] ** (-2.0 * np.arange(n) / rope["rotary_dim"])
    axis = np.zeros(n, int)
    sections = rope.get("sections")
    if sections is not None and rope.get("sections_interleaved"):
        for which in (1, 2):
            axis[which : 3 * sections[which] : 3] = which
    elif sections is not None:
        axis = np.repeat([0, 1, 2], sections)
    return position[:, axis] * frequency


def rotate(x: Array, position: Array, rope: dict | None) -> Array:
    """x [n, heads, D] by positions [n, 3], in float64."""
    x = x.astype(np.float64)
    if rope is None:
        return x
    n = rope["rotary_dim"] // 2
    half = rope["layout"] == "half"
    a, b = (slice(0, n), slice(n, 2 * n)) if half else (slice(0, 2 * n, 2), slice(1, 2 * n, 2))
    turn = angles(position, rope)[:, None, :]
    out = x.copy()
    out[..., a] = x[..., a] * np.cos(turn) - x[..., b] * np.sin(turn)
    out[..., b] = x[..., b] * np.cos(turn) + x[..., a] * np.sin(turn)
    return out


def softmax_attention(
    q: Array, k: Array, v: Array, bias: Array, visible: Array, scale: float
) -> tuple[Array, Array, Array]:
    """q [T, Hq, D], k and v [N, Hkv, D], bias [N], visible [T, N] to (out, lse, weights [T, Hq, N])."""
    group = q.shape[1] // k.shape[1]
    keys, values = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    logits = np.einsum("thd,nhd->thn", q, keys) * scale + bias
    logits = np.where(visible[:, None, :], logits, -np.inf)
    top = logits.max(-1, keepdims=True)
    weights = np.exp(logits - top)
    total = weights.sum(-1, keepdims=True)
    return np.einsum("thn,nhd->thd", weights / total, values), (top + np.log(total))[..., 0], weights / total


ROPES = {
    "none": None,
    "half": {"theta": 1e4, "rotary_dim": 64, "layout": "half"},
    "partial": {"theta": 1e6, "rotary_dim": 24, "layout": "half"},
    "interleaved": {"theta": 1e4, "rotary_dim": 64, "layout": "interleaved"},
    "multi": {"theta": 1e6, "rotary_dim": 64, "layout": "half", "sections": (8, 12, 12)},
    "turns": {
        "theta": 1e6,
        "rotary_dim": 64,
        "layout": "half",
        "sections": (12, 10, 10),
        "sections_interleaved": True,
    },
    "follows": {
        "theta": 5e6,
        "rotary_dim": 64,
        "layout": "half",
        "sections": (12, 10, 10),
        "sections_interleaved": True,
        "grid_follows_time": True,
    },
}
TEXT = 0xFFFF  # row and column of a token of text: it stands at t on every axis


@pytest.mark.parametrize("rope_name", ROPES)
@pytest.mark.parametrize(("heads", "group", "tokens"), [(1, 1, 1), (2, 7, 5), (4, 8, 1), (2, 2, 17)])
def test_attend_equals_float64_attention_over_the_decoded_tokens(
    kernels: ops.Kernels, rope_name: str, heads: int, group: int, tokens: int
) -> None:
    rng = np.random.default_rng(heads * 100 + tokens)
    dim, scale, rope = 64, 0.2, ROPES[rope_name]
    pages, positions, keys, values, places = [], [], [], [], []
    for i, count in enumerate((16, 1, 5, 16, 7, 13, 15)):
        codec = CODECS[i % 4]
        k, v = rng.normal(size=(2, count, heads, dim)).astype(np.float32)
        meta = np.zeros((count, 4), np.int32)
        meta[:, 2:] = rng.integers(0, 40, (count, 2))
        meta[1::4, 2:] = TEXT
        page = kernels.encode(codec, k, v, meta)
        begin, end = (0, count) if i % 2 == 0 else (count // 3, count)
        pages.append((codec, page, begin, end))
        at = np.sort(rng.integers(0, 20000, end - begin)).astype(np.int32)
        positions.append(at)
        grid = meta[begin:end, 2:]
        standing = grid + at[:, None] if rope_name == "follows" else grid
        grid = np.where(grid == TEXT, at[:, None], standing)
        places.append(np.concatenate([at[:, None], grid], axis=1))
        decoded = kernels.decode(codec, page, heads, dim, begin, end)
        keys.append(decoded[0])
        values.append(decoded[1])
    mean_k, mean_v = rng.normal(size=(2, 30, heads, dim)).astype(np.float16)
    rows = rng.integers(0, 30, 19).astype(np.int32)
    row_positions = rng.integers(0, 20000, (19, 3)).astype(np.int32)
    row_bias = np.log(rng.integers(1, 50, 19)).astype(np.float32)
    q = rng.normal(size=(tokens, heads * group, dim)).astype(np.float32)
    q_positions = (20000 + rng.integers(0, 50, (tokens, 3))).astype(np.int32)
    block_k, block_v = rng.normal(size=(2, tokens, heads, dim)).astype(np.float32)

    call = kernels.attend(
        q, q_positions, heads, scale, pages=pages, positions=np.concatenate(positions),
        mean_k=mean_k, mean_v=mean_v, rows=rows, row_positions=row_positions, row_bias=row_bias,
        block_k=block_k, block_v=block_v, rope=rope,
    )  # fmt: skip
    call.run()

    k = np.concatenate([*keys, mean_k[rows], block_k]).astype(np.float64)
    v = np.concatenate([*values, mean_v[rows], block_v]).astype(np.float64)
    where = np.concatenate([*places, row_positions, q_positions])
    seen = len(k) - tokens
    bias = np.concatenate([np.zeros(seen - 19), row_bias, np.zeros(tokens)])
    visible = np.concatenate([np.ones((tokens, seen), bool), np.tri(tokens, dtype=bool)], axis=1)
    out, lse, weights = softmax_attention(
        rotate(q, q_positions, rope), rotate(k, where, rope), v, bias, visible, scale
    )
    np.testing.assert_allclose(call.out, out, atol=3e-5)
    np.testing.assert_allclose(call.lse, lse, atol=3e-5)
    page_mass, row_mass = call.mass()
    paid = weights[-1].sum(0)
    np.testing.assert_allclose(page_mass, paid[: seen - 19], atol=1e-4)
    np.testing.assert_allclose(row_mass, paid[seen - 19 : seen], atol=1e-4)
    for first in {0, tokens // 2, tokens - 1}:
        paid = weights[first:].sum((0, 1))
        got = np.concatenate(call.mass(first, block=True))
        np.testing.assert_allclose(got, paid, rtol=1e-4, atol=1e-4)
        assert got.sum() == pytest.approx((tokens - first) * heads * group, rel=1e-5)
        np.testing.assert_array_equal(np.concatenate(call.mass(first)), got[:seen])


def test_attending_nothing_gives_zeros_and_minus_infinity(kernels: ops.Kernels) -> None:
    call = kernels.attend(np.ones((3, 4, 32), np.float32), np.zeros((3, 3), np.int32), 2, 1.0)
    call.run()
    assert not call.out.any()
    assert np.isneginf(call.lse).all()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dim", [5, 32, 80, 128])
def test_pages_decode_to_what_was_encoded(kernels: ops.Kernels, codec: str, dim: int) -> None:
    rng = np.random.default_rng(dim)
    for count in (1, 5, 7, 13, 16):
        k = rng.normal(size=(count, 2, dim)) + 4 * rng.normal(size=(1, 2, dim))
        v = rng.normal(size=(count, 2, dim))
        page = kernels.encode(codec, k, v)
        assert page == kernels.encode(codec, k, v)
        for x, y in zip((k, v), kernels.decode(codec, page, 2, dim, 0, count), strict=True):
            assert np.sqrt(np.mean((x - y) ** 2) / np.mean(x**2)) <= TOLERANCE[codec] + 1e-7


@pytest.mark.parametrize("weight", [0.0, 0.5])
@pytest.mark.parametrize(("items", "rows", "dim"), [(1, 1, 5), (7, 13, 33), (196, 200, 256), (65, 257, 64)])
@pytest.mark.parametrize("cone", [0.0, 10.0])
def test_assign_finds_the_most_similar_centroid(
    kernels: ops.Kernels, items: int, rows: int, dim: int, weight: float, cone: float
) -> None:
    rng = np.random.default_rng(items)
    k, v = (rng.normal(size=(2, items, dim)) + cone).astype(np.float32)
    mean_k, mean_v = (rng.normal(size=(2, rows, dim)) + cone).astype(np.float16)

    def cosines(x: Array, y: Array) -> Array:
        x, y = x.astype(np.float64), y.astype(np.float64)
        norms = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(y, axis=1)
        return x @ y.T / norms

    all_of_them = (cosines(k, mean_k) + weight * cosines(v, mean_v)) / (1 + weight)
    best, similarity = kernels.assign(k, v, mean_k=mean_k, mean_v=mean_v, value_weight=weight)
    np.testing.assert_allclose(similarity, all_of_them.max(1), atol=4e-6)
    np.testing.assert_allclose(all_of_them[np.arange(items), best], all_of_them.max(1), atol=4e-6)
    listed = rng.integers(0, rows, 5).astype(np.int32)
    best, similarity = kernels.assign(k, mean_k=mean_k, rows=listed)
    np.testing.assert_allclose(similarity, cosines(k, mean_k)[:, listed].max(1), atol=4e-6)
    assert np.isin(best, listed).all()


def test_centroids_follow_the_running_mean_and_variance(kernels: ops.Kernels) -> None:
    rng = np.random.default_rng(1)
    items, rows, dim, weight = 300, 7, 65, 0.3
    k, v = rng.normal(size=(2, items, dim)).astype(np.float32)
    mean_k, mean_v = rng.normal(size=(2, rows, dim)).astype(np.float16)
    count = rng.integers(0, 9, rows).astype(np.int32)
    variance = rng.random(rows).astype(np.float32)
    labels = rng.integers(-1, rows, items).astype(np.int32)
    state = [x.astype(np.float64) for x in (mean_k, mean_v, count, variance)]

    def cosine(x: Array, y: Array) -> float:
        return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))

    for x, y, row in zip(k.astype(np.float64), v.astype(np.float64), labels, strict=True):
        if row < 0:
            continue
        n = state[2][row]
        state[0][row] = (n * state[0][row] + x) / (n + 1)
        state[1][row] = (n * state[1][row] + y) / (n + 1)
        near = (cosine(x, state[0][row]) + weight * cosine(y, state[1][row])) / (1 + weight)
        state[3][row] = (n * state[3][row] + 2 - 2 * near) / (n + 1)
        state[2][row] = n + 1
    got = kernels.update_centroids(k, v, labels, mean_k, mean_v, count, variance, weight)
    for mine, expected, tolerance in zip(got, state, (1e-3, 1e-3, 0, 1e-4), strict=True):
        np.testing.assert_allclose(mine.astype(np.float64), expected, atol=tolerance)


@pytest.mark.parametrize(("tokens", "heads", "group", "rows"), [(1, 1, 1, 1), (5, 2, 7, 33), (1, 4, 7, 500)])
def test_scores_are_dot_products_or_attention_mass(
    kernels: ops.Kernels, tokens: int, heads: int, group: int, rows: int
) -> None:
    rng = np.random.default_rng(rows)
    q = rng.normal(size=(tokens, heads * group, 32)).astype(np.float32)
    mean_k = rng.normal(size=(rows, heads, 32)).astype(np.float16)
    bias = rng.normal(size=rows).astype(np.float32)
    by_head = q.reshape(tokens, heads, group, 32).mean((0, 2), dtype=np.float64)
    expected = np.einsum("hd,nhd->n", by_head, mean_k.astype(np.float64))
    np.testing.assert_allclose(kernels.score("dot", q, mean_k), expected, atol=1e-5)
    visible = np.ones((tokens, rows), bool)
    k = mean_k.astype(np.float64)
    weights = softmax_attention(q.astype(np.float64), k, k, bias, visible, 0.3)[2]
    got = kernels.score("mass", q, mean_k, row_bias=bias, scale=0.3)
    np.testing.assert_allclose(got, weights.sum((0, 1)), rtol=1e-4, atol=1e-6)


def strided(x: Array) -> Array:
    """The same rows, five numbers apart."""
    wide = np.full((len(x), x.shape[1] + 5), np.nan, np.float32)
    wide[:, : x.shape[1]] = x
    return wide[:, : x.shape[1]]


@pytest.mark.parametrize("dim", [1, 5, 7, 13, 16, 17, 128])
@pytest.mark.parametrize("items", [1, 5, 13, 16, 17, 3000])
def test_redundancy_is_minus_the_mean_cosine_with_the_recent_keys_of_the_same_place(
    kernels: ops.Kernels, items: int, dim: int
) -> None:
    rng = np.random.default_rng(items * 200 + dim)
    places = 7
    recent, past = rng.normal(size=(2, items, dim)).astype(np.float32)
    recent[::5] = past[::7] = 0
    at, place = rng.integers(0, places - 1, (2, items)).astype(np.int32)  # the last place has no recent key
    place[::4] = places - 1
    start = rng.normal(size=(places, dim)).astype(np.float32)
    start[-1] = 0
    before = np.r_[rng.integers(1, 4, places - 1), 0].astype(np.int32)

    def unit(x: Array) -> Array:
        length = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
        return x / np.where(length > 0, length, 1)

    sums, counts = start.astype(np.float64), before.copy()
    np.add.at(sums, at, unit(recent))
    np.add.at(counts, at, 1)
    got_sums, got_counts = kernels.add_recent_keys(strided(recent), at, start, before)
    np.testing.assert_allclose(got_sums, sums, rtol=1e-5, atol=2e-5)
    np.testing.assert_array_equal(got_counts, counts)
    mean = sums / np.maximum(counts, 1)[:, None]
    expected = -np.einsum("nd,nd->n", unit(past), mean[place])
    got = kernels.temporal_redundancy(strided(past), place, got_sums, got_counts)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert not got[place == places - 1].any()
    assert not got[::7].any()


@pytest.mark.parametrize("dim", [1, 5, 7, 13, 16, 17, 128])
@pytest.mark.parametrize("items", [1, 5, 16, 3000])
def test_row_norms_are_euclidean(kernels: ops.Kernels, items: int, dim: int) -> None:
    x = np.random.default_rng(dim).normal(size=(items, dim)).astype(np.float32)
    x[::3] = 0
    expected = np.linalg.norm(x.astype(np.float64), axis=1)
    np.testing.assert_allclose(kernels.row_norm(strided(x)), expected, rtol=1e-6)
    np.testing.assert_allclose(kernels.row_norm(x.T.copy().T), expected, rtol=1e-6)


@pytest.mark.parametrize("dim", [1, 5, 7, 13, 16, 17, 33, 128])
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 7, 13, 16, 17, 64, 196, 1030])
def test_spectral_energy_is_what_an_fft_without_its_lower_half_leaves(
    kernels: ops.Kernels, tokens: int, dim: int
) -> None:
    x = np.random.default_rng(tokens).normal(size=(tokens, dim)).astype(np.float32) + 3
    x[tokens // 2] = 0
    bins = np.fft.fft(x.astype(np.float64), axis=0)
    frequency = np.minimum(np.arange(tokens), tokens - np.arange(tokens))
    bins[frequency < tokens / 4] = 0
    expected = np.abs(np.fft.ifft(bins, axis=0).real).mean(1)
    np.testing.assert_allclose(kernels.spectral_energy(strided(x)), expected, atol=2e-5)


def test_signals_of_wrong_shapes_are_refused_by_name(kernels: ops.Kernels) -> None:
    k, sums, counts = np.zeros((3, 8)), np.zeros((2, 8)), np.zeros(2)
    with pytest.raises(ValueError, match="one per item"):
        kernels.add_recent_keys(k, np.zeros(2), sums, counts)
    with pytest.raises(ValueError, match="place: 2 of 2"):
        kernels.temporal_redundancy(k, np.full(3, 2), sums, counts)
    with pytest.raises(ValueError, match="sum"):
        kernels.temporal_redundancy(k, np.zeros(3), np.zeros((2, 9)), counts)
    with pytest.raises(ValueError, match="items, dim"):
        kernels.row_norm(np.zeros(3))
    with pytest.raises(ValueError, match="must not be empty"):
        kernels.spectral_energy(np.zeros((3, 0)))
    call = kernels.attend(np.zeros((2, 4, 8), np.float32), np.zeros((2, 3), np.int32), 2, 1.0)
    call.run()
    with pytest.raises(ValueError, match="2 queries"):
        call.mass(2)


@pytest.mark.parametrize("n", [1, 5, 13, 1000])
def test_top_k_keeps_the_highest_and_breaks_ties_by_index(kernels: ops.Kernels, n: int) -> None:
    rng = np.random.default_rng(n)
    for score in (rng.normal(size=n), rng.integers(0, 4, n)):
        score = score.astype(np.float32)
        order = np.argsort(-score, kind="stable")
        for k in (0, 1, 7, n, n + 3):
            np.testing.assert_array_equal(kernels.top_k(score, k), order[:k])


def test_merging_parts_equals_the_whole(kernels: ops.Kernels) -> None:
    rng = np.random.default_rng(0)
    logits, values = rng.normal(size=(9, 40)) * 5, rng.normal(size=(40, 33))

    def part(at: slice) -> tuple[Array, Array]:
        weights = np.exp(logits[:, at])
        return weights @ values[at] / weights.sum(1, keepdims=True), np.log(weights.sum(1))

    out, lse = kernels.merge(*part(slice(0, 13)), *part(slice(13, 40)))
    expected, expected_lse = part(slice(0, 40))
    np.testing.assert_allclose(out, expected, atol=1e-5)
    np.testing.assert_allclose(lse, expected_lse, atol=1e-5)


def test_wrong_shapes_are_refused_by_name(kernels: ops.Kernels) -> None:
    q, at = np.zeros((2, 4, 8), np.float32), np.zeros((2, 3), np.int32)
    page = kernels.encode("int8", np.zeros((3, 2, 8)), np.zeros((3, 2, 8)))
    with pytest.raises(ValueError, match="kv_heads must divide"):
        kernels.attend(q, at, 3, 1.0)
    with pytest.raises(ValueError, match="wrong number of bytes"):
        kernels.attend(q, at, 2, 1.0, pages=[("fp16", page, 0, 3)], positions=np.zeros(3, np.int32))
    with pytest.raises(ValueError, match="positions: expected"):
        kernels.attend(q, at, 2, 1.0, pages=[("int8", page, 0, 3)], positions=np.zeros(2, np.int32))
    with pytest.raises(ValueError, match="rotary_dim"):
        kernels.attend(q, at, 2, 1.0, rope={"rotary_dim": 9})
    with pytest.raises(ValueError, match="16 tokens"):
        kernels.encode("fp16", np.zeros((17, 2, 8)), np.zeros((17, 2, 8)))
    with pytest.raises(ValueError, match="int3"):
        kernels.encode("int3", np.zeros((3, 2, 8)), np.zeros((3, 2, 8)))
    with pytest.raises(ValueError, match="no such row"):
        kernels.assign(np.zeros((2, 8)), mean_k=np.zeros((3, 8)), rows=np.array([3], np.int32))
    with pytest.raises(ValueError, match="mean_k"):
        kernels.assign(np.zeros((2, 8)), mean_k=np.zeros((3, 9)))
    with pytest.raises(ValueError, match="mode"):
        kernels.score("mean", q, np.zeros((3, 2, 8)))
