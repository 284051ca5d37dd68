#!/usr/bin/env python3
"""Hash what the core does, to see that a change of its code changes no byte: `python tools/digest.py`.

A line per part: the plans of many settings (refusals too), a short session of every policy in several
variants on made-up q, k, v, and a stressed session of the built-in model with faults on its disk:

    .venv/bin/python tools/digest.py > before;  ...;  .venv/bin/python tools/digest.py | diff before -

Values are hashed in their order, without their names, so renaming alone changes nothing. Times are left
out. A hash is of one machine and one build: another instruction set rounds differently.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import tempfile
from typing import Any

import numpy as np

from mosaic_edge import Engine, _core
from mosaic_edge.sampling import SamplingParams
from mosaic_edge.world import World

ROPE = {"rotary_dim": 16, "theta": 100.0}
MULTI = {"rotary_dim": 16, "theta": 100.0, "sections": [2, 3, 3]}
FOLLOWS = {**MULTI, "sections_interleaved": True, "grid_follows_time": True}
MODEL: dict[str, Any] = {
    "layers": 3, "q_heads": 4, "kv_heads": 2, "head_dim": 16, "rope": ROPE, "embedding_dim": 6,
    "frame_tokens": 20, "video_window": 3,
}  # fmt: skip
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "disk": ({}, {"disk_bytes": 1 << 20}),
    "original": ({"context": 1 << 14}, {"positions": "original"}),
    "m-rope": ({"rope": MULTI, "video_window": 0}, {"retrieve_tokens": 200}),
    "m-rope-follows": ({"rope": FOLLOWS, "video_window": 0}, {"exact": "fp32", "packed": "int8"}),
    "few-clusters": ({}, {"clusters": 40, "disk_bytes": 200_000, "refresh_every": 2}),
    "no-summaries": ({}, {"summaries": False, "prefetch": False, "disk_bytes": 1 << 20}),
}
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "edge": [
        {"score": "received", "listen": 5.0}, {"likeness": 0.0}, {"unit": "summaries"},
        {"unit": "summaries", "members": "always"}, {"unit": "summaries", "members": "never", "frames": 0.0},
    ],
    "mosaic": [
        {"published": 1.0}, {"levels": "visual"}, {"levels": "none"}, {"item": "frame"}, {"split": "eager"},
        {"tau": "quantile"}, {"read_scenes": 2.0}, {"unit": "tokens"},
    ],
    "infinipot-v": [{"order": "tar"}, {"order": "uniform"}],
    "rekv": [{"score": "mass", "frames": 5.0}],
    "mukv": [{"retrieval": "strict"}, {"score": "mass", "signal": "frequency"}],
}  # fmt: skip


class Hash:
    """Takes nested results in; text() is what came of them."""

    def __init__(self) -> None:
        self._sum = hashlib.sha256()

    def add(self, value: Any) -> None:
        if isinstance(value, np.ndarray):
            self._sum.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, dict):
            for item in value.values():
                self.add(item)
        elif isinstance(value, list | tuple):
            for item in value:
                self.add(item)
        else:
            self._sum.update(repr(value).encode())

    def text(self) -> str:
        return self._sum.hexdigest()[:16]


def account(memory: Any) -> list[Any]:
    """What stats() says, but for times and how far the disk has come."""
    stats = dict(memory.stats() if hasattr(memory, "stats") else memory.memory())
    return [value for name, value in stats.items() if name not in ("copies", "disk", "policy")]


def plans() -> str:
    """Plans of many caps, shapes and settings; what is refused says the same."""
    total = Hash()
    shapes = [
        MODEL, {**MODEL, "rope": FOLLOWS, "video_window": 0},
        {**MODEL, "layers": 28, "q_heads": 16, "kv_heads": 2, "head_dim": 128, "frame_tokens": 196,
         "rope": {"rotary_dim": 128}, "video_window": 0},
    ]  # fmt: skip
    knobs: list[dict[str, Any]] = [
        {}, {"disk_bytes": 1 << 30}, {"clusters": 100}, {"retrieve_tokens": 500, "disk_bytes": 1 << 24},
        {"index_share": 0.6, "disk_bytes": 1 << 30}, {"packed": "fp16"}, {"positions": "original"},
        {"exact": "fp32", "packed": "int8", "scenes": 5, "branch_tokens": 300, "window_frames": 12},
        {"disk_bytes": 100, "max_cluster_tokens": 9, "exact_share": 0.4},
    ]  # fmt: skip
    for policy, shape, more in itertools.product(sorted(_core.policies()), shapes, knobs):
        for cap in (1 << 18, 700_001, 1 << 22, 64 << 20, 1 << 30):
            memory = {"cap_bytes": cap, "spill_dir": tempfile.gettempdir(), **more}
            try:
                total.add(_core.plan(shape, memory, policy))
            except (_core.MemoryCapError, _core.InvalidInput) as error:
                total.add(str(error))
    return total.text()


def session(policy: str, settings: dict[str, Any], model: dict[str, Any], memory: dict[str, Any]) -> str:
    """Frames around a few directions under a small cap, questions and dialogue in between."""
    shape = {**MODEL, **model}
    config = {"cap_bytes": 600_000, "spill_dir": tempfile.gettempdir(), "prefix_tokens": 5,
              "branch_tokens": 40, "window_frames": 3, "max_cluster_tokens": 24, **memory}  # fmt: skip
    total, random = Hash(), np.random.default_rng(5)
    try:
        core = _core.KvMemory(shape, config, policy, settings, "cpu", 1, 13 if "disk_bytes" in config else 0)
    except (_core.MemoryCapError, _core.InvalidInput) as error:
        return str(error)
    layers, heads, dim = shape["layers"], shape["kv_heads"], shape["head_dim"]
    kinds = random.standard_normal((2, layers, 9, heads, dim))

    def block(tokens: int) -> None:
        pick = random.integers(9, size=tokens)
        noise = 0.4 * random.standard_normal((2, layers, tokens, heads, dim))
        k, v = np.ascontiguousarray(kinds[:, :, pick] + noise, np.float32)
        q = random.standard_normal((layers, tokens, shape["q_heads"], dim)).astype(np.float32)
        out = np.empty_like(q)
        for layer in range(layers):
            core.attend(layer, q[layer], k[layer], v[layer], out[layer])
        total.add(out)
        core.commit()

    core.begin_text(5)
    block(5)
    for number in range(150):
        tokens = int(random.integers(12, 21))
        embedding = kinds[0, 0, number // 12 % 9, 0, :6] + 0.1 * random.standard_normal(6)
        lead, trail = (2, 1) if number % 3 == 0 else (0, 0)
        try:
            core.begin_frame(float(number), embedding.astype(np.float32), tokens, 4, lead, trail)
        except (_core.MemoryCapError, _core.InvalidInput) as error:
            total.add(str(error))
            break
        block(tokens)
        if number % 11 == 10:
            core.open_question(None if number % 2 else number / 2.0)
            for size in (6, 1, 1, 1):
                core.begin_text(size)
                block(size)
            total.add(core.evidence())
            core.close_question(number % 4 == 0)
            total.add(account(core))
    core.drain()
    core.check_invariants()
    total.add([account(core), core.stats()["disk"]])
    for lane in range(core.store.lanes):
        total.add(core.store.clusters(lane))
        total.add(core.store.members(lane))
    return total.text()


def stressed(policy: str, frames: int) -> str:
    """The built-in model over a world, with a disk of which every 97th copy fails, if the policy uses one."""
    total, random = Hash(), np.random.default_rng(6)
    engine = Engine.load("mosaic-tiny")
    world = World(7, frames / engine.spec.fps, "plain")
    settings: dict[str, Any] = {"memory": "2MiB", "policy": policy, "disk": "8MiB"}
    spills = engine.plan(**settings)["tiers"][-1]["medium"] == "disk"
    with engine.session(**settings, faults=97 if spills else 0) as live:
        for number in range(frames):
            second = number / engine.spec.fps
            try:
                live.append(world.render(second), second)
            except (_core.MemoryCapError, _core.InvalidInput) as error:
                total.add(str(error))
                break
            if number % 50 != 49:
                continue
            for question in world.questions(second, random, 1):
                reply = live.ask(question.text, sampling=SamplingParams(max_tokens=3))
                total.add([reply.text, reply.logits, reply.moments, reply.moments_lost])
            total.add(account(live))
        live.check_invariants()
    return total.text()


def main() -> None:
    """Print a line per part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--frames", type=int, default=1500, help="of the stressed session of the default policy"
    )
    arguments = parser.parse_args()
    print("plans", plans(), flush=True)
    for policy in sorted(_core.policies()):
        for name, (model, memory) in VARIANTS.items():
            print(policy, name, session(policy, {}, model, memory), flush=True)
        for settings in SETTINGS.get(policy, []):
            print(policy, settings, session(policy, settings, *VARIANTS["disk"]), flush=True)
        frames = arguments.frames if policy == "edge" else arguments.frames // 5
        print(policy, "stressed", stressed(policy, frames), flush=True)


if __name__ == "__main__":
    main()
