"""Every binding of the core, called with what it does not take: a TypeError or a ValueError, and the next
right call works. The table of right calls is compared with what the module has: a new one is tested too."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from mosaic_edge._core import ops

from mosaic_edge import _core
from played import EMBEDDING, HEAD_DIM, KV_HEADS, MODEL, Q_HEADS, TOKENS

MEMORY = {"cap_bytes": 300_000, "window_frames": 2}
CLEAN = (TypeError, ValueError, MemoryError)

WRONG: list[Any] = [
    None, True, "x", b"x", "\udcff", 1.5, math.nan, -math.inf, -1, 1 << 31, 1 << 32, 1 << 63, 1 << 64,
    1 << 100, -(1 << 70), object(), [], {}, (), [object()], {"x": 1}, {1: 2}, {None: None}, lambda: 0, 1j,
    np.zeros(0), np.zeros((2, 2), complex), np.array(["a"]), np.array([object()]), np.zeros((1, 2, 3, 4)),
    type, np.float64(1e300), np.int64(-(1 << 63)),
]  # fmt: skip


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def memory() -> _core.KvMemory:
    return _core.KvMemory(MODEL, MEMORY, "mosaic", {}, "cpu", 1, 0)


def with_frame() -> _core.KvMemory:
    made = memory()
    made.begin_frame(0.0, ones(EMBEDDING), TOKENS)
    return made


def with_question() -> _core.KvMemory:
    made = memory()
    made.open_question()
    return made


def with_text() -> _core.KvMemory:
    """A question's tokens were read."""
    made = with_question()
    made.begin_text(TOKENS)
    for layer in range(2):
        made.attend(layer, *layer_arrays())
    made.commit()
    return made


def with_clusters() -> _core.KvMemory:
    made = memory()
    for number in range(6):
        made.begin_frame(float(number), ones(EMBEDDING), TOKENS)
        for layer in range(2):
            made.attend(layer, *layer_arrays())
        made.commit()
    return made


def layer_arrays() -> list[np.ndarray]:
    return [ones(TOKENS, heads, HEAD_DIM) for heads in (Q_HEADS, KV_HEADS, KV_HEADS, Q_HEADS)]


def kernels() -> ops.Kernels:
    return ops.Kernels("plain", 1)


def attend_call() -> ops.AttendCall:
    return kernels().attend(ones(2, 2, 4), np.zeros((2, 3), np.int32), 1, 1.0)


def page() -> bytes:
    return bytes(kernels().encode("fp16", ones(3, 1, 4), ones(3, 1, 4)))


NOWHERE = os.open(os.devnull, os.O_WRONLY)


def writer() -> _core.SnapshotWriter:
    return _core.SnapshotWriter(NOWHERE)


def saved(text: bytes | None = None) -> int:
    """A file of a snapshot with one section, or none."""
    with tempfile.TemporaryFile() as file:
        to = _core.SnapshotWriter(file.fileno())
        if text is not None:
            to.add("TEXT", text)
        to.finish()
        file.seek(0)
        return os.dup(file.fileno())


Right = tuple[Callable[[], Any], list[Any]]
"""What a method is called on, or nothing, and arguments that are right."""

