"""A vision-language model of a few lines of NumPy, random weights: all the engine sees of a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mosaic_edge.models.vlm import Attend, EncodedFrame, FloatArray, FrameArray, RopeSpec, VlmSpec

WORDS = (
    "<eos>",
    "what",
    "colour",
    "was",
    "the",
    "ball",
    "in",
    "kitchen",
    "?",
    "red",
    "green",
    "blue",
    "star",
)
HIDDEN, LAYERS, Q_HEADS, KV_HEADS, HEAD_DIM, GRID = 32, 3, 4, 2, 16, (2, 2)


class NumpyVlm:
    """Implements the Vlm protocol. `break_next`: the next decoder run gives NaN or raises."""

    def __init__(self, video_window: int = 4, never_ends: bool = True) -> None:
        random = np.random.default_rng(5)

        def weights(*shape: int) -> FloatArray:
            return (random.standard_normal(shape) / np.sqrt(shape[-2])).astype(np.float32)

        self._spec = VlmSpec(
            name="numpy", layers=LAYERS, q_heads=Q_HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, hidden=HIDDEN,
            rope=RopeSpec(HEAD_DIM, 1e4), scale=HEAD_DIM**-0.5, tokens_per_frame=GRID[0] * GRID[1], grid=GRID,
            embedding_dim=HIDDEN, image_size=(8, 8), image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5),
            vocab_size=len(WORDS), video_window=video_window,
            eos_token_ids=(len(WORDS) if never_ends else 0,),
        )  # fmt: skip
        self._vision = weights(3, HIDDEN) * 4
        self._place = weights(self._spec.tokens_per_frame, HIDDEN)
        self._words = weights(len(WORDS), HIDDEN) * 4
        self._q = weights(LAYERS, HIDDEN, Q_HEADS * HEAD_DIM)
        self._k = weights(LAYERS, HIDDEN, KV_HEADS * HEAD_DIM)
        self._v = weights(LAYERS, HIDDEN, KV_HEADS * HEAD_DIM)
        self._o = weights(LAYERS, Q_HEADS * HEAD_DIM, HIDDEN)
        self._head = weights(HIDDEN, len(WORDS))
        self.break_next = ""

    @property
    def spec(self) -> VlmSpec:
        return self._spec

    def encode(self, frame: FrameArray, pts: float, elapsed: float, number: int) -> EncodedFrame:
        rows, columns = GRID
        height, width = frame.shape[0] // rows, frame.shape[1] // columns
        means = [
            frame[r * height : (r + 1) * height, c * width : (c + 1) * width].mean((0, 1)) / 255 - 0.5
            for r in range(rows)
            for c in range(columns)
        ]
        tokens = (np.array(means, np.float32) @ self._vision + self._place).astype(np.float32)
        return EncodedFrame(tokens, tokens.mean(0), columns)

    def embed_text(self, ids: Sequence[int]) -> FloatArray:
        return self._words[list(ids)]

    def tokenize(self, text: str, plain: tuple[int, int] | None = None) -> list[int]:
        unknown = [word for word in text.split() if word not in WORDS]
        if unknown:
            raise ValueError(f"unknown word {unknown[0]!r}; known words: {' '.join(WORDS)}")
        return [WORDS.index(word) for word in text.split()]

    def detokenize(self, ids: Sequence[int]) -> str:
        return " ".join(WORDS[i] for i in ids)

    def forward(self, embeds: FloatArray, attend: Attend, want_logits: bool = True) -> FloatArray | None:
        broken, self.break_next = self.break_next, ""
        x = embeds
        for layer in range(LAYERS):
            if broken == "raise" and layer == 1:
                raise RuntimeError("the decoder broke down")
            h = np.tanh(x)
            q, k, v = (
                np.ascontiguousarray((h @ w[layer]).reshape(len(x), -1, HEAD_DIM))
                for w in (self._q, self._k, self._v)
            )
            if broken == "nan" and layer == 1:
                k[0, 0, 0] = np.nan
            out = attend(layer, q, k, v)
            x = x + out.reshape(len(x), -1) @ self._o[layer]
        return (np.tanh(x[-1]) @ self._head).astype(np.float32) if want_logits else None


def picture(number: int) -> FrameArray:
    """One of many scenes: four flat colours, new every five frames, with a little noise: uint8 [8, 8, 3]."""
    scene = np.random.default_rng(number // 5).integers(30, 225, (2, 2, 3))
    noise = np.random.default_rng(10_000 + number).integers(-20, 20, (8, 8, 3))
    return (np.kron(scene, np.ones((4, 4, 1), np.int64)) + noise).astype(np.uint8)
