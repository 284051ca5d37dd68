"""A decoder of random weights in the shapes of Qwen2.5-VL: linear layers in torch, attention elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gpu_peers import Device

Attend = Callable[[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray, int], None]


@dataclass(frozen=True)
class Shape:
    """Of a language model's decoder, and of the stream it is given."""

    name: str
    layers: int
    hidden: int
    q_heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    sections: tuple[int, int, int]
    frame_tokens: int = 196
    frames: int = 1800  # one hour at 0.5 a second
    question_tokens: int = 24
    video_window: int = 8
    retrieved_frames: int = 64

    @property
    def kv_bytes(self) -> int:
        """Bytes of one token's keys and values in fp16."""
        return 4 * self.layers * self.kv_heads * self.head_dim

    def core(self) -> dict[str, Any]:
        """The memory's view of it."""
        return {
            "layers": self.layers, "q_heads": self.q_heads, "kv_heads": self.kv_heads,
            "head_dim": self.head_dim, "rope": {"theta": 1e6, "sections": list(self.sections)},
            "embedding_dim": 64, "frame_tokens": self.frame_tokens, "video_window": self.video_window,
        }  # fmt: skip


SHAPES = (
    Shape("3B", 36, 2048, 16, 2, 128, 11008, 151936, (16, 24, 24)),
    Shape("7B", 28, 3584, 28, 4, 128, 18944, 152064, (16, 24, 24)),
)
TINY = (
    Shape("3B, tiny", 3, 48, 8, 1, 16, 64, 50, (2, 3, 3), 5, 14, 3, 3, 2),
    Shape("7B, tiny", 2, 56, 7, 1, 16, 64, 50, (2, 3, 3), 7, 14, 3, 3, 2),
)


class Decoder:
    """RMS norm, q, k, v, output and a gated feed-forward network in every layer; random weights."""

    def __init__(self, shape: Shape, device: Device) -> None:
        self.shape, self.device = shape, device
        torch = device.torch
        self.torch = torch
        self.dtype = torch.bfloat16 if device.is_cuda else torch.float32
        generator = torch.Generator(device=device.name).manual_seed(1)

        def weights(rows: int, columns: int) -> Any:
            made = torch.randn(rows, columns, device=device.name, dtype=self.dtype, generator=generator)
            return made / columns**0.5

        self.q_row, self.kv_row = shape.q_heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.layers = [
            (
                weights(self.q_row + 2 * self.kv_row, shape.hidden),
                weights(shape.hidden, self.q_row),
                weights(2 * shape.ffn, shape.hidden),
                weights(shape.hidden, shape.ffn),
            )
            for _ in range(shape.layers)
        ]
        self.head = weights(shape.vocab, shape.hidden)
        most = max(shape.frame_tokens, shape.question_tokens)
        # Where q, k, v and out cross: pinned, so that the copies run at the link's rate.
        rows = {"q": self.q_row, "k": self.kv_row, "v": self.kv_row, "out": self.q_row}
        self.staged = {
            name: torch.empty(most * row, dtype=torch.float32, pin_memory=device.is_cuda)
            for name, row in rows.items()
        }

    def _norm(self, x: Any) -> Any:
        return self.torch.nn.functional.rms_norm(x, (x.shape[-1],))

    def run(self, x: Any, attend: Attend, want_logits: bool) -> Any:
        """x [T, hidden] through every layer; the logits [vocab] of the last token, or None."""
        shape, torch, tokens = self.shape, self.torch, len(x)
        heads = {"q": shape.q_heads, "k": shape.kv_heads, "v": shape.kv_heads, "out": shape.q_heads}
        staged = {
            name: self.staged[name][: tokens * count * shape.head_dim].view(tokens, count, shape.head_dim)
            for name, count in heads.items()
        }
        host = {name: buffer.numpy() for name, buffer in staged.items()}
        for layer, (qkv, output, gate_up, down) in enumerate(self.layers):
            parts = (self._norm(x) @ qkv.T).float().split((self.q_row, self.kv_row, self.kv_row), dim=1)
            for name, part in zip("qkv", parts, strict=True):
                staged[name].copy_(part.view(staged[name].shape), non_blocking=True)
            self.device.wait()
            attend(layer, host["q"], host["k"], host["v"], host["out"], tokens)
            out = staged["out"].to(self.device.name, non_blocking=True).view(tokens, -1)
            x = x + out.to(self.dtype) @ output.T
            gate, up = (self._norm(x) @ gate_up.T).chunk(2, dim=1)
            x = x + (torch.nn.functional.silu(gate) * up) @ down.T
        logits = self._norm(x[-1:]) @ self.head.T if want_logits else None
        self.device.wait()
        return logits
