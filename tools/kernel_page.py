"""docs/results/gpu-kernels.md, of what tools/kernel_resources.py counted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PAGE = Path(__file__).resolve().parent.parent / "docs/results/gpu-kernels.md"
HEAD_DIM = 128
MODELS = {"3B": (36, 2), "7B": (28, 4)}  # layers, KV heads


@dataclass(frozen=True)
class Processor:
    """What a streaming multiprocessor has, as the CUDA programming guide lists it."""

    name: str
    warps: int
    blocks: int
    shared: int  # bytes
    registers: int = 65536


PROCESSORS = {
    87: Processor("Jetson Orin", 48, 16, 164 << 10),
    90: Processor("H100, H200", 64, 32, 228 << 10),
    110: Processor("Jetson Thor", 48, 24, 228 << 10),
}


@dataclass(frozen=True)
class Launch:
    """A kernel's block at heads of 128 channels."""

    threads: int
    shared: int  # bytes


def tensor_launch(threads: int, head_dim: int, packed: bool) -> Launch:
    """As queue_tensor() of attend_tensor.h asks.

    Slots, descriptions of keys, low halves of queries, and packed sums or a row a warp.
    """
    slots = 4 * 64 * (16 * -(-head_dim // 16) + 8)
    keys = 2 * 4 * 16 * (3 * 8 + 4 + 4)
    low = -(-head_dim // 16) * 512 * (8 if threads == 256 else 1)
    rest = 8 * (head_dim + 2) * 4 if packed else threads // 32 * head_dim * 4
    return Launch(threads, slots + keys + low + rest)


LAUNCHES = {
    "attend_decode": tensor_launch(128, HEAD_DIM, packed=False),
    "attend_decode_64": tensor_launch(128, 64, packed=True),
    "attend_decode_128": tensor_launch(128, HEAD_DIM, packed=True),
    "attend_prefill": tensor_launch(256, HEAD_DIM, packed=False),
}


def blocks_of(processor: Processor, registers: int, launch: Launch) -> int:
    """Blocks a processor holds side by side: registers come by 256 a warp, shared memory has 1 KiB more."""
    warps = launch.threads // 32
    by_registers = processor.registers // (-(-registers * 32 // 256) * 256) // warps
    by_shared = processor.shared // (-(-launch.shared // 1024) * 1024 + 1024)
    return min(by_registers, by_shared, processor.warps // warps, processor.blocks)


def token_bytes(codec: str) -> int:
    """Of a token's keys and values in one layer and KV head."""
    from mosaic_edge import _core

    x = np.zeros((16, 1, HEAD_DIM), np.float32)
    kernels = _core.ops.Kernels("", 1)
    beside = len(kernels.encode("fp32", x, x)) - 16 * 8 * HEAD_DIM  # positions and times
    return (len(kernels.encode(codec, x, x)) - beside) // 16


def rows_of(text: list[list[str]]) -> list[str]:
    head, *body = text
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body)]


def resources(rows: list[Any]) -> list[str]:
    table = [["kernel", "sm", "registers", "spilled", "blocks a processor", "warps", "code KiB"]]
    for row in rows:
        launch, processor, side = LAUNCHES.get(row.file), PROCESSORS[row.arch], ["", ""]
        if launch is not None:
            blocks = blocks_of(processor, row.registers, launch)
            side = [str(blocks), f"{blocks * launch.threads // 32} of {processor.warps}"]
        numbers = [str(row.arch), str(row.registers), str(row.spilled), *side, f"{row.code / 1024:.0f}"]
        table.append([f"{row.file} {row.kernel}", *numbers])
    return rows_of(table)


def instructions(rows: list[Any], limits: dict[str, int]) -> list[str]:
    counted = {
        (row.file.rsplit("_", 1)[1], row.arch): row.packed
        for row in rows
        if row.packed and row.file.startswith("attend_decode_")
    }
    columns = sorted(counted, key=lambda at: (-int(at[0]), at[1]))
    head = ["codec", *[f"D = {dim}, sm_{arch}" for dim, arch in columns], "at most, D = 128"]
    return rows_of(
        [
            head,
            *[
                [codec, *[str(counted[at][codec]) for at in columns], str(limit)]
                for codec, limit in limits.items()
            ],
        ]
    )


def kinds_of(rows: list[Any]) -> list[str]:
    counted = sorted(
        (row for row in rows if row.kinds and row.file == "attend_decode_128"), key=lambda row: row.arch
    )
    table = [["kind", *[f"sm_{row.arch}" for row in counted]]]
    kinds = counted[0].kinds if counted else ()
    return rows_of(table + [[kind, *[str(row.kinds[kind]) for row in counted]] for kind in kinds])


def sizes(codecs: list[str]) -> list[str]:
    models = [f"{name}: a layer, all" for name in MODELS]
    table = [["codec", "a KV head", *models]]
    for codec in codecs:
        one = token_bytes(codec)
        table.append(
            [
                codec,
                str(one),
                *[f"{one * heads}, {one * heads * layers}" for layers, heads in MODELS.values()],
            ]
        )
    return rows_of(table)


def page(rows: list[Any]) -> str:
    from kernel_resources import LIMITS

    names = ", ".join(f"sm_{arch} {processor.name}" for arch, processor in PROCESSORS.items())
    known = sorted(
        (row for row in rows if row.arch in PROCESSORS), key=lambda row: (row.file, row.kernel, row.arch)
    )
    text = [
        "# CUDA kernels, counted", "",
        "Written by `python tools/kernel_resources.py --arch 87 --arch 90 --arch 110 --write` (nvcc 13.0).",
        f"Nothing here ran on a GPU. {names}.", "",
        "## What a warp issues for 16 packed keys", "",
        "SASS along the shortest way round the loop: keys, logits, softmax and values of a unit of 16 tokens",
        "for at most eight query rows of a KV head, from planes to sums. The last column is what",
        "`tools/kernel_resources.py`, and so `.ci/run`, lets pass.", "",
        *instructions(known, LIMITS), "",
        "Where those of k5v3 at D = 128 go: a lane has 64 numbers of keys and 64 of values. Bytes and bits:",
        "four numbers of a key are five look-ups (`prmt`) in a table of 32 bytes, three words that choose",
        "among them and two that widen them; the last bit lies in a plane of its own, across the others.",
        "Pairs of halves: two steps of the Hadamard transform (64), scale and mean (32), the turn (64), the",
        "offset of value codes (32). To halves: what tensor cores sum (32), and angles, fp32 in tables (32).",
        "The goal was 300: that is of keys stored after RoPE, which need neither transform nor turn.", "",
        *kinds_of(known), "",
        "## Registers, occupancy, code", "",
        "Blocks and warps that a processor holds side by side, of attend on tensor cores at D = 128",
        "(`_64`: 64).", "",
        *resources(known), "",
        "## Bytes of a token's keys and values", "",
        "At D = 128, without the positions and times beside them; 3B: 36 layers of 2 KV heads, 7B: 28 of 4.",
        "",
        *sizes(["fp16", "int8", "k8v8", "int4", *LIMITS]), "",
    ]  # fmt: skip
    return "\n".join(text)