RIGHT: dict[str, Right] = {
    "plan": (lambda: None, [MODEL, MEMORY, "edge", {}, "cpu", 1]),
    "backends": (lambda: None, []),
    "policies": (lambda: None, []),
    "check_policy": (lambda: None, ["edge", {"listen": 4}]),
    "TraceRecording": (lambda: None, []),
    "TraceRecording.stop": (_core.TraceRecording, []),
    "trace_span": (lambda: None, ["forward", 1, 2]),
    "let_threads_wait": (lambda: None, []),
    "KvMemory": (lambda: None, [MODEL, MEMORY, "edge", {}, "cpu", 1, 0]),
    "KvMemory.abort": (with_frame, []),
    "KvMemory.attend": (with_frame, [0, *layer_arrays(), TOKENS, None]),
    "KvMemory.begin_frame": (memory, [0.0, ones(EMBEDDING), TOKENS, 2, 1, 1, -1]),
    "KvMemory.begin_text": (with_question, [2]),
    "KvMemory.check_invariants": (memory, []),
    "KvMemory.close_question": (with_question, [False]),
    "KvMemory.commit": (memory, []),
    "KvMemory.drain": (memory, []),
    "KvMemory.evidence": (memory, []),
    "KvMemory.open_question": (memory, [0.0]),
    "KvMemory.plan": (memory, []),
    "KvMemory.stats": (memory, []),
    "KvMemory.rewind_question": (with_text, [1]),
    "KvMemory.save": (memory, [writer()]),
    "SnapshotWriter": (lambda: None, [NOWHERE]),
    "SnapshotWriter.add": (writer, ["TEXT", b"x"]),
    "SnapshotWriter.finish": (writer, []),
    "SnapshotReader": (lambda: None, [saved()]),
    "SnapshotReader.take": (lambda: _core.SnapshotReader(saved(b"x")), ["TEXT", 10]),
    "SnapshotReader.finish": (lambda: _core.SnapshotReader(saved()), []),
    "crc32c": (lambda: None, [b"x"]),
    "StoreView.clusters": (lambda: with_clusters().store, [0]),
    "StoreView.mean_k": (lambda: with_clusters().store, [0]),
    "StoreView.mean_v": (lambda: with_clusters().store, [0]),
    "StoreView.members": (lambda: with_clusters().store, [0]),
    "StoreView.scenes": (lambda: with_clusters().store, []),
    "StoreView.tiers": (lambda: with_clusters().store, []),
    "Policy": (lambda: None, []),
    "Policy.needs": (lambda: _core.Policy(), []),
    "Query.scores": (lambda: None, []),
    "Eviction.drop": (lambda: None, [0, 0]),
    "Eviction.collapse": (lambda: None, [0, 0]),
    "Eviction.merge": (lambda: None, [0, 0, 1]),
    "Eviction.demote": (lambda: None, [0, 0, 0]),
    "Eviction.thin": (lambda: None, [0, 0, [True, False]]),
    "ops.implementations": (lambda: None, []),
    "ops.Kernels": (lambda: None, ["plain", 1]),
    "ops.Kernels.encode": (
        kernels,
        ["fp16", ones(3, 1, 4), ones(3, 1, 4), np.zeros((3, 4), np.int32), ones(1, 4)],
    ),
    "ops.Kernels.decode": (kernels, ["fp16", page(), 1, 4, 0, 3, ones(1, 4)]),
    "ops.Kernels.assign": (
        kernels,
        [ones(3, 4), ones(3, 4), ones(2, 4), ones(2, 4), np.arange(2, dtype=np.int32), 0.5],
    ),
    "ops.Kernels.update_centroids": (
        kernels,
        [ones(3, 4), ones(3, 4), [0, 1, -1], ones(2, 4), ones(2, 4), [1, 2], ones(2), 0.5],
    ),
    "ops.Kernels.score": (kernels, ["mass", ones(2, 2, 4), ones(3, 1, 4), [0, 2], ones(2), 1.0]),
    "ops.Kernels.top_k": (kernels, [ones(5), 2]),
    "ops.Kernels.merge": (kernels, [ones(2, 3), ones(2), ones(2, 3), ones(2)]),
    "ops.Kernels.add_recent_keys": (kernels, [ones(3, 4), [0, 1, 1], ones(2, 4), [1, 1]]),
    "ops.Kernels.temporal_redundancy": (kernels, [ones(3, 4), [0, 1, 1], ones(2, 4), [1, 1]]),
    "ops.Kernels.row_norm": (kernels, [ones(3, 4)]),
    "ops.Kernels.spectral_energy": (kernels, [ones(3, 4)]),
    "ops.Kernels.attend": (
        kernels,
        [
            ones(2, 2, 4), np.zeros((2, 3), np.int32), 1, 1.0, [("fp16", page(), 0, 3)], [0, 1, 2],
            ones(3, 1, 4), ones(3, 1, 4), [0, 2], np.zeros((2, 3), np.int32), ones(2),
            ones(2, 1, 4), ones(2, 1, 4), {"theta": 10.0, "rotary_dim": 4}, ones(1, 4),
        ],
    ),
    "ops.AttendCall.run": (attend_call, []),
    "ops.AttendCall.mass": (attend_call, [-1, True]),
}  # fmt: skip

NO_OBJECT = ("Batch", "Need", "Query", "StoreView", "Eviction", "ops.AttendCall", "KvMemory.store")
"""Classes that Python cannot make."""


