"""Arrays of other libraries, handed over where they lie on the GPU; a rehearsal has none."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from mosaic_edge import InvalidInput, _core

pytestmark = pytest.mark.skipif(os.environ.get("MOSAIC_DEVICE") == "cpu", reason="no GPU holds arrays here")
SHAPE = {"layers": 1, "q_heads": 2, "kv_heads": 1, "head_dim": 32, "embedding_dim": 4, "frame_tokens": 5}


class Foreign:
    """What a library without DLPack hands over."""

    def __init__(self, tensor: Any, **fields: Any) -> None:
        self.keeps = tensor
        self.__cuda_array_interface__ = tensor.__cuda_array_interface__ | {"version": 3} | fields


def opened(device: str) -> Any:
    memory = _core.KvMemory(
        SHAPE | {"rope": {"theta": 1e4}}, {"cap_bytes": 8 << 20}, "full", {}, device, 1, 0
    )
    memory.begin_frame(0.0, np.zeros(4, np.float32), 5, 1)
    return memory


def test_an_interface_is_read_behind_its_stream_and_refused_where_that_is_no_stream(device: str) -> None:
    import torch

    random = np.random.default_rng(3)
    host = [random.standard_normal((5, heads, 32)).astype(np.float32) for heads in (2, 1, 1)]
    wanted = np.empty_like(host[0])
    opened("cpu").attend(0, *host, wanted, 5)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # the arrays are complete only after this
        there = [torch.from_numpy(x).pin_memory().to("cuda", non_blocking=True) for x in host]
    out = torch.empty_like(there[0])
    arrays = [Foreign(x, stream=stream.cuda_stream) for x in there]
    opened(device).attend(0, *arrays, out, 5)
    np.testing.assert_allclose(out.cpu().numpy(), wanted, atol=1e-4)
    with pytest.raises(InvalidInput, match="q is behind stream 0"):
        opened(device).attend(0, Foreign(there[0], stream=0), *there[1:], out, 5)
    with pytest.raises(InvalidInput, match="k is masked"):
        opened(device).attend(0, there[0], Foreign(there[1], mask=there[1]), there[2], out, 5)
    assert torch.cuda.current_device() == 0


def test_managed_memory_is_computed_with_and_never_read_by_the_host(device: str) -> None:
    cupy = pytest.importorskip("cupy")
    random = np.random.default_rng(4)
    host = [random.standard_normal((5, heads, 32)).astype(np.float32) for heads in (2, 1, 1)]
    wanted = np.empty_like(host[0])
    opened("cpu").attend(0, *host, wanted, 5)
    with cupy.cuda.using_allocator(cupy.cuda.malloc_managed):
        there = [Foreign(cupy.asarray(x), stream=1) for x in host]
        out = cupy.empty(wanted.shape, cupy.float32)
    opened(device).attend(0, *there, Foreign(out, stream=1), 5)
    np.testing.assert_allclose(out.get(), wanted, atol=1e-4)
