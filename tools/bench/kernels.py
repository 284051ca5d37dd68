"""The CPU kernels against their peers, in one run: assign with faiss, the others with torch.

Ratios, not milliseconds, are what to quote: all contestants of a case run in turns, so a busy machine slows
them alike, and each gets its median. Beside each stands the floor of this machine, measured in the same run:
the bytes the kernel must read over the read bandwidth, and its operations over the matrix rate of the number
format it computes in. torch gets keys that are rotated already; ours are stored before rotation and rotated
on the fly, inside the time shown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

import numpy as np

Run = Callable[[], object]
Clock = Callable[[], float]


TORCH = "pip install torch==2.13.0"


@dataclass(frozen=True)
class Machine:
    """What this machine can do at best, measured by its own libraries just now."""

    threads: int
    read_gb_s: float
    fp32_gflop_s: float
    bf16_gflop_s: float


@dataclass(frozen=True)
class Row:
    """One line of the table; ratio = peer_ms / ours_ms, above 1 when ours is faster."""

    case: str
    ours: str
    ours_ms: float
    peer: str
    peer_ms: float
    ratio: float
    bytes_floor_ms: float
    work_floor_ms: float
    over_floor: float


def require(name: str, remedy: str) -> ModuleType:
    try:
        return __import__(name)
    except ImportError:
        sys.exit(f"tools/bench needs {name}, which is not installed here: {remedy}")


def medians(runs: dict[str, Run], seconds: float, clock: Clock) -> dict[str, float]:
    """Milliseconds of each: one warm-up, then in turns until `seconds` have passed, at least seven times."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(iter(runs))]) < 7:
        for name, run in runs.items():
            start = clock()
            run()
            times[name].append((clock() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def measure_machine(torch: Any, threads: int, seconds: float, clock: Clock) -> Machine:
    data = torch.ones(64 << 20, dtype=torch.float32)  # 256 MiB: beyond any cache
    a = torch.randn(2048, 2048)
    b = a.bfloat16()
    ms = medians({"read": lambda: data.sum(), "fp32": lambda: a @ a, "bf16": lambda: b @ b}, seconds, clock)
    flop = 2.0 * 2048**3
    return Machine(
        threads=threads,
        read_gb_s=data.numel() * 4 / ms["read"] / 1e6,
        fp32_gflop_s=flop / ms["fp32"] / 1e6,
        bf16_gflop_s=flop / ms["bf16"] / 1e6,
    )


class Bench:
    def __init__(self, threads: int, seconds: float, clock: Clock) -> None:
        self.torch: Any = require("torch", TORCH)
        self.faiss: Any = require("faiss", "pip install faiss-cpu")
        self.ops: Any = require("mosaic_edge._core", "run tools/test once, it builds it")._core.ops
        self.torch.set_num_threads(threads)
        self.faiss.omp_set_num_threads(threads)
        self.seconds, self.clock = seconds, clock
        self.kernels = self.ops.Kernels("", threads)
        self.machine = measure_machine(self.torch, threads, max(seconds, 1.0), clock)
        self.rows: list[Row] = []

    def add(
        self,
        case: str,
        ours: dict[str, Run],
        peers: dict[str, Run],
        gigabytes: dict[str, float],
        gflop: float,
    ) -> None:
        """Measure one case; gigabytes: what each of ours must read, gflop: what all must compute."""
        ms = medians({**ours, **peers}, self.seconds, self.clock)
        for name in ours:
            rate = self.machine.bf16_gflop_s if name.endswith("bf16") else self.machine.fp32_gflop_s
            read, work = gigabytes[name] / self.machine.read_gb_s * 1e3, gflop / rate * 1e3
            for peer in peers:
                over = ms[name] / max(read, work)
                row = Row(case, name, ms[name], peer, ms[peer], ms[peer] / ms[name], read, work, over)
                self.rows.append(row)

    def assign(self, items: int, rows: int, dim: int) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(items, dim)).astype(np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        centroids = rng.normal(size=(rows, dim)).astype(np.float32)
        centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
        half = centroids.astype(np.float16)
        index = self.faiss.IndexFlatIP(dim)
        index.add(half.astype(np.float32))
        names = [n for n in self.ops.implementations() if n not in ("plain", "sse2")][-2:]
        names = names or self.ops.implementations()[-1:]
        kernels = {name: self.ops.Kernels(name, self.machine.threads) for name in names}
        found = kernels[names[-1]].assign(x, mean_k=half)[0]
        agree = float(np.mean(found == index.search(x, 1)[1][:, 0]))
        if agree < 0.99:
            raise SystemExit(f"assign: only {agree:.1%} of the labels equal those of faiss")
        ours: dict[str, Run] = {
            f"assign {name}": (lambda k=k: k.assign(x, mean_k=half)) for name, k in kernels.items()
        }
        size = (rows * dim * 2 + items * dim * 4) / 1e9
        case = f"assign {items} x {rows:,} x {dim}"
        peers: dict[str, Run] = {"faiss IndexFlatIP": lambda: index.search(x, 1)}
        self.add(case, ours, peers, dict.fromkeys(ours, size), 2e-9 * items * rows * dim)

    def score(self, rows: int, heads: int, group: int, dim: int, keep: int) -> None:
        torch, rng = self.torch, np.random.default_rng(1)
        q = rng.normal(size=(1, heads * group, dim)).astype(np.float32)
        mean_k = rng.normal(size=(rows, heads, dim)).astype(np.float16)
        bias = np.log(rng.integers(1, 60, rows)).astype(np.float32)
        tq = torch.from_numpy(q[0]).reshape(heads, group, dim)
        tk, tbias = torch.from_numpy(mean_k.astype(np.float32)), torch.from_numpy(bias)
        by_head = tk.permute(1, 2, 0).contiguous()  # [heads, dim, rows], as a matrix product wants it
        flat, scale = tk.reshape(rows, heads * dim), dim**-0.5

        def torch_dot() -> object:
            return torch.topk(flat @ tq.mean(1).reshape(-1), keep)

        def torch_mass() -> object:
            logits = torch.bmm(tq, by_head) * scale + tbias
            return torch.topk(torch.softmax(logits, -1).sum((0, 1)), keep)

        def ours_dot() -> object:
            return self.kernels.top_k(self.kernels.score("dot", q, mean_k), keep)

        def ours_mass() -> object:
            return self.kernels.top_k(self.kernels.score("mass", q, mean_k, row_bias=bias, scale=scale), keep)

        size = rows * heads * dim * 2 / 1e9
        case = f"score + top_k {rows:,} x {heads} x {dim}, {keep} kept"
        flop = 2e-9 * rows * heads * dim
        for name, ours, peer, work in (
            ("dot", ours_dot, torch_dot, flop),
            ("mass", ours_mass, torch_mass, flop * group),
        ):
            self.add(f"{case}, {name}", {name: ours}, {"torch fp32": peer}, {name: size}, work)

    def attend(self, q_heads: int, heads: int, dim: int, tokens: int) -> None:
        torch, rng = self.torch, np.random.default_rng(2)
        k, v = rng.normal(size=(2, tokens, heads, dim)).astype(np.float32)
        q = rng.normal(size=(1, q_heads, dim)).astype(np.float32)
        rope = {"theta": 1e6, "rotary_dim": dim, "layout": "half"}
        positions = np.arange(tokens, dtype=np.int32)
        at = np.full((1, 3), tokens, np.int32)
        ours: dict[str, Run] = {}
        size: dict[str, float] = {}
        for codec in ("fp16", "int8", "int4"):
            blocks = [(k[i : i + 16], v[i : i + 16]) for i in range(0, tokens, 16)]
            pages = [(codec, self.kernels.encode(codec, *block), 0, 16) for block in blocks]
            call = self.kernels.attend(q, at, heads, dim**-0.5, pages=pages, positions=positions, rope=rope)
            ours[codec], size[codec] = call.run, sum(len(page) for _, page, _, _ in pages) / 1e9
        sdpa = torch.nn.functional.scaled_dot_product_attention
        peers: dict[str, Run] = {}
        for name, dtype in (("torch fp32", torch.float32), ("torch bf16", torch.bfloat16)):
            tq = torch.from_numpy(q).to(dtype).transpose(0, 1)[None].contiguous()
            tk = torch.from_numpy(k).to(dtype).transpose(0, 1)[None].contiguous()
            tv = torch.from_numpy(v).to(dtype).transpose(0, 1)[None].contiguous()
            peers[name] = lambda a=tq, b=tk, c=tv: sdpa(a, b, c, enable_gqa=True)
        case = f"attend {q_heads}/{heads} x {dim}, {tokens:,} tokens"
        self.add(case, ours, peers, size, 4e-9 * q_heads * dim * tokens)

    def records(self, queries: int, dim: int, tokens: int) -> None:
        """Attention of a block over one KV head of records (5-bit keys, 3-bit values), paired with int4."""
        rng, group = np.random.default_rng(5), 7
        mean = 3 * rng.normal(size=(1, dim)).astype(np.float32)
        k, v = rng.normal(size=(2, tokens, 1, dim)).astype(np.float32)
        k += mean
        q = rng.normal(size=(queries, group, dim)).astype(np.float32)
        rope = {"theta": 1e6, "rotary_dim": dim, "layout": "half"}
        positions, at = np.arange(tokens, dtype=np.int32), np.full((queries, 3), tokens, np.int32)
        runs: dict[str, Run] = {}
        size: dict[str, float] = {}
        for codec in ("k5v3", "k4v4", "int4"):
            blocks = [(k[i : i + 16], v[i : i + 16]) for i in range(0, tokens, 16)]
            pages = [(codec, self.kernels.encode(codec, *block, key_mean=mean), 0, 16) for block in blocks]
            call = self.kernels.attend(
                q, at, 1, dim**-0.5, pages=pages, positions=positions, rope=rope, key_mean=mean
            )
            runs[codec], size[codec] = call.run, sum(len(page) for _, page, _, _ in pages) / 1e9
        peers = {"int4": runs.pop("int4")}
        case = f"attend {queries} x {group}/1 x {dim}, {tokens:,} tokens"
        self.add(case, runs, peers, size, 4e-9 * queries * group * dim * tokens)

    def mass(self, q_heads: int, heads: int, dim: int, queries: int, tokens: int) -> None:
        """Attention that keys receive from a block of queries: column sums against the whole matrix."""
        torch, rng = self.torch, np.random.default_rng(3)
        k, v = rng.normal(size=(2, tokens, heads, dim)).astype(np.float32)
        q = rng.normal(size=(queries, q_heads, dim)).astype(np.float32)
        positions, at = np.arange(tokens, dtype=np.int32), np.full((queries, 3), tokens, np.int32)
        rope = {"theta": 1e6, "rotary_dim": dim, "layout": "half"}
        blocks = [(k[i : i + 16], v[i : i + 16]) for i in range(0, tokens, 16)]
        pages = [("fp16", self.kernels.encode("fp16", *block), 0, 16) for block in blocks]
        call = self.kernels.attend(q, at, heads, dim**-0.5, pages=pages, positions=positions, rope=rope)
        call.run()
        tq = torch.from_numpy(q).transpose(0, 1).reshape(heads, -1, dim).contiguous()
        tk = torch.from_numpy(k).permute(1, 2, 0).contiguous()

        def torch_mass() -> object:
            return torch.softmax(torch.bmm(tq, tk) * dim**-0.5, -1).sum((0, 1))

        case = f"received {queries} x {q_heads}/{heads} x {dim}, {tokens:,} tokens"
        ours: dict[str, Run] = {"fp16": lambda: call.mass(0)}
        size, work = tokens * heads * dim * 2 / 1e9, 2e-9 * queries * q_heads * dim * tokens
        self.add(case, ours, {"torch fp32": torch_mass}, {"fp16": size}, work)

    def signals(self, tokens: int, items: int, dim: int) -> None:
        torch, rng = self.torch, np.random.default_rng(4)
        x = rng.normal(size=(tokens, dim)).astype(np.float32)
        tx = torch.from_numpy(x)
        frequency = np.minimum(np.arange(tokens // 2 + 1), tokens)
        high = torch.from_numpy(frequency >= tokens / 4)[:, None]

        def torch_spectral() -> Any:
            bins = torch.fft.rfft(tx, dim=0) * high
            return torch.fft.irfft(bins, n=tokens, dim=0).abs().mean(1)

        ours: dict[str, Run] = {"spectral": lambda: self.kernels.spectral_energy(x)}
        if not np.allclose(self.kernels.spectral_energy(x), torch_spectral().numpy(), atol=1e-4):
            raise SystemExit("spectral_energy: not what torch.fft gives")
        # The work of an FFT there and back, which ours, a matrix product, does not try to be.
        work = 1e-9 * 2 * 2.5 * tokens * np.log2(tokens) * dim
        self.add(
            f"spectral {tokens} x {dim}",
            ours,
            {"torch.fft": torch_spectral},
            {"spectral": x.nbytes / 1e9},
            work,
        )

        k = rng.normal(size=(items, dim)).astype(np.float32)
        places = 196
        place = (np.arange(items) % places).astype(np.int32)
        sums, counts = self.kernels.add_recent_keys(
            k[:places], place[:places], np.zeros((places, dim)), np.zeros(places)
        )
        tk, tplace, tsums = torch.from_numpy(k), torch.from_numpy(place).long(), torch.from_numpy(sums)

        def torch_redundancy() -> object:
            return -torch.nn.functional.cosine_similarity(tk, tsums[tplace], dim=1)

        def ours_redundancy() -> object:
            return self.kernels.temporal_redundancy(k, place, sums, counts)

        def ours_norm() -> object:
            return self.kernels.row_norm(k)

        def torch_norm() -> object:
            return torch.linalg.vector_norm(tk, dim=1)

        size, gflop = k.nbytes / 1e9, 2e-9 * items * dim
        for name, mine, theirs, work in (
            ("redundancy", ours_redundancy, torch_redundancy, 2 * gflop),
            ("norm", ours_norm, torch_norm, gflop),
        ):
            self.add(f"{name} {items:,} x {dim}", {name: mine}, {"torch fp32": theirs}, {name: size}, work)

    def run(self) -> None:
        self.assign(196, 1024, 256)
        self.assign(784, 4096, 512)
        self.score(4096, 4, 7, 128, 64)
        for q_heads, heads in ((28, 4), (16, 2)):
            for tokens in (4096, 12544):
                self.attend(q_heads, heads, 128, tokens)
        for dim in (64, 128):
            for queries in (1, 12, 196):
                self.records(queries, dim, 4096)
        self.mass(28, 4, 128, 196, 1024)
        self.signals(784, 12544, 128)


def print_table(machine: Machine, rows: list[Row]) -> None:
    print(
        f"{machine.threads} threads: reads {machine.read_gb_s:.1f} GB/s, matrix products "
        f"{machine.fp32_gflop_s:.0f} GFLOP/s fp32, {machine.bf16_gflop_s:.0f} GFLOP/s bf16\n"
        "ratio: peer over ours, above 1 is faster than the peer.\n"
        "floor: bytes over bandwidth, work over matrix rate.\n"
    )
    head = ("case", "ours", "ms", "peer", "ms", "ratio", "floor bytes ms", "floor work ms", "x floor")
    body = [
        (
            r.case, r.ours, f"{r.ours_ms:.3f}", r.peer, f"{r.peer_ms:.3f}", f"{r.ratio:.2f}",
            f"{r.bytes_floor_ms:.3f}", f"{r.work_floor_ms:.3f}", f"{r.over_floor:.1f}",
        )
        for r in rows
    ]  # fmt: skip
    width = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]
    text = (0, 1, 3)
    for line in (head, tuple("-" * w for w in width), *body):
        cells = [
            s.ljust(w) if i in text else s.rjust(w) for i, (s, w) in enumerate(zip(line, width, strict=True))
        ]
        print("  ".join(cells))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tools/bench", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--threads", type=int, default=0, help="of ours and of the peers; 0: one per core")
    parser.add_argument("--seconds", type=float, default=2.0, help="per case; longer is steadier")
    parser.add_argument(
        "--cpu-time", action="store_true", help="count CPU time, for a busy machine; only with --threads 1"
    )
    parser.add_argument("--json", action="store_true", help="print {machine, rows} instead of the table")
    args = parser.parse_args(argv)
    if args.threads < 0 or args.seconds <= 0:
        parser.error("--threads must be 0 or more and --seconds above 0")
    if args.cpu_time and args.threads != 1:
        parser.error("--cpu-time adds up all threads: use it with --threads 1")
    threads = args.threads or require("torch", TORCH).get_num_threads()
    bench = Bench(threads, args.seconds, time.process_time if args.cpu_time else time.perf_counter)
    bench.run()
    if args.json:
        rows = [asdict(row) for row in bench.rows]
        print(json.dumps({"machine": asdict(bench.machine), "rows": rows}, indent=1))
    else:
        print_table(bench.machine, bench.rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
