"""Streams to try a policy on: tokens around a few directions, and those that ask for trouble."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from played import Array, PlayedMemory

Frames = Callable[[PlayedMemory, int], Iterator[tuple[Any, ...]]]


def around(noise: float, kinds: int = 9) -> Frames:
    """Frames of tokens around a few directions."""

    def frames(played: PlayedMemory, tokens: int) -> Iterator[tuple[Any, ...]]:
        centres = played.floats(2, played.layers, kinds, played.kv_heads, played.d)
        while True:
            pick = played.random.integers(kinds, size=tokens)
            q = played.floats(played.layers, tokens, played.q_heads, played.d)
            k, v = (c[:, pick] + np.float32(noise) * played.floats(*c[:, pick].shape) for c in centres)
            yield q, k, v

    return frames


ODD: dict[str, Callable[[PlayedMemory, int, int], tuple[Array, Array]]] = {}


def odd(make: Callable[[PlayedMemory, int, int], tuple[Array, Array]]) -> Callable[..., Any]:
    """make(played, tokens, frame): k and v [layers, tokens, kv_heads, D] of a stream that is trouble."""
    ODD[make.__name__] = make
    return make


@odd
def all_frames_equal(played: PlayedMemory, tokens: int, frame: int) -> tuple[Array, Array]:
    k, v = np.random.default_rng(4).standard_normal((2, played.layers, tokens, played.kv_heads, played.d))
    return k, v


@odd
def one_place_changes(played: PlayedMemory, tokens: int, frame: int) -> tuple[Array, Array]:
    k, v = all_frames_equal(played, tokens, frame)
    k[:, tokens // 2] *= np.cos(frame // 3)
    return k, v


@odd
def all_alike(played: PlayedMemory, tokens: int, frame: int) -> tuple[Array, Array]:
    one = np.ones((played.layers, tokens, played.kv_heads, played.d))
    return one, -one


@odd
def zero_keys(played: PlayedMemory, tokens: int, frame: int) -> tuple[Array, Array]:
    k, v = np.asarray(played.random.standard_normal((2, played.layers, tokens, played.kv_heads, played.d)))
    return np.zeros_like(k), v


@odd
def opposites(played: PlayedMemory, tokens: int, frame: int) -> tuple[Array, Array]:
    """Means of what merges are near zero."""
    k, v = all_frames_equal(played, tokens, frame)
    return k * (-1) ** frame, v * (-1) ** (frame // 2)


@odd
def no_two_alike(played: PlayedMemory, tokens: int, frame: int) -> tuple[Array, Array]:
    k, v = np.asarray(played.random.standard_normal((2, played.layers, tokens, played.kv_heads, played.d)))
    return k, v


@odd
def many_sizes(played: PlayedMemory, tokens: int, frame: int) -> tuple[Array, Array]:
    """Keys of one direction, a hundredth to ten long: the metric sees none of it."""
    k, v = no_two_alike(played, tokens, frame)
    return k[:, :1] * 10.0 ** np.linspace(-2, 1, tokens)[None, :, None, None], v


def odd_frame(played: PlayedMemory, name: str, tokens: int, frame: int) -> tuple[Any, ...]:
    k, v = (x.astype(np.float32) for x in ODD[name](played, tokens, frame))
    return played.floats(played.layers, tokens, played.q_heads, played.d), k, v