def members(scope: Any, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, item in vars(scope).items():
        if name.startswith("_") or (isinstance(item, type) and issubclass(item, Exception)):
            continue
        if isinstance(item, type(_core)):
            found |= members(item, f"{name}.")
        else:
            found[prefix + name] = item
            if isinstance(item, type):
                found |= members(item, f"{prefix}{name}.")
    return found


ALL = members(_core)
CALLABLE = [
    name for name, item in ALL.items() if not isinstance(item, property | int) and name not in NO_OBJECT
]


def resolve(name: str) -> Callable[..., Any]:
    if name == "Query.scores":
        return lambda *given: None  # objects of it are made by the core alone
    target: Any = _core
    *path, last = name.split(".")
    for step in path:
        target = getattr(target, step)
    made = RIGHT[name][0]()
    return getattr(made if made is not None else target, last)  # type: ignore[no-any-return]


def must_be_clean(call: Callable[[], object], what: str) -> None:
    try:
        call()
    except CLEAN as error:
        assert "Unable to cast" not in str(error), what
    except _core.DeviceError as error:  # of a backend, a number of threads or a size that the machine has not
        assert "=" in str(error), what
    except _core.SpillError as error:  # of a descriptor that is no file
        assert "snapshot" in str(error), what
    except BaseException as error:
        pytest.fail(f"{what}: {type(error).__name__}: {error}")


def test_the_table_has_every_binding() -> None:
    assert sorted(CALLABLE) == sorted(RIGHT)


@pytest.mark.filterwarnings("ignore")  # of NumPy, about what it casts
@pytest.mark.parametrize("name", RIGHT)
def test_wrong_arguments_of_a_binding_are_an_error_and_the_right_ones_work_afterwards(name: str) -> None:
    right = RIGHT[name][1]
    for at in range(len(right)):
        for wrong in WRONG:
            given = [*right[:at], wrong, *right[at + 1 :]]
            must_be_clean(lambda given=given: resolve(name)(*given), f"{name}: argument {at} = {wrong!r}")
    for more in WRONG:
        must_be_clean(lambda more=more: resolve(name)(*right, more), f"{name}: one more, {more!r}")
    must_be_clean(lambda: resolve(name)(*right[:-1]), f"{name}: one less")
    must_be_clean(lambda: resolve(name)(nothing_of_this_name=1), f"{name}: a keyword")
    if name != "KvMemory.commit":  # of a memory without a block
        resolve(name)(*right)


@pytest.mark.parametrize("name", [n for n, item in ALL.items() if "." in n and callable(item)])
def test_a_method_of_nothing_is_an_error(name: str) -> None:
    owner: Any = _core
    *path, last = name.split(".")
    for step in path:
        owner = getattr(owner, step)
    if not isinstance(owner, type):
        return
    empty = [owner.__new__(owner)] if owner in (_core.KvMemory, ops.Kernels, _core.Policy) else []
    for wrong in [*WRONG, *empty]:
        must_be_clean(lambda wrong=wrong: getattr(owner, last)(wrong), f"{name} of {wrong!r}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [n for n, item in ALL.items() if isinstance(item, property)])
def test_a_property_of_nothing_is_an_error(name: str) -> None:
    for wrong in WRONG:
        with pytest.raises(CLEAN):
            ALL[name].fget(wrong)


@pytest.mark.parametrize("name", ["Batch", "Need", "Query", "StoreView", "Eviction", "ops.AttendCall"])
def test_what_only_the_core_makes_cannot_be_made(name: str) -> None:
    with pytest.raises(TypeError):
        ALL[name]()


ROPE = {"rotary_dim": HEAD_DIM, "theta": 10.0, "layout": "half", "sections": [1, 1, 2],
        "sections_interleaved": False, "grid_follows_time": False}  # fmt: skip
SHAPE = {**MODEL, "rope": ROPE, "scale": 1.0, "video_window": 0, "context": 0}
SETTINGS = {
    **MEMORY, "exact": "fp16", "window_codec": "fp16", "packed": "int4", "exact_share": 0.2,
    "index_share": 0.1, "device_bytes": 0, "disk_bytes": 0, "spill_dir": "", "prefix_tokens": 0,
    "branch_tokens": 0, "retrieve_tokens": 0, "clusters": 0, "scenes": 0, "max_cluster_tokens": 4,
    "positions": "auto", "summaries": True, "refresh_every": 0, "overflow": "refuse", "prefetch": True,
}  # fmt: skip


def planned(shape: dict[Any, Any], settings: dict[Any, Any], policy_settings: dict[Any, Any]) -> None:
    _core.plan(shape, settings, "mosaic", policy_settings)


def test_wrong_values_of_every_setting_are_errors_that_name_it() -> None:
    planned(SHAPE, SETTINGS, {"radius": 0.2})
    for wrong in WRONG:
        for key in SHAPE:
            must_be_clean(
                lambda key=key, wrong=wrong: planned({**SHAPE, key: wrong}, SETTINGS, {}), f"{key}={wrong!r}"
            )
        for key in ROPE:
            rope = {**SHAPE, "rope": {**ROPE, key: wrong}}
            must_be_clean(lambda rope=rope: planned(rope, SETTINGS, {}), f"rope {key}={wrong!r}")
        for key in SETTINGS:
            must_be_clean(
                lambda key=key, wrong=wrong: planned(SHAPE, {**SETTINGS, key: wrong}, {}), f"{key}={wrong!r}"
            )
        must_be_clean(lambda wrong=wrong: planned(SHAPE, SETTINGS, {"radius": wrong}), f"radius={wrong!r}")
        for where in range(3):
            given: list[dict[Any, Any]] = [dict(SHAPE), dict(SETTINGS), {}]
            try:
                given[where][wrong] = 1
            except TypeError:
                continue
            must_be_clean(lambda given=given: planned(*given), f"a key {wrong!r}")


@pytest.mark.parametrize("number", [1 << 31, 1 << 64, -(1 << 64), 1 << 100])
def test_a_number_that_no_setting_holds_is_named(number: int) -> None:
    for shape, settings, name in (
        ({**SHAPE, "layers": number}, SETTINGS, "model: layers"),
        (SHAPE, {**SETTINGS, "window_frames": number}, "memory: window_frames"),
        ({**SHAPE, "rope": {**ROPE, "rotary_dim": number}}, SETTINGS, "rotary_dim"),
    ):
        with pytest.raises(ValueError, match=name):
            planned(shape, settings, {})
