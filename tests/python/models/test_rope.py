"""Positions under M-RoPE, against values written down from the published rule, not computed by any library.

Qwen2.5-VL (get_rope_index of its release): text counts up on all three axes; a video's temporal position is
where it begins + the frame's second * tokens_per_second rounded down, rows and columns begin there too; text
behind it goes on one behind the largest of the three.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mosaic_edge import InvalidInput, _core
from mosaic_edge.models.rope import absolute_position

DIM = 6
ROPE: dict[str, Any] = {"rotary_dim": DIM, "theta": 100.0, "sections": [1, 1, 1]}


@pytest.mark.parametrize(
    ("seconds", "rate", "position"),
    [
        # The example of the published code: 3 grids of one second at 25 tokens a second.
        (0.0, 25, 0), (1.0, 25, 25), (2.0, 25, 50),
        # Two a second, as the checkpoints have it, at several rates of frames.
        (0.0, 2, 0), (0.5, 2, 1), (1.0, 2, 2), (0.25, 2, 0), (0.75, 2, 1), (1.75, 2, 3), (3.3, 2, 6),
        (7.49, 2, 14),
        (1 / 3, 2, 0), (2 / 3, 2, 1), (3600.0, 2, 7200), (0.04, 25, 1), (0.08, 25, 2),
        # Differences of times in floats fall a hair short of where they should be.
        (4.1 - 0.1, 2, 8), (1.1 - 0.6, 2, 1), (0.3, 10, 3), (0.7 + 0.1 - 0.2, 5, 3),
    ],
)  # fmt: skip
def test_a_frame_stands_at_its_second_times_the_rate_rounded_down(
    seconds: float, rate: float, position: int
) -> None:
    assert absolute_position(seconds, rate) == position


def rotated(x: np.ndarray, position: np.ndarray, rope: dict[str, Any]) -> np.ndarray:
    """x [T, H, DIM] turned by (t, h, w) [T, 3]; one frequency an axis, so chunks and turns are the same."""
    angle = position * rope["theta"] ** (-2.0 * np.arange(3) / DIM)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    a, b = x[..., :3], x[..., 3:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


class Stream:
    """A memory of one layer that everything is read from, and all that went in."""

    def __init__(self, rope: dict[str, Any], prefix: int, positions: str) -> None:
        self.rope = rope
        model = dict(
            layers=1,
            q_heads=2,
            kv_heads=1,
            head_dim=DIM,
            scale=0.7,
            rope=rope,
            embedding_dim=2,
            frame_tokens=16,
        )
        memory = dict(
            cap_bytes=4 << 20, exact="fp32", packed="fp32", prefix_tokens=prefix, branch_tokens=32,
            positions=positions,
        )  # fmt: skip
        self.memory: Any = _core.KvMemory(model, memory, "full")
        self.random = np.random.default_rng(3)
        self.keys: list[np.ndarray] = []
        self.values: list[np.ndarray] = []

    def block(self, tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Query [T, 2, DIM] and output of a block that was begun."""
        q, k, v = (self.random.standard_normal((tokens, h, DIM)).astype(np.float32) for h in (2, 1, 1))
        out = np.empty_like(q)
        self.memory.attend(0, q, k, v, out, tokens)
        self.memory.commit()
        self.keys.append(k)
        self.values.append(v)
        return q, out

    def frame(self, tokens: int, columns: int, **place: int) -> None:
        self.memory.begin_frame(float(len(self.keys)), np.ones(2, np.float32), tokens, columns, **place)
        self.block(tokens)

    def text(self, tokens: int) -> tuple[np.ndarray, np.ndarray]:
        self.memory.begin_text(tokens)
        return self.block(tokens)

    def stands_at(self, golden: list[tuple[int, int, int]], question: int) -> None:
        """A question of so many tokens reads all as if it stood at `golden`, itself included."""
        self.memory.open_question()
        q, out = self.text(question)
        self.memory.close_question()
        k, v = np.concatenate(self.keys)[:, 0], np.concatenate(self.values)[:, 0]
        where = np.array(golden, float)
        assert len(where) == len(k)
        turned_k = rotated(k[:, None].astype(np.float64), where, self.rope)[:, 0]
        turned_q = rotated(q.astype(np.float64), where[-question:], self.rope)
        logits = 0.7 * np.einsum("qhd,kd->qhk", turned_q, turned_k)
        seen = np.tri(question, len(k), len(k) - question, dtype=bool)[:, None]
        weights = np.where(seen, np.exp(logits), 0)
        expected = np.einsum("qhk,kd->qhd", weights / weights.sum(-1, keepdims=True), v)
        np.testing.assert_allclose(out, expected, atol=1e-5)


