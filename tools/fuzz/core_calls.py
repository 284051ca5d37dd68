"""A case of raw `_core.KvMemory`: a random model, memory and policy, then calls by chance, also wrong ones.
After each: the bytes taken are within the cap and all accounted for, every token is somewhere, the store is
whole, answers are finite; what was refused is an error of the core's and changed nothing.
"""

from __future__ import annotations

import math
import os
import random
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cases import must, small_files
from random_policy import RaisedError, RandomPolicy

from mosaic_edge import _core

CALLS = 150
SCORES = ("both", "both", "both", "received", "value_norm", "tar", "decayed", "template", "newest")
CLEAN = (ValueError, TypeError, MemoryError, _core.SpillError, RaisedError)
Array = np.ndarray


def play(seed: int, folder: Path) -> Counter[str]:
    rng = random.Random(seed)
    shape, settings = random_shape(rng), random_settings(rng, folder)
    policy: Any = RandomPolicy(rng) if rng.random() < 0.3 else rng.choice(_core.policies())
    said = {"unit": "tokens"} if policy == "mosaic" and rng.random() < 0.5 else {}
    if policy == "edge" or said:
        said["score"] = rng.choice(SCORES)
    threads = rng.choice([1, 1, 2, 3])
    done: Counter[str] = Counter()
    try:
        settings["cap_bytes"] = least_cap(shape, settings, policy, said, threads) + rng.choice(
            [0, 0, 1000, 20_000, 200_000]
        )
        faults = rng.choice([0, 0, 1, 2, 3, 7, 50]) if settings.get("disk_bytes") else 0
        memory = _core.KvMemory(shape, settings, policy, said, "cpu", threads, faults)
    except CLEAN:
        done["settings refused"] += 1
        return done

    def restored(reader: Any) -> Any:
        return _core.KvMemory(shape, settings, policy, said, "cpu", threads, faults, reader)

    game = Game(rng, seed, shape, settings, policy, memory, restored)
    for _ in range(CALLS):
        done[game.step()] += 1
        done["operations"] += 1
    done["raised by the policy"] += game.raised
    done["lost pages"] += game.memory.stats()["events"]["lost_pages"]
    return done


def random_shape(rng: random.Random) -> dict[str, Any]:
    head_dim, kv_heads = rng.choice([2, 4, 8, 16, 20, 32]), rng.choice([1, 2, 3])
    rope: dict[str, Any] = {
        "rotary_dim": head_dim,
        "theta": rng.choice([10000.0, 1e6, 10.0]),
        "layout": rng.choice(["half", "interleaved", "none"]),
    }
    if head_dim >= 8 and rng.random() < 0.4:
        half = head_dim // 2
        t = rng.randrange(1, half - 1)
        h = rng.randrange(1, half - t)
        rope |= {"sections": [t, h, half - t - h], "sections_interleaved": rng.random() < 0.3}
        rope["grid_follows_time"] = rng.random() < 0.5
    return {
        "layers": rng.choice([1, 2, 3, 5]),
        "q_heads": kv_heads * rng.choice([1, 2, 3]),
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "rope": rope,
        "embedding_dim": rng.choice([1, 5, 16]),
        "frame_tokens": rng.choice([1, 2, 5, 6, 13, 16, 17, 33]),
        "video_window": rng.choice([0, 0, 0, 1, 2, 4]),
        "context": rng.choice([0, 0, 400, 700, 4096]),
    }


