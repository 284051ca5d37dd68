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

import numpy as np

from mosaic_edge import _core

FRAME_TOKENS = 196
QUESTION_TOKENS = 24
# Layers, query heads, KV heads, head_dim, parameters of all layers (Qwen2.5-VL).
SHAPES = {"3b": (36, 16, 2, 128, 2.8e9), "7b": (28, 28, 4, 128, 6.5e9)}
PARTS = ("attend", "listen", "admit", "settle")


class Stream:
    """A memory that random frames come to."""

    def __init__(self, shape: str, layers: int, tokens: int, threads: int) -> None:
        _, self.q_heads, self.kv_heads, self.dim, _ = SHAPES[shape]
        self.layers, self.random = layers, np.random.default_rng(1)
        model = {
            "layers": layers, "q_heads": self.q_heads, "kv_heads": self.kv_heads, "head_dim": self.dim,
            "rope": {"rotary_dim": self.dim, "theta": 1e6}, "embedding_dim": 64, "frame_tokens": FRAME_TOKENS,
            "context": 1 << 17,
        }  # fmt: skip
        record = 2 * self.dim * 4.125 / 8 + 16  # bytes, and what stands beside it
        room = 24 << 20  # window, tables and scratch
        config: dict[str, Any] = {"window_frames": 4, "branch_tokens": 64}
        cap = int(layers * self.kv_heads * tokens * record) + room * layers
        while True:
            plan = _core.plan(model, {**config, "cap_bytes": cap}, "edge", {}, "cpu", threads)
            log = plan["tiers"][0]["pages"] * 16 // (layers * self.kv_heads)
            if log <= tokens:
                break
            cap -= (log - tokens) * int(record) * layers * self.kv_heads // 2 + 4096
        self.kept = log
        self.cap = cap
        self.memory = _core.KvMemory(model, {**config, "cap_bytes": cap}, "edge", {}, "cpu", threads)
        scenes = self.random.standard_normal((8, FRAME_TOKENS, self.kv_heads, self.dim))
        self.scenes = scenes.astype(np.float32)
        self.frames = 0

    def attend(self, tokens: int) -> None:
        scene = self.scenes[self.frames // 12 % 8][:tokens]
        for layer in range(self.layers):
            k, v = scene + np.float32(0.5) * self.random.standard_normal((2, *scene.shape)).astype(np.float32)
            q = self.random.standard_normal((tokens, self.q_heads, self.dim)).astype(np.float32)
            self.memory.attend(layer, q, k, v, np.empty_like(q), tokens)

    def frame(self) -> None:
        self.memory.begin_frame(float(self.frames), np.ones(64, np.float32), FRAME_TOKENS, 14)
        self.attend(FRAME_TOKENS)
        self.memory.commit()
        self.frames += 1

    def question(self) -> None:
        self.memory.open_question()
        self.memory.begin_text(QUESTION_TOKENS)
        self.attend(QUESTION_TOKENS)
        self.memory.commit()
        self.memory.close_question()


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
    stream = Stream(options.shape, options.layers, options.tokens, threads)
    full = stream.kept // FRAME_TOKENS + 24
    for i in range(full):
        stream.frame()
        if i % 16 == 15:
            print(f"filled {i + 1} of {full} frames", flush=True)
    layers, q_heads, kv_heads, dim, parameters = SHAPES[options.shape]
    scale = layers / options.layers
    frame, question = traced(stream.frame, options.times), traced(stream.question, options.times)
    attended = (
        FRAME_TOKENS * (stream.kept + 2.5 * FRAME_TOKENS) * q_heads * dim * 2 * options.layers
    )  # multiply-adds
    rate = attended / (frame["attend"] / 1e3)
    weights = FRAME_TOKENS * parameters / rate * 1e3
    whole = scale * sum(frame[part] for part in PARTS) + weights
    print(
        f"\n{options.shape}: {stream.kept} tokens kept by each of {layers * kv_heads} heads,"
        f" {stream.cap * scale / 2**20:.0f} MiB; {threads} threads, {options.layers} of {layers} layers run;"
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