def grid(t: int, rows: int, columns: int, corner: int) -> list[tuple[int, int, int]]:
    return [(t, corner + y, corner + x) for y in range(rows) for x in range(columns)]


def text(*positions: int) -> list[tuple[int, int, int]]:
    return [(p, p, p) for p in positions]


def test_the_published_example_of_qwen2_5_vl() -> None:
    """Three grids of 2 x 2, two seconds each, 25 positions a second: t 0, 50, 100, text from 101 on."""
    stream = Stream(ROPE, 0, "original")
    for second in (0.0, 2.0, 4.0):
        stream.frame(4, 2, t_position=absolute_position(second, 25))
    golden = grid(0, 2, 2, 0) + grid(50, 2, 2, 0) + grid(100, 2, 2, 0)
    stream.stands_at(golden + text(101, 102, 103, 104, 105), 5)


def test_the_published_example_of_qwen2_vl() -> None:
    """The same grids without time: t 0, 1, 2, text from 3 on; contiguous positions are these."""
    for positions in ("original", "contiguous"):
        stream = Stream(ROPE, 0, positions)
        for _ in range(3):
            stream.frame(4, 2)
        golden = grid(0, 2, 2, 0) + grid(1, 2, 2, 0) + grid(2, 2, 2, 0)
        stream.stands_at(golden + text(3, 4, 5, 6, 7), 5)


def test_text_before_a_video_moves_it_and_a_wide_picture_moves_the_text_behind() -> None:
    stream = Stream(ROPE, 3, "original")
    stream.text(3)
    stream.frame(10, 5, t_position=0)
    stream.frame(10, 5, t_position=1)
    # Columns reach 3 + 4, further than t = 4: text goes on at 8.
    stream.stands_at(text(0, 1, 2) + grid(3, 2, 5, 3) + grid(4, 2, 5, 3) + text(8, 9), 2)


def test_qwen3_vl_stamps_are_text_and_a_picture_takes_as_many_positions_as_its_longer_side() -> None:
    rope = ROPE | {"sections_interleaved": True, "grid_follows_time": True}
    for positions in ("original", "contiguous"):
        stream = Stream(rope, 2, positions)
        stream.text(2)
        stream.frame(3 + 6 + 1, 3, lead=3, trail=1)
        stream.frame(3 + 6 + 1, 3, lead=3, trail=1)
        golden = text(0, 1)
        golden += text(2, 3, 4) + grid(5, 2, 3, 5) + text(8)
        golden += text(9, 10, 11) + grid(12, 2, 3, 12) + text(15)
        stream.stands_at(golden + text(16, 17, 18), 3)


def test_one_dimension_counts_every_token_whatever_it_is() -> None:
    stream = Stream({"rotary_dim": DIM, "theta": 100.0}, 2, "original")
    stream.text(2)
    stream.frame(7, 2, lead=2, trail=1)
    stream.stands_at(text(*range(12)), 3)


def test_a_grid_that_follows_time_needs_three_axes() -> None:
    with pytest.raises(InvalidInput, match="grid_follows_time needs sections"):
        Stream({"rotary_dim": DIM, "theta": 100.0, "grid_follows_time": True}, 0, "original")
