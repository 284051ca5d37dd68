"""One stream through one cache: the library's and ours, with the same three calls.

`append` takes in a frame, `ask` draws greedy tokens and leaves no trace of the question, `cache_bytes` is
what the cache holds. One stream is open at a time: the library's sets the model's attention to SDPA.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import transformers as tf
from cache_model import Recorded

from mosaic_edge import Engine, SamplingParams
from mosaic_edge.models.hf.attention import NAME
from mosaic_edge.models.rope import absolute_position
from mosaic_edge.models.vlm import FloatArray

FPS = 1.0


@dataclass(frozen=True)
class Answer:
    """Text of greedy tokens, the logits [vocab] of the first, seconds to the first and CPU seconds to it,
    tokens a second behind the first."""

    text: str
    logits: FloatArray
    first: float
    first_cpu: float
    rate: float


class Stream(Protocol):
    """What a contestant is asked."""

    def append(self, number: int) -> None:
        """Take in frame `number`, the next one."""

    def ask(self, question: str, tokens: int) -> Answer:
        """Answer about all seen so far."""

    def cache_bytes(self) -> int:
        """Bytes of keys, values and what goes with them, now."""

    def close(self) -> None:
        """Let go of everything."""


class LibraryStream:
    """transformers' own way: its attention (SDPA), one of its caches, one forward call a frame."""

    def __init__(self, recorded: Recorded, cache: tf.Cache) -> None:
        self.recorded, self.cache = recorded, cache
        self.language = recorded.model._family.language
        self.head = recorded.model._head
        self.language.set_attn_implementation("sdpa")
        prefix = recorded.tokenize(recorded.spec.prefix)
        self.start = len(prefix)  # of the video, in positions
        self.next = 0  # of the next text
        self._forward(recorded.embed_text(prefix), self._text(len(prefix)))

    def append(self, number: int) -> None:
        frame = self.recorded.frames[number]
        rows = len(frame.tokens) // frame.columns
        rate = self.recorded.model._family.tokens_per_second
        t = absolute_position(number / FPS, rate)
        y, x = np.divmod(np.arange(len(frame.tokens)), frame.columns)
        places = torch.from_numpy(np.stack([np.full_like(x, t), y, x]) + self.start)[:, None]
        self.next = max(self.next, self.start + max(t, rows - 1, frame.columns - 1) + 1)
        self._forward(frame.tokens, places)

    def ask(self, question: str, tokens: int) -> Answer:
        ids = self.recorded.tokenize(self.recorded.spec.template.format(question=question))
        before = [
            dict(vars(layer)) for layer in self.cache.layers
        ]  # caches of this kind replace, never write
        next_before, cpu, began = self.next, time.process_time(), time.perf_counter()
        logits = first_logits = self._say(ids)
        answer = [int(logits.argmax())]
        first, first_cpu = time.perf_counter() - began, time.process_time() - cpu
        for _ in range(tokens - 1):
            logits = self._say(answer[-1:])
            answer.append(int(logits.argmax()))
        rest = time.perf_counter() - began - first
        for layer, state in zip(self.cache.layers, before, strict=True):
            vars(layer).clear()
            vars(layer).update(state)
        self.next = next_before
        rate = (tokens - 1) / max(rest, 1e-9)
        text = self.recorded.detokenize(answer)
        return Answer(text, first_logits.float().numpy(), first, first_cpu, rate)

    def cache_bytes(self) -> int:
        return sum(tensor_bytes(list(vars(layer).values())) for layer in self.cache.layers)

    def close(self) -> None:
        self.language.set_attn_implementation(NAME)
        self.cache.layers.clear()

    def _text(self, count: int) -> torch.Tensor:
        places = torch.arange(self.next, self.next + count).expand(3, 1, count)
        self.next += count
        return places

    def _say(self, ids: Sequence[int]) -> torch.Tensor:
        hidden = self._forward(self.recorded.embed_text(ids), self._text(len(ids)))
        with torch.inference_mode():
            return self.head(hidden[:, -1])[0]

    def _forward(self, embeds: FloatArray, places: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            rows = torch.from_numpy(embeds).to(self.language.dtype)[None]
            made = self.language(
                inputs_embeds=rows, position_ids=places, past_key_values=self.cache, use_cache=True
            )
            return made.last_hidden_state


class OurStream:
    """A session over the same model object, with one cap for all lengths."""

    def __init__(self, recorded: Recorded, policy: str, cap: int, **settings: Any) -> None:
        self.session = Engine(recorded).session(memory=cap, policy=policy, **settings)
        self.blank = np.zeros((1, 1, 3), np.uint8)  # the tokens are recorded

    def append(self, number: int) -> None:
        self.session.append(self.blank, number / FPS)

    def ask(self, question: str, tokens: int) -> Answer:
        cpu = time.process_time()
        pieces = self.session.ask(question, stream=True, sampling=SamplingParams(max_tokens=tokens))
        text = iter(pieces)
        next(text)
        first_cpu = time.process_time() - cpu
        for _ in text:
            pass
        reply = pieces.reply
        rest = reply.seconds - reply.first_token_seconds
        rate = (reply.tokens - 1) / max(rest, 1e-9)
        return Answer(reply.text, reply.logits, reply.first_token_seconds, first_cpu, rate)

    def cache_bytes(self) -> int:
        return int(self.session.memory()["taken_bytes"])

    def close(self) -> None:
        self.session.close()


def contestants(cap: int) -> dict[str, Callable[[Recorded], Stream]]:
    """Every method by its name in the table."""

    def library(make: Callable[[Any], tf.Cache]) -> Callable[[Recorded], Stream]:
        return lambda recorded: LibraryStream(recorded, make(recorded.model._family.language.config))

    def ours(policy: str, **settings: Any) -> Callable[[Recorded], Stream]:
        return lambda recorded: OurStream(recorded, policy, cap, **settings)

    return {
        "edge": ours("edge"),
        "edge, summaries": ours("edge", policy_settings={"unit": "summaries"}),
        "DynamicCache": library(lambda config: tf.DynamicCache(config=config)),
        "DynamicCache, offloaded": library(lambda config: tf.DynamicCache(config=config, offloading=True)),
        "QuantizedCache, quanto int4": library(lambda config: tf.QuantizedCache("quanto", config)),
        "mosaic": ours("mosaic"),
        "rekv": ours("rekv"),
        "infinipot-v": ours("infinipot-v"),
        "mukv": ours("mukv"),
    }


def tensor_bytes(held: Any) -> int:
    """Bytes of the storage of every tensor in lists, tuples, dicts and quantised tensors."""
    if isinstance(held, torch.Tensor):
        flatten = getattr(held, "__tensor_flatten__", None)
        if flatten is not None and type(held) is not torch.Tensor:
            return sum(tensor_bytes(getattr(held, name)) for name in flatten()[0])
        return int(held.untyped_storage().nbytes())
    if isinstance(held, dict):
        held = list(held.values())
    return sum(tensor_bytes(item) for item in held) if isinstance(held, list | tuple) else 0
