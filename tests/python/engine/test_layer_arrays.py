"""Arrays that attend() takes: NumPy or DLPack, never copied; anything else is refused by name."""

from __future__ import annotations

import numpy as np
import pytest

from mosaic_edge import _core

MODEL = {"layers": 2, "q_heads": 4, "kv_heads": 2, "head_dim": 16, "embedding_dim": 3, "frame_tokens": 5}
MEMORY = {"cap_bytes": 1 << 20, "exact": "fp32", "packed": "fp32"}
TOKENS = 5


class Foreign:
    """An array of another library: what it says of itself, and what it hands out."""

    def __init__(self, **attributes: object) -> None:
        for name, value in attributes.items():
            setattr(self, name, value)


def arrays(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = [(TOKENS, 4, 16), (TOKENS, 2, 16), (TOKENS, 2, 16)]
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def played(change) -> list[np.ndarray]:
    """Out of every layer of three frames whose arrays went through `change`."""
    memory = _core.KvMemory(MODEL, MEMORY, "full", {}, "cpu", 1)
    outs = []
    for frame in range(3):
        memory.begin_frame(frame * 0.5, np.ones(3, np.float32), TOKENS, 5)
        for layer in range(2):
            q, k, v = arrays(10 * frame + layer)
            out = np.full_like(q, np.nan)
            memory.attend(layer, *(change(a) for a in (q, k, v, out)), TOKENS)
            outs.append(out)
        memory.commit()
    return outs


def opened() -> _core.KvMemory:
    memory = _core.KvMemory(MODEL, MEMORY, "full", {}, "cpu", 1)
    memory.begin_frame(0.0, np.ones(3, np.float32), TOKENS, 5)
    return memory


def refused(**changes: object) -> str:
    """What attend() says of one changed argument; the block is refused with it."""
    memory = opened()
    q, k, v = arrays(1)
    given = {"q": q, "k": k, "v": v, "out": np.empty_like(q), **changes}
    with pytest.raises(ValueError) as error:
        memory.attend(0, *given.values(), TOKENS)
    with pytest.raises(ValueError, match="without a block"):
        memory.commit()
    text = str(error.value)
    assert "\n" not in text
    return text


def test_torch_tensors_are_read_and_written_in_place_as_numpy_arrays_are():
    torch = pytest.importorskip("torch")
    expected = played(lambda a: a)
    assert all(np.isfinite(out).all() for out in expected)
    got = played(torch.from_numpy)  # shares the memory of `out`: what is written there shows
    for a, b in zip(expected, got, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("shape", [(1, TOKENS, -1, 16), (1, TOKENS, -1), (TOKENS, -1)])
def test_the_shapes_that_graphs_give_are_the_same_block(shape):
    expected = played(lambda a: a)
    for a, b in zip(expected, played(lambda a: a.reshape(shape)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_onnx_runtime_value_is_read_in_place():
    ort = pytest.importorskip("onnxruntime")
    expected = played(lambda a: a)
    got = played(lambda a: a if np.isnan(a).any() else ort.OrtValue.ortvalue_from_numpy(a))
    for a, b in zip(expected, got, strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_onnx_runtime_value_is_written_in_place():
    ort = pytest.importorskip("onnxruntime")
    q, k, v = arrays(1)
    expected = np.full_like(q, np.nan)
    opened().attend(0, q, k, v, expected)
    out = ort.OrtValue.ortvalue_from_shape_and_type([1, TOKENS, 64], np.float32, "cpu", 0)
    opened().attend(0, q, k, v, out)
    np.testing.assert_array_equal(out.numpy().reshape(expected.shape), expected)


def test_an_array_that_only_speaks_dlpack_is_released_after_the_call():
    q = arrays(1)[0]
    given = []

    def capsule() -> object:
        given.append(q.__dlpack__())
        return given[-1]

    memory = opened()
    foreign = Foreign(__dlpack__=capsule, __dlpack_device__=lambda: (1, 0))
    memory.attend(0, foreign, *arrays(1)[1:], np.empty_like(q), TOKENS)
    assert len(given) == 1
    assert "used_dltensor" not in repr(given[0])  # not taken over: the capsule gives the memory back itself


@pytest.mark.parametrize("name", ["q", "k", "v", "out"])
def test_a_wrong_shape_type_or_order_is_refused_by_name(name):
    heads = 2 if name in "kv" else 4
    good = np.zeros((TOKENS, heads, 16), np.float32)
    assert f"{name} has shape [5, {heads}, 15], expected [5, {heads}, 16]" in refused(
        **{name: good[:, :, :15].copy()}
    )
    assert f"{name} has shape [{5 * heads * 16}]" in refused(**{name: good.reshape(-1)})
    assert f"{name} has shape [1, 1, 5, {heads}, 16]" in refused(**{name: good[None, None]})
    assert f"{name} has shape [2, 5, {heads}, 16]" in refused(**{name: np.stack([good, good])})
    assert f"{name} is not float32" in refused(**{name: good.astype(np.float16)})
    assert f"{name} is not C-contiguous" in refused(**{name: np.asfortranarray(good)})
    assert f"{name} is a list" in refused(**{name: good.tolist()})
    torch = pytest.importorskip("torch")
    assert f"{name} is not float32" in refused(**{name: torch.zeros(TOKENS, heads, 16, dtype=torch.bfloat16)})
    turned = torch.zeros(TOKENS, 16, heads).transpose(1, 2)
    assert f"{name} is not C-contiguous" in refused(**{name: turned})


def test_out_that_cannot_be_written_is_refused():
    out = np.zeros((TOKENS, 4, 16), np.float32)
    out.flags.writeable = False
    assert "out cannot be written" in refused(out=out)


def test_out_that_overlaps_an_input_is_refused():
    both = np.zeros((2 * TOKENS, 4, 16), np.float32)
    assert "out overlaps q" in refused(q=both[1 : TOKENS + 1], out=both[:TOKENS])
    flat = np.zeros(TOKENS * 4 * 16 + 8, np.float32)
    k, out = flat[8 : 8 + TOKENS * 32].reshape(TOKENS, 2, 16), flat[:-8].reshape(TOKENS, 4, 16)
    assert "out overlaps k" in refused(k=k, out=out)
    memory = opened()
    memory.attend(0, both[:TOKENS], *arrays(1)[1:], both[TOKENS:])  # side by side is well


def test_an_array_on_a_gpu_is_refused_by_a_memory_on_the_cpu_before_it_is_touched():
    def never(**_: object) -> object:
        raise AssertionError("its memory was asked for")

    gpu = Foreign(__dlpack__=never, __dlpack_device__=lambda: (2, 0))
    assert 'q is on a GPU, this memory on the CPU; set backend="cuda"' in refused(q=gpu)
    interface = {"shape": (TOKENS, 2, 16), "typestr": "<f4", "data": (1 << 40, False)}
    numba = Foreign(__cuda_array_interface__=interface)
    assert "k is on a GPU" in refused(k=numba)
    managed = Foreign(__dlpack__=never, __dlpack_device__=lambda: (13, 0))
    assert "DLPack device type 13" in refused(q=managed)
    assert "DLPack device type 10" in refused(v=Foreign(__dlpack__=never, __dlpack_device__=lambda: (10, 0)))
