"""Kernels on a GPU beside torch on the same data sizes: tests/device/kernels_bench.cc measures ours."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PAGE = 16  # tokens


@dataclass(frozen=True)
class Device:
    """Where torch computes, and how its work is timed."""

    torch: Any
    name: str

    @property
    def is_cuda(self) -> bool:
        return self.name == "cuda"

    @property
    def half(self) -> Any:
        """The number format of the peers: fp16 on a GPU; CPUs have slow paths for it."""
        return self.torch.float16 if self.is_cuda else self.torch.float32

    def describe(self) -> str:
        if not self.is_cuda:
            return "CPU (rehearsal)"
        properties = self.torch.cuda.get_device_properties(0)
        return (
            f"{properties.name}, sm_{properties.major}{properties.minor}, "
            f"{properties.multi_processor_count} processors, {properties.total_memory / 2**30:.0f} GiB"
        )

    def wait(self) -> None:
        if self.is_cuda:
            self.torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object]) -> float:
        """Seconds of one call: warm-up, then the median of 5 runs of 20 ms each (of 1 ms in a rehearsal)."""
        least = 0.02 if self.is_cuda else 0.001

        def run(calls: int) -> float:
            self.wait()
            began = time.perf_counter()
            for _ in range(calls):
                call()
            self.wait()
            return (time.perf_counter() - began) / calls

        calls = int(min(max(least / max(run(3), 1e-9), 1), 10_000))
        return statistics.median(run(calls) for _ in range(5))


def our_rows(binary: str, device: Device) -> tuple[list[dict[str, Any]], str]:
    """What kernels_bench measured, and why it broke off; in a rehearsal the shim stands in for a GPU."""
    target = ["cuda"] if device.is_cuda else ["shim", "--once"]
    done = subprocess.run([binary, *target, "--json"], capture_output=True, text=True, check=False)
    rows: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines() if line.endswith("}")]
    fault = f"{binary} {target[0]} ended with {done.returncode}: {done.stderr.strip()[-500:]}"
    return rows, fault if done.returncode != 0 else ""


def matmul_rate(device: Device) -> float:
    """Multiply-adds a second of a square product in `half`: the ceiling of assign."""
    n = 8192 if device.is_cuda else 128
    a = device.torch.randn(n, n, device=device.name, dtype=device.half)
    return float(n**3 / device.seconds(lambda: a @ a))


def attend_peer(device: Device, row: dict[str, Any]) -> dict[str, float]:
    """SDPA on fp16 keys and values that are gathered already, and with the gathering of their pages.

    Its keys are rotated already; ours are stored before rotation and rotated inside the time shown.
    """
    torch, tokens, heads, size = device.torch, row["tokens"], row["kv_heads"], row["head_dim"]
    made = {"device": device.name, "dtype": device.half}
    pool = torch.randn(2, 2 * tokens // PAGE, heads, PAGE, size, **made)  # twice the pages that are read
    pages = torch.randperm(pool.shape[1], device=device.name)[: tokens // PAGE]
    q = torch.randn(1, row["q_heads"], row["queries"], size, **made)
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def gather() -> Any:
        return pool[:, pages].transpose(1, 2).reshape(2, 1, heads, tokens, size)

    k, v = gather()

    def whole() -> None:
        keys, values = gather()
        sdpa(q, keys, values, enable_gqa=True)

    return {
        "sdpa_seconds": device.seconds(lambda: sdpa(q, k, v, enable_gqa=True)),
        "gather_sdpa_seconds": device.seconds(whole),
    }


def assign_peer(device: Device, row: dict[str, Any]) -> dict[str, float]:
    """Unit vectors times centroids, then argmax, as torch does it."""
    torch = device.torch
    items = torch.randn(row["items"], row["dim"], device=device.name, dtype=device.half)
    centroids = torch.randn(row["centroids"], row["dim"], device=device.name, dtype=device.half)
    normalize = torch.nn.functional.normalize
    centroids = normalize(centroids)
    return {"torch_seconds": device.seconds(lambda: (normalize(items) @ centroids.T).max(dim=1))}


def score_peer(device: Device, row: dict[str, Any]) -> dict[str, float]:
    """The mean query of each KV head times all means, as torch does it."""
    torch, heads, size = device.torch, row["kv_heads"], row["head_dim"]
    made = {"device": device.name, "dtype": device.half}
    q = torch.randn(row["queries"], heads, row["q_heads"] // heads, size, **made)
    means = torch.randn(row["means"], heads * size, **made)
    return {"torch_seconds": device.seconds(lambda: means @ q.mean(dim=(0, 2)).reshape(-1))}


def bench_kernels(binary: str, device: Device, emit: Callable[[dict[str, Any]], None]) -> str:
    """All rows of kernels_bench with peers and ceilings, each when it is whole; why some are missing."""
    rate = matmul_rate(device)
    rows, fault = our_rows(binary, device)
    peers: dict[tuple[int, ...], dict[str, float]] = {}  # one for all codecs of a size
    for row in rows:
        if row["op"] == "attend":
            sizes = tuple(row[name] for name in ("queries", "q_heads", "kv_heads", "head_dim", "tokens"))
            if sizes not in peers:
                peers[sizes] = attend_peer(device, row)
            row.update(peers[sizes])
        elif row["op"] == "assign":
            row.update(assign_peer(device, row), ceiling=rate)
        elif row["op"] == "score":
            row.update(score_peer(device, row))
        row["share"] = row["rate"] / row["ceiling"] if row["ceiling"] else None
        emit(row)
    return fault