def random_settings(rng: random.Random, folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "window_frames": rng.choice([0, 1, 2, 3, 5]),
        "exact": rng.choice(["fp16", "fp32"]),
        "branch_tokens": rng.choice([0, 8, 24, 40]),
        "prefix_tokens": rng.choice([0, 3, 17]),
        "positions": rng.choice(["auto", "contiguous", "original"]),
        "summaries": rng.random() < 0.8,
        "refresh_every": rng.choice([0, 0, 1, 3]),
        "prefetch": rng.random() < 0.7,
        "overflow": rng.choice(["refuse", "saturate"]),
        "max_cluster_tokens": rng.choice([2, 5, 16, 20, 64]),
        "exact_share": rng.choice([0.0, 0.15, 0.5, 0.9]),
        "index_share": rng.choice([0, 0, 0.1, 0.9]),
        "retrieve_tokens": rng.choice([0, 0, 1, 16, 64]),
        "clusters": rng.choice([0, 0, 0, 2, 5, 50]),
        "scenes": rng.choice([0, 0, 1, 2, 9]),
    }
    if rng.random() < 0.7:
        settings["window_codec"] = rng.choice([None, "k8v8", "fp16", "int4"])
        settings["packed"] = rng.choice(["int4", "int8", "fp16", "fp32", "k5v3", "k4v4", "k3v3"])
    if rng.random() < 0.5:
        settings |= {"disk_bytes": rng.choice([1, 4096, 64 << 10, 1 << 20]), "spill_dir": str(folder)}
    return settings


def least_cap(
    shape: dict[str, Any], settings: dict[str, Any], policy: Any, said: dict[str, str], threads: int
) -> int:
    """What the plan says it needs, which must be accepted."""
    try:
        _core.plan(shape, {**settings, "cap_bytes": 1}, policy, said, "cpu", threads)
    except MemoryError as error:
        found = re.search(r"needs at least [^(]*\((\d+) bytes", str(error))
        if found is None:
            raise
        needed = int(found[1])
        _core.plan(shape, {**settings, "cap_bytes": needed}, policy, said, "cpu", threads)
        return needed
    return 1


