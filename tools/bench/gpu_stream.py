"""An hour of video through a capped memory, for several policies: frame time, first token, peak bytes.

Weights and pictures are random, so nothing is said about answers. Every frame goes through the memory. The
decoder's linear layers run for the first frames and for every `EVERY`th; the others bring keys and values
recorded from the first ones with a little noise, which costs the memory the same. Frame time is that of
whole frames; q, k, v and out cross as host arrays, inside the time shown.

A policy that is slow, or a device that is lent for minutes, does not see the end of the hour: first-token
times are taken at marks on the way, so that policies can be compared where all of them have been.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from gpu_decoder import Decoder, Shape
from gpu_peers import Device

POLICIES = ("edge", "rekv", "full", "mosaic")
PACKED = {"edge": "k5v3", "rekv": "int4", "full": "fp16", "mosaic": "int4"}
CHOOSE = ("rekv", "mosaic")  # read a part for a question; the others all that they keep
SCENE = 30  # frames
RECORDED = 6
EVERY = 60
QUESTIONS = 4  # the first one warms up
MARKS = (14, 60, 120, 240, 480, 960, 1800)  # frames


class Pictures:
    """Token embeddings of frames: a scene's own places, and a little of each frame."""

    def __init__(self, shape: Shape, device: Device) -> None:
        self.shape, self.device = shape, device
        self.random = np.random.default_rng(2)
        self.scene = -1

    def frame(self, number: int, dtype: Any) -> tuple[Any, np.ndarray]:
        """Embeds [frame_tokens, hidden] and the frame's embedding [64]."""
        torch, shape = self.device.torch, self.shape
        size = (shape.frame_tokens, shape.hidden)
        if number // SCENE != self.scene:
            self.scene = number // SCENE
            self.places = torch.randn(size, device=self.device.name, dtype=dtype)
            self.mean = self.random.standard_normal(64).astype(np.float32)
        noise = 0.3 * torch.randn(size, device=self.device.name, dtype=dtype)
        return self.places + noise, self.mean + 0.05 * self.random.standard_normal(64).astype(np.float32)


def cap_of(shape: Shape, policy: str) -> int:
    """Bytes: all of the stream for `full`, 30 % of that for the others."""
    whole = int(shape.kv_bytes * shape.frame_tokens * (shape.frames + 8) * 1.15) + (64 << 20)
    return whole if policy == "full" else max(int(0.3 * whole), 32 << 20)


def open_memory(core: Any, shape: Shape, policy: str, device: Device) -> Any:
    """A KvMemory on the device."""
    settings: dict[str, Any] = {
        "cap_bytes": cap_of(shape, policy),
        "packed": PACKED[policy],
        "branch_tokens": 64,
    }
    if policy in CHOOSE:
        settings["retrieve_tokens"] = shape.retrieved_frames * shape.frame_tokens
    threads = 0 if device.is_cuda else 1
    return core.KvMemory(shape.core(), settings, policy, {}, device.name, threads, 0)


