"""Decoders of llama and Qwen2-VL as plain torch, exported by torch's own TorchScript exporter: their
attention is single operators, as in decoders that were traced out of transformers."""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass

import onnx
import torch
from torch import nn

from fixtures_models import HIDDEN

VOCAB = 40


@dataclass(frozen=True)
class Scripted:
    """What an export differs in."""

    layers: int = 2
    q_heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    theta: float = 1e4
    sections: tuple[int, int, int] = (0, 0, 0)
    """M-RoPE: positions are [3, B, T]."""
    fused: bool = False
    """scaled_dot_product_attention, which the exporter takes apart; else every operator by itself."""
    norm: bool = False
    """An RMS norm of each head before the rotation (Qwen3)."""
    scale: float = 0.0
    window: int = 0
    """Tokens that a token sees; 0: all before it."""
    leaks: bool = False
    """A token attends to the two behind it in the same block."""
    gain: float = 1.0
    """A factor on the rotary tables, as YaRN has it."""
    apart: bool = False
    """Layers behind the first turn the other way round."""
    halved: bool = False
    """Values are halved behind the cache: no attention that a memory could stand in for."""


class _Attention(nn.Module):
    def __init__(self, how: Scripted) -> None:
        super().__init__()
        self.how = how
        q, kv = how.q_heads * how.head_dim, how.kv_heads * how.head_dim
        self.q, self.k, self.v = nn.Linear(HIDDEN, q), nn.Linear(HIDDEN, kv), nn.Linear(HIDDEN, kv)
        self.o = nn.Linear(q, HIDDEN, bias=False)
        self.q_norm = nn.Parameter(torch.rand(how.head_dim) + 0.5)

    def forward(self, x, cos, sin, mask, past_key, past_value):  # type: ignore[no-untyped-def]
        how = self.how
        batch, tokens, _ = x.shape
        q = self.q(x).view(batch, tokens, how.q_heads, how.head_dim)
        k = self.k(x).view(batch, tokens, how.kv_heads, how.head_dim)
        v = self.v(x).view(batch, tokens, how.kv_heads, how.head_dim).transpose(1, 2)
        if how.norm:
            q, k = self._normed(q), self._normed(k)
        q, k = q.transpose(1, 2), k.transpose(1, 2)
        q = q * cos + _exchanged(q) * sin
        k = k * cos + _exchanged(k) * sin
        key, value = torch.cat([past_key, k], dim=2), torch.cat([past_value, v], dim=2)
        keys, values = (_repeated(t, how.q_heads // how.kv_heads) for t in (key, value))
        if how.halved:
            values = values * 0.5
        if how.fused:
            out = nn.functional.scaled_dot_product_attention(
                q, keys, values, attn_mask=mask, scale=how.scale or None
            )
        else:
            scores = q @ keys.transpose(2, 3)
            scores = scores * how.scale if how.scale else scores / math.sqrt(how.head_dim)
            out = torch.softmax(scores + mask, dim=-1, dtype=torch.float32).to(q.dtype) @ values
        return self.o(out.transpose(1, 2).reshape(batch, tokens, -1)), key, value

    def _normed(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.q_norm


def _exchanged(x: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def _repeated(x: torch.Tensor, times: int) -> torch.Tensor:
    batch, heads, tokens, width = x.shape
    return (
        x[:, :, None].expand(batch, heads, times, tokens, width).reshape(batch, heads * times, tokens, width)
    )


class _Decoder(nn.Module):
    def __init__(self, how: Scripted) -> None:
        super().__init__()
        self.how = how
        self.attentions = nn.ModuleList(_Attention(how) for _ in range(how.layers))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, 48), nn.SiLU(), nn.Linear(48, HIDDEN))
            for _ in range(how.layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(HIDDEN) for _ in range(how.layers))
        self.head = nn.Linear(HIDDEN, VOCAB, bias=False)
        steps = torch.arange(0, how.head_dim, 2, dtype=torch.float32) / how.head_dim
        self.register_buffer("frequencies", how.theta**-steps)

    def forward(self, embeds, attention_mask, position_ids, *past):  # type: ignore[no-untyped-def]
        how = self.how
        total, now = attention_mask.shape[1], embeds.shape[1]
        cos, sin = self._tables(position_ids)
        at = torch.arange(total, device=embeds.device)
        rows = at[total - now :, None]
        hidden = at[None] > (rows + 2 if how.leaks else rows)
        if how.window:
            hidden = hidden | (at[None] <= rows - how.window)
        hidden = hidden[None, None] | (attention_mask[:, None, None] == 0)
        mask = torch.zeros_like(hidden, dtype=embeds.dtype).masked_fill(hidden, torch.finfo(embeds.dtype).min)
        x, made = embeds, []
        for i, (attend, mlp, norm) in enumerate(zip(self.attentions, self.mlps, self.norms, strict=True)):
            turn = -sin if how.apart and i else sin
            out, key, value = attend(norm(x), cos, turn, mask, past[2 * i], past[2 * i + 1])
            x = x + out
            x = x + mlp(x)
            made += [key, value]
        return self.head(x), *made

    def _tables(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = positions[..., None].float() * self.frequencies
        both = torch.cat((angles, angles), dim=-1)
        cos, sin = both.cos() * self.how.gain, both.sin() * self.how.gain
        if self.how.sections != (0, 0, 0):
            cuts = [*self.how.sections] * 2
            cos, sin = (
                torch.cat([part[i % 3] for i, part in enumerate(table.split(cuts, dim=-1))], dim=-1)
                for table in (cos, sin)
            )
        return cos[:, None], sin[:, None]


def export(how: Scripted) -> onnx.ModelProto:
    """inputs_embeds, attention_mask, position_ids, past_key_values.N.* -> logits, present.N.*"""
    torch.manual_seed(4)
    model = _Decoder(how).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 1.2 / parameter.shape[1] ** 0.5)
    positions = torch.arange(2, 5)[None]
    if how.sections != (0, 0, 0):
        positions = positions.expand(3, 1, 3).contiguous()
    past = [torch.randn(1, how.kv_heads, 2, how.head_dim) for _ in range(2 * how.layers)]
    ends = [f"{layer}.{part}" for layer in range(how.layers) for part in ("key", "value")]
    time = {"inputs_embeds": {0: "batch", 1: "now"}, "attention_mask": {0: "batch", 1: "total"}}
    time["position_ids"] = {positions.ndim - 2: "batch", positions.ndim - 1: "now"}
    time |= {f"past_key_values.{end}": {0: "batch", 2: "before"} for end in ends}
    time |= {f"present.{end}": {0: "batch", 2: "total"} for end in ends} | {"logits": {0: "batch", 1: "now"}}
    inputs = ["inputs_embeds", "attention_mask", "position_ids", *(f"past_key_values.{end}" for end in ends)]
    out = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.randn(1, 3, HIDDEN), torch.ones(1, 5, dtype=torch.int64), positions, *past),
            out,
            input_names=inputs,
            output_names=["logits", *(f"present.{end}" for end in ends)],
            dynamic_axes=time,
            opset_version=17,
            dynamo=False,
        )
    return onnx.load_from_string(out.getvalue())