class Game:
    """One memory and what it must hold."""

    def __init__(
        self,
        rng: random.Random,
        seed: int,
        shape: dict[str, Any],
        settings: dict[str, Any],
        policy: Any,
        memory: Any,
        restored: Callable[[Any], Any],
    ) -> None:
        self.rng, self.numbers = rng, np.random.default_rng(seed)
        self.shape, self.settings, self.memory = shape, settings, memory
        self.policy, self.restored = policy, restored
        self.by_python = isinstance(policy, RandomPolicy)
        if self.by_python:
            policy.memory = memory
        self.lanes: int = memory.plan()["lanes"]
        self.layers, self.head_dim = shape["layers"], shape["head_dim"]
        self.q_heads, self.kv_heads = shape["q_heads"], shape["kv_heads"]
        self.pts, self.t_position = rng.choice([0.0, -5.0, 1e5]), 0
        self.tokens = self.frames = self.raised = 0
        self.prefix_left = settings["prefix_tokens"]
        width = self.kv_heads * self.head_dim
        self.centres = self.numbers.standard_normal((6, width)).astype(np.float32)
        self.loud = settings["overflow"] == "saturate" and rng.random() < 0.2

    def step(self) -> str:
        kinds: list[tuple[int, str, Callable[[], object]]] = [
            (50, "frame", self.frame),
            (12, "open", self.open_question),
            (20, "text", self.text),
            (8, "close", self.close_question),
            (6, "broken block", self.broken_block),
            (4, "wrong call", self.wrong_call),
            (3, "look", self.look),
            (2, "unfinished", self.unfinished),
            (3, "saved and restored", self.saved),
            (2, "disk full or free", lambda: small_files(self.rng)),
        ]
        _, name, call = self.rng.choices(kinds, [weight for weight, _, _ in kinds])[0]
        try:
            call()
        except CLEAN as error:
            self.raised += isinstance(error, RaisedError)
            must("Unable to cast" not in str(error), error)
            self.memory.abort()
            name += ", refused"
        self.check()
        return name

    def check(self) -> None:
        stats = self.memory.stats()
        tokens = dict(stats["tokens"])
        seen = tokens.pop("seen")
        must(sum(tokens.values()) == seen and min(tokens.values()) >= 0, ("account", stats["tokens"]))
        must(seen == self.tokens * self.lanes, ("seen", seen, self.tokens * self.lanes))
        must(stats["frames"] == self.frames, ("frames", stats["frames"], self.frames))
        must(stats["taken_bytes"] <= self.settings["cap_bytes"], ("cap", stats["taken_bytes"]))
        must(sum(size for _, size in stats["parts"]) == stats["taken_bytes"], ("parts", stats["parts"]))
        for tier in stats["tiers"]:
            must(tier["used_bytes"] <= tier["capacity_bytes"], ("tier", tier))
        self.memory.check_invariants()

    def arrays(self, tokens: int) -> list[Array]:
        """q, k, v and out of a layer: tokens near a few centres, now and then large, zero or past half."""
        rng = self.rng
        which = self.numbers.integers(6, size=tokens)
        noise = [self.numbers.standard_normal((tokens, len(self.centres[0]))) * 0.1 for _ in range(2)]
        q = self.numbers.standard_normal((tokens, self.q_heads, self.head_dim)).astype(np.float32)
        k, v = (
            (self.centres[at] + more).astype(np.float32).reshape(tokens, self.kv_heads, self.head_dim)
            for at, more in zip((which, 5 - which), noise, strict=True)
        )
        if self.loud and rng.random() < 0.5:  # most of them saturate
            k *= np.float32(rng.choice([1e4, 1e5]))
            v *= np.float32(rng.choice([1e4, 1e5]))
        elif (kind := rng.randrange(200)) < 6:
            k *= np.float32(1e4)
        elif kind < 9:
            v *= np.float32(0)
        elif kind < 11:
            q *= np.float32(1e3)
        elif kind < 14:
            x = rng.choice([q, k, v])
            x.flat[rng.randrange(x.size)] = rng.choice([7e4, -65505, 1e38])
        return [q, k, v, np.full_like(q, np.nan)]

    def forward(self, tokens: int, layers: int | None = None) -> None:
        for layer in range(self.layers if layers is None else layers):
            given = self.arrays(tokens)
            self.memory.attend(layer if self.rng.random() < 0.999 else layer + 1, *given)
            must(bool(np.isfinite(given[3]).all()), ("an answer is not finite", layer, tokens))

    def begin_frame(self, tokens: int) -> None:
        rng = self.rng
        lead = trail = 0
        if tokens > 4 and rng.random() < 0.3:
            lead, trail = rng.randrange(2), rng.randrange(2)
        t_position = -1
        if self.shape["rope"].get("sections") and rng.random() < 0.5:
            self.t_position += rng.randrange(40)
            t_position = self.t_position
        self.pts += rng.choice([0, 0.001, 1, 1, 1, 100])
        embedding = self.numbers.standard_normal(self.shape["embedding_dim"]).astype(np.float32)
        if rng.random() < 0.02:
            embedding *= np.float32(rng.choice([0, 1e20, 1e-30]))
        self.memory.begin_frame(
            self.pts, embedding, tokens, rng.randrange(1, tokens + 3), lead, trail, t_position
        )

    def random_tokens(self) -> int:
        return self.rng.randrange(1, self.shape["frame_tokens"] + 1)

    def frame(self) -> None:
        if self.memory.asking:
            return
        if self.prefix_left and not self.frames:
            tokens, self.prefix_left = self.prefix_left, 0
            self.memory.begin_text(tokens)
            self.forward(tokens)
            self.memory.commit()
            self.tokens += tokens
        tokens = self.random_tokens()
        self.begin_frame(tokens)
        self.forward(tokens)
        self.commit(tokens)

    def commit(self, tokens: int) -> None:
        """Of a frame, which is in all the same where the policy raises: it was filed before."""
        before = self.memory.stats()["frames"]
        try:
            self.memory.commit()
        finally:
            if self.memory.stats()["frames"] > before:
                self.frames += 1
                self.tokens += tokens

    def open_question(self) -> None:
        pts = self.pts
        self.memory.open_question(self.rng.choice([None, None, pts - 1, pts - 100, pts + 5, -1e9, 1e9]))

    def text(self) -> None:
        if not self.memory.asking:
            return
        tokens = self.rng.choice([1, 1, 2, 5, 30])
        self.memory.begin_text(tokens)
        self.forward(tokens)
        self.memory.commit()
        for first, last, mass in self.memory.evidence():
            must(first <= last and 0 < mass < math.inf, ("evidence", first, last, mass))

    def close_question(self) -> None:
        self.memory.close_question(self.rng.random() < 0.5)

    def broken_block(self) -> None:
        """One array of one layer is not what it should be."""
        tokens = 2 if self.memory.asking else self.random_tokens()
        if self.memory.asking:
            self.memory.begin_text(tokens)
        else:
            self.begin_frame(tokens)
        bad = self.rng.randrange(self.layers)
        for layer in range(self.layers):
            given: list[Any] = self.arrays(tokens)
            if layer == bad:
                self.spoil(given)
            self.memory.attend(layer, *given)
        if self.memory.asking:
            self.memory.commit()
        else:
            self.commit(tokens)

    def spoil(self, given: list[Any]) -> None:
        at = self.rng.randrange(4)
        x = given[at]
        if self.rng.randrange(3) == 0:
            x = given[at := self.rng.randrange(3)]
            x.flat[self.rng.randrange(x.size)] = self.rng.choice([math.nan, math.inf, -math.inf])
            return
        given[at] = self.rng.choice(
            [
                x.astype(np.float64), x[:-1], x[::-1], None, x.astype(">f4"), np.empty(0, np.float32),
                np.zeros_like(x, np.float16), "x", [[1.0]], given[(at + 1) % 4], np.float32(1), x.tolist(),
            ]
        )  # fmt: skip

    def wrong_call(self) -> None:
        rng, memory, ones = self.rng, self.memory, np.ones(self.shape["embedding_dim"], np.float32)
        large = rng.choice([-1, 0, 1 << 30, (1 << 31) - 1, -(1 << 31), 1 << 40, 1 << 70])
        calls: list[Callable[[], object]] = [
            memory.commit,
            memory.close_question,
            memory.abort,
            lambda: memory.begin_text(large),
            lambda: memory.begin_frame(rng.choice([math.nan, math.inf, 1e300, self.pts - 1]), ones, 1),
            lambda: memory.begin_frame(self.pts, ones * np.float32(math.nan), 1),
            lambda: memory.begin_frame(self.pts, np.ones(len(ones) + 1, np.float32), 1),
            lambda: memory.begin_frame(self.pts, ones, large),
            lambda: memory.begin_frame(self.pts, ones, 1, large),
            lambda: memory.begin_frame(self.pts, ones, 1, 1, large, rng.choice([-1, 0, large])),
            lambda: memory.begin_frame(self.pts, ones, 1, 1, 0, 0, large),
            lambda: memory.attend(large, *self.arrays(1)),
            lambda: memory.open_question(rng.choice([math.nan, math.inf, "x"])),
            lambda: memory.store.clusters(large),
            lambda: memory.store.members(rng.choice([large, None])),
        ]
        asking = memory.asking
        rng.choice(calls)()
        memory.abort()
        must(memory.asking == asking or not memory.asking, "a wrong call opened a question")

    def look(self) -> None:
        self.memory.drain()
        store = self.memory.store
        lanes = range(store.lanes)
        live = sum(len(store.clusters(lane)["id"]) for lane in lanes)
        must(live == self.memory.stats()["clusters"], ("clusters", live))
        for lane in lanes:
            members = store.members(lane)
            must(bool(np.isfinite(members["k"]).all() and np.isfinite(members["v"]).all()), "stored numbers")

    def saved(self) -> None:
        """Into a file and out of it: the same session goes on."""
        if self.memory.asking:
            self.memory.close_question()
        self.memory.drain()
        before = self.memory.stats()
        with tempfile.TemporaryFile() as file:
            writer: Any = _core.SnapshotWriter(file.fileno())
            self.memory.save(writer)
            writer.finish()
            os.lseek(file.fileno(), 0, os.SEEK_SET)
            reader: Any = _core.SnapshotReader(file.fileno())
            restored = self.restored(reader)
            reader.finish()
        after = restored.stats()
        for what in ("tokens", "frames", "clusters", "taken_bytes", "tiers", "read"):
            must(before[what] == after[what], ("restored", what, before[what], after[what]))
        self.memory = restored
        if self.by_python:
            self.policy.memory = restored

    def unfinished(self) -> None:
        """A block that ends before its last layer."""
        if self.memory.asking:
            return
        self.begin_frame(1)
        self.forward(1, self.rng.randrange(self.layers + 1))
        self.memory.abort()