class Stream:
    """One cell of the table."""

    def __init__(self, core: Any, decoder: Decoder, policy: str) -> None:
        self.decoder, self.shape, self.device = decoder, decoder.shape, decoder.device
        self.pictures = Pictures(self.shape, self.device)
        self.random = np.random.default_rng(3)
        self.recorded: list[list[tuple[np.ndarray, ...]]] = []
        row = (self.shape.frame_tokens, self.shape.kv_heads, self.shape.head_dim)
        self.noisy = self.staged(row), self.staged(row)
        self.device.wait()
        self.free_before = self.free_bytes()
        self.least_free = self.free_before
        self.memory = open_memory(core, self.shape, policy, self.device)

    def staged(self, shape: tuple[int, ...]) -> np.ndarray:
        """Host memory [shape] that the device reaches."""
        torch = self.device.torch
        made = torch.empty(shape, dtype=torch.float32, pin_memory=self.device.is_cuda)
        array: np.ndarray = made.numpy()
        return array

    def copied(self, x: np.ndarray) -> np.ndarray:
        made = self.staged(x.shape)
        made[:] = x
        return made

    def free_bytes(self) -> int:
        return int(self.device.torch.cuda.mem_get_info()[0]) if self.device.is_cuda else 0

    def begin(self, number: int, embedding: np.ndarray) -> None:
        columns = int(self.shape.frame_tokens**0.5)
        self.memory.begin_frame(2.0 * number, embedding, self.shape.frame_tokens, columns)

    def whole_frame(self, number: int) -> float:
        """A frame with all its linear layers: seconds."""
        x, embedding = self.pictures.frame(number, self.decoder.dtype)
        record: list[tuple[np.ndarray, ...]] = []

        def attend(layer: int, q: Any, k: Any, v: Any, out: Any, tokens: int) -> None:
            if len(self.recorded) < RECORDED:
                record.append((self.copied(q), self.copied(k), self.copied(v), self.copied(out)))
            self.memory.attend(layer, q, k, v, out, tokens)

        self.device.wait()
        began = time.perf_counter()
        self.begin(number, embedding)
        self.decoder.run(x, attend, want_logits=False)
        self.memory.commit()
        took = time.perf_counter() - began
        if record:
            self.recorded.append(record)
        return took

    def filling_frame(self, number: int) -> float:
        """A frame of recorded q, k, v with noise: seconds of the memory alone."""
        _, embedding = self.pictures.frame(number, self.decoder.dtype)
        shape = (self.shape.frame_tokens, self.shape.kv_heads, self.shape.head_dim)
        noise = 0.1 * self.random.standard_normal(shape, np.float32)
        took = 0.0
        for layer, (q, k, v, out) in enumerate(self.recorded[number % RECORDED]):
            k_now, v_now = np.add(k, noise, out=self.noisy[0]), np.add(v, noise, out=self.noisy[1])
            began = time.perf_counter()
            if layer == 0:
                self.begin(number, embedding)
            self.memory.attend(layer, q, k_now, v_now, out, len(q))
            took += time.perf_counter() - began
        began = time.perf_counter()
        self.memory.commit()
        return took + time.perf_counter() - began

    def first_token(self) -> float:
        """Seconds from a question to the logits of its answer's first token; it leaves nothing behind."""
        shape = self.shape
        size = (shape.question_tokens, shape.hidden)
        x = self.device.torch.randn(size, device=self.device.name, dtype=self.decoder.dtype)
        self.device.wait()
        began = time.perf_counter()
        self.memory.open_question(None)
        self.memory.begin_text(shape.question_tokens)
        logits = self.decoder.run(x, self.memory.attend, want_logits=True)
        int(logits.argmax())
        took = time.perf_counter() - began
        self.memory.commit()
        self.memory.close_question(False)
        return took

    def ask(self) -> float:
        """The median first-token time of a few questions."""
        return statistics.median([self.first_token() for _ in range(QUESTIONS)][1:])

    def run(self, budget: float) -> dict[str, Any]:
        """The stream to its end, or until `budget` seconds are over."""
        whole, filling = [], []
        first_tokens: dict[str, float] = {}
        began = time.perf_counter()
        number = 0
        while number < self.shape.frames and (number <= RECORDED or time.perf_counter() - began < budget):
            if number < RECORDED or number % EVERY == 0 or number >= self.shape.frames - 3:
                whole.append(self.whole_frame(number))
            else:
                filling.append(self.filling_frame(number))
            self.least_free = min(self.least_free, self.free_bytes())
            number += 1
            if number in MARKS:
                first_tokens[str(number)] = self.ask()
        if str(number) not in first_tokens:
            first_tokens[str(number)] = self.ask()
        self.least_free = min(self.least_free, self.free_bytes())
        stats = self.memory.stats()
        return {
            "frames": number,
            "of_frames": self.shape.frames,
            "frame_seconds": statistics.median(whole[2:]),  # the first two warm up
            "memory_seconds": statistics.median(filling),
            "first_token_seconds": first_tokens[str(number)],
            "first_token_seconds_by_frames": first_tokens,
            "memory_bytes": stats["taken_bytes"],
            "device_bytes": self.free_before - self.least_free if self.device.is_cuda else None,
            "tokens": stats["tokens"],
        }


def bench_streams(
    core: Any,
    shapes: tuple[Shape, ...],
    device: Device,
    budget: float,
    only: list[str],
    emit: Callable[[dict[str, Any]], None],
) -> bool:
    """A row for each shape and policy; a cell that fails says why and the others go on. True: none failed.

    budget: seconds for all of them. Each gets an even part of what is left, so that what one does not need is
    for those behind it.
    """
    good, ends, cells = True, time.perf_counter() + budget, len(shapes) * len(only)
    for shape in shapes:
        decoder = Decoder(shape, device)
        weights = sum(part.numel() * part.element_size() for layer in decoder.layers for part in layer)
        for policy in only:
            row: dict[str, Any] = {
                "op": "stream",
                "model": shape.name,
                "policy": policy,
                "weight_bytes": weights,
            }
            try:
                row |= Stream(core, decoder, policy).run((ends - time.perf_counter()) / cells)
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {error}"
                good = False
            cells -= 1
            emit(row)
        del decoder
        if device.is_cuda:
            device.torch.cuda.empty_cache()
    return good
