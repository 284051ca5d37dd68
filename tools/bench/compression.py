"""What compression in infinipot-v costs of a frame: `python tools/bench/compression.py`.

mosaic-tiny: the whole frame, encoder and decoder included, with and without pots that overflow. And a memory
of 7B shape (28 layers, 4 KV heads of 128, 196 tokens a frame, random keys and values): what the memory alone
does for a frame, commit() with compression against commit() of a pot that never fills. There the encoder and
the weights of the decoder come on top, so the share of a real frame is smaller still.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

import numpy as np

from mosaic_edge import Engine, _core
from mosaic_edge.world import World

SHAPE = {
    "layers": 28, "q_heads": 28, "kv_heads": 4, "head_dim": 128, "rope": {"rotary_dim": 128, "theta": 1e6},
    "embedding_dim": 64, "frame_tokens": 196,
}  # fmt: skip


def tiny(memory: str, frames: int) -> tuple[float, int]:
    """Mean milliseconds of append() of mosaic-tiny after the first 200 frames, and pots thinned."""
    engine = Engine.load("mosaic-tiny")
    world = World(7, frames)
    images = [world.render(i) for i in range(frames)]
    spent = []
    with engine.session(memory=memory, policy="infinipot-v") as session:
        for i, image in enumerate(images):
            start = time.perf_counter()
            session.append(image, float(i))
            spent.append(time.perf_counter() - start)
        thinned = session.memory()["events"]["thinned_clusters"]
    return 1e3 * statistics.fmean(spent[200:]), thinned


def shaped(cap: int, frames: int) -> tuple[float, float, int]:
    """Mean milliseconds of a frame's attend() calls and of its commit(), and pots thinned, at 7B shape."""
    config: dict[str, Any] = {"cap_bytes": cap, "packed": "int4", "window_frames": 4}
    memory = _core.KvMemory(SHAPE, config, "infinipot-v", {}, "cpu", os.cpu_count() or 1)
    random = np.random.default_rng(1)
    tokens, layers = SHAPE["frame_tokens"], SHAPE["layers"]
    q = random.standard_normal((tokens, 28, 128)).astype(np.float32)
    scene = random.standard_normal((2, layers, tokens, 4, 128)).astype(np.float32)
    out = np.empty_like(q)
    attend, commit = [], []
    for i in range(frames):
        k, v = scene + np.float32(0.2) * random.standard_normal((tokens, 4, 128)).astype(np.float32)
        memory.begin_frame(float(i), np.ones(64, np.float32), tokens, 14)
        start = time.perf_counter()
        for layer in range(layers):
            memory.attend(layer, q, k[layer], v[layer], out, tokens)
        middle = time.perf_counter()
        memory.commit()
        attend.append(middle - start)
        commit.append(time.perf_counter() - middle)
    thinned = memory.stats()["events"]["thinned_clusters"]
    late = frames // 4
    return 1e3 * statistics.fmean(attend[late:]), 1e3 * statistics.fmean(commit[late:]), thinned


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=48, help="of the 7B shape")
    parser.add_argument(
        "--cap", type=int, default=160, help="MiB of the 7B shape; the other one holds everything"
    )
    settings = parser.parse_args()
    print("| mosaic-tiny, 2,048 frames | ms a frame | pots thinned |\n|---|---|---|")
    with_pots, thinned = tiny("2MiB", 2048)
    without, none = tiny("64MiB", 2048)
    print(f"| 2 MiB | {with_pots:.3f} | {thinned} |\n| 64 MiB, never full | {without:.3f} | {none} |")
    print(f"compression: {100 * (1 - without / with_pots):.1f} % of a frame\n")
    print("| 7B shape | attend ms a frame | commit ms a frame | pots thinned |\n|---|---|---|---|")
    tight = shaped(settings.cap << 20, settings.frames)
    loose = shaped(1 << 30, settings.frames)
    for name, (attend, commit, count) in ((f"{settings.cap} MiB", tight), ("1 GiB, never full", loose)):
        print(f"| {name} | {attend:.1f} | {commit:.1f} | {count} |")
    cost = tight[1] - loose[1]
    print(
        f"compression: {cost:.1f} ms a frame, {100 * cost / (sum(tight[:2])):.1f} % of the memory's own part"
    )


if __name__ == "__main__":
    main()
