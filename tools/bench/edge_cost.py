"""What `edge` costs of a frame and of a question: `python tools/bench/edge_cost.py [--shape 7b]`.

A memory of 3B or 7B shape that keeps --tokens a head (random keys and values; a few layers, for they are
alike), timed by its own trace: attention over what is kept, and beside it what listens to attention
(`listen`), packs what leaves the window and makes room (`admit`), and compares what is settled (`settle`).
The decoder's weights are not run: their part of a frame is counted as multiply-adds at the rate that
attention reached here.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import time
from typing import Any

from random_stream import Heads, RandomStream

from mosaic_edge import _core

FRAME_TOKENS = 196
QUESTION_TOKENS = 24
# Layers, query heads, KV heads, head_dim, parameters of all layers (Qwen2.5-VL).
SHAPES = {"3b": (36, 16, 2, 128, 2.8e9), "7b": (28, 28, 4, 128, 6.5e9)}
PARTS = ("attend", "listen", "admit", "settle")


def full_stream(heads: Heads, tokens: int, threads: int) -> tuple[RandomStream, int, int]:
    """A stream whose memory holds at most so many tokens a head. Returns how many it does, and its cap."""
    model, config = heads.model(FRAME_TOKENS), {"window_frames": 4, "branch_tokens": 64}
    record = 2 * heads.dim * 4.125 / 8 + 16  # bytes, and what stands beside it
    lanes, room = heads.layers * heads.kv, 24 << 20  # of a layer: window, tables and scratch
    cap = int(lanes * tokens * record) + room * heads.layers
    while True:
        plan = _core.plan(model, {**config, "cap_bytes": cap}, "edge", {}, "cpu", threads)
        kept = plan["tiers"][0]["pages"] * 16 // lanes
        if kept <= tokens:
            break
        cap -= (kept - tokens) * int(record) * lanes // 2 + 4096
    memory = _core.KvMemory(model, {**config, "cap_bytes": cap}, "edge", {}, "cpu", threads)
    return RandomStream(heads, FRAME_TOKENS, memory), kept, cap


def traced(work: Any, times: int) -> dict[str, float]:
    """Milliseconds a call of each span, and of all."""
    recording = _core.TraceRecording()
    began = time.perf_counter()
    for _ in range(times):
        work()
    spent: dict[str, float] = collections.defaultdict(float)
    spent["all"] = 1e3 * (time.perf_counter() - began) / times
    for event in json.loads(recording.stop())["traceEvents"]:
        if event.get("ph") == "X":
            spent[event["name"]] += event["dur"] / 1e3 / times
    return spent


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="7b")
    parser.add_argument(
        "--layers", type=int, default=1, help="of the memory; times are given for all of the model's"
    )
    parser.add_argument("--tokens", type=int, default=16_384, help="kept by every KV head")
    parser.add_argument("--times", type=int, default=8, help="frames that are timed once memory is full")
    options = parser.parse_args()
    threads = os.cpu_count() or 1
    layers, q_heads, kv_heads, dim, parameters = SHAPES[options.shape]
    heads = Heads(options.layers, q_heads, kv_heads, dim)
    stream, kept, cap = full_stream(heads, options.tokens, threads)
    full = kept // FRAME_TOKENS + 24
    for i in range(full):
        stream.frame()
        if i % 16 == 15:
            print(f"filled {i + 1} of {full} frames", flush=True)
    scale = layers / options.layers
    frame = traced(stream.frame, options.times)
    question = traced(lambda: stream.question(QUESTION_TOKENS), options.times)
    attended = (
        FRAME_TOKENS * (kept + 2.5 * FRAME_TOKENS) * q_heads * dim * 2 * options.layers
    )  # multiply-adds
    rate = attended / (frame["attend"] / 1e3)
    weights = FRAME_TOKENS * parameters / rate * 1e3
    whole = scale * sum(frame[part] for part in PARTS) + weights
    print(
        f"\n{options.shape}: {kept} tokens kept by each of {layers * kv_heads} heads,"
        f" {cap * scale / 2**20:.0f} MiB; {threads} threads, {options.layers} of {layers} layers run;"
        f" attention at {rate / 1e9:.1f} G multiply-adds a second\n"
    )
    print(
        "| part of a frame | ms | share of the memory's part, % | with the decoder's weights, % |\n"
        "|---|---|---|---|"
    )
    own = sum(frame[part] for part in PARTS)
    for part in PARTS:
        ms = scale * frame[part]
        print(f"| {part} | {ms:.0f} | {100 * frame[part] / own:.1f} | {100 * ms / whole:.1f} |")
    print(f"| decoder's weights (computed) | {weights:.0f} | | {100 * weights / whole:.1f} |")
    print(f"\nA question of {QUESTION_TOKENS} tokens: attend {scale * question['attend']:.0f} ms.")


if __name__ == "__main__":
    main()
