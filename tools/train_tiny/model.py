"""The forward pass for training: the weights and the arithmetic of transformers' LLaVA, with the attention
rule of the
runtime written as blocks, so a clip of T video tokens never costs T x T.

Video token: sees its own frame causally and the VIDEO_WINDOW - 1 frames before it. Question token: sees all
video
tokens that are kept, at the positions given, and its own question causally; questions of one clip are
parallel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from layout import IMAGE_SIZE, MEAN, PATCH, STD, TOKENS_PER_FRAME, VIDEO_WINDOW
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

GRID = IMAGE_SIZE // PATCH
MAX_POSITION = 1 << 17


class FakeInt4(torch.autograd.Function):
    """Round a weight [out, in] to int4 in blocks of 32 along `in` as MatMulNBits stores it; gradients pass
    through.
    """

    @staticmethod
    def forward(ctx: object, weight: Tensor) -> Tensor:
        blocks = weight.reshape(-1, 32)
        peak = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
        scale = torch.where(peak == 0, torch.ones_like(peak), peak / -8)
        return (torch.floor(blocks / scale + 0.5).clamp(-8, 7) * scale).view_as(weight)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


@dataclass
class Cache:
    """Video keys before rotation and values of every layer, each [B, H_kv, T, D]."""

    keys: list[Tensor]
    values: list[Tensor]

    def merged(self, group: Tensor) -> Cache:
        """Token i joins the mean that stands at token group[b, i]; what nobody joins is left as zeros."""
        count = torch.zeros(group.shape).scatter_add_(1, group, torch.ones(group.shape)).clamp_min_(1)

        def mean(x: Tensor) -> Tensor:
            index = group[:, None, :, None].expand_as(x)
            return torch.zeros_like(x).scatter_add(2, index, x) / count[:, None, :, None]

        return Cache([mean(k) for k in self.keys], [mean(v) for v in self.values])

    def noisy(self, share: float) -> Cache:
        """Grain as a low-bit codec leaves it: `share` of each channel's spread."""

        def grain(x: Tensor) -> Tensor:
            return x + share * x.detach().std(2, keepdim=True) * torch.randn_like(x)

        return Cache([grain(k) for k in self.keys], [grain(v) for v in self.values])


class TinyVlm(nn.Module):
    """`hf` holds the weights; `int4` rounds the decoder's linear weights as the export will."""

    def __init__(self, hf: LlavaForConditionalGeneration, int4: bool = False) -> None:
        super().__init__()
        self.hf = hf
        self.int4 = int4
        text = hf.config.text_config
        self.heads, self.kv_heads = text.num_attention_heads, text.num_key_value_heads
        self.head_dim = text.hidden_size // self.heads
        half = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
        self.register_buffer("inv_freq", 1.0 / text.rope_parameters["rope_theta"] ** half, persistent=False)

    # vision
    # -----------------------------------------------------------------------------------------------------

    def vision(self, frames: Tensor) -> Tensor:
        """uint8 or float 0..255 [F, 48, 48, 3] -> tower tokens [F, 16, H_vision]."""
        tower = self.hf.model.vision_tower
        x = (frames.float() / 255 - MEAN) / STD
        n = x.shape[0]
        x = x.view(n, GRID, PATCH, GRID, PATCH, 3).permute(0, 1, 3, 5, 2, 4).reshape(n, TOKENS_PER_FRAME, -1)
        patch = tower.embeddings.patch_embedding
        x = F.linear(x, patch.weight.flatten(1), patch.bias) + tower.embeddings.position_embedding.weight
        heads = tower.config.num_attention_heads
        for layer in tower.encoder.layers:
            h = layer.layer_norm1(x)
            a = layer.self_attn
            qkv = [
                p(h).view(n, TOKENS_PER_FRAME, heads, -1).transpose(1, 2)
                for p in (a.q_proj, a.k_proj, a.v_proj)
            ]
            h = F.scaled_dot_product_attention(*qkv).transpose(1, 2).reshape(x.shape)
            x = x + a.out_proj(h)
            h = layer.layer_norm2(x)
            x = x + layer.mlp.fc2(F.gelu(layer.mlp.fc1(h), approximate="tanh"))
        return x

    def project(self, tokens: Tensor) -> Tensor:
        """Tower tokens -> decoder embeddings."""
        p = self.hf.model.multi_modal_projector
        return p.linear_2(F.gelu(p.linear_1(tokens)))

    # decoder
    # ----------------------------------------------------------------------------------------------------

    @contextmanager
    def rounded(self) -> Iterator[None]:
        """Inside, each decoder weight is rounded once and used for video and questions alike."""
        self._weights: dict[int, Tensor] = {}
        yield
        self._weights = {}

    def _linear(self, module: nn.Linear, x: Tensor) -> Tensor:
        if not self.int4:
            return F.linear(x, module.weight, module.bias)
        key = id(module)
        if key not in self._weights:
            self._weights[key] = FakeInt4.apply(module.weight)
        return F.linear(x, self._weights[key], module.bias)

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """X [..., T, D] rotated at integer `positions` broadcastable to [..., T]."""
        angle = positions.unsqueeze(-1).float() * self.inv_freq
        cos, sin = angle.cos(), angle.sin()
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def _qkv(self, layer: nn.Module, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a = layer.self_attn
        q, k, v = (self._linear(p, h) for p in (a.q_proj, a.k_proj, a.v_proj))
        return (t.unflatten(-1, (-1, self.head_dim)) for t in (q, k, v))  # type: ignore[return-value]

    def _rest(self, layer: nn.Module, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self._linear(layer.self_attn.o_proj, attended)
        h = _rms(layer.post_attention_layernorm, x)
        m = layer.mlp
        return x + self._linear(
            m.down_proj, F.silu(self._linear(m.gate_proj, h)) * self._linear(m.up_proj, h)
        )

    def video(self, embeds: Tensor) -> Cache:
        """Decoder embeddings [B, N, 16, H] of N frames -> their KV in every layer."""
        b, n, p, _ = embeds.shape
        g = self.heads // self.kv_heads
        x, cache = embeds, Cache([], [])
        position = torch.arange(n * p).view(n, p)
        mask = _window_mask(n, p)
        layers = self.hf.model.language_model.layers
        for i, layer in enumerate(layers):
            q, k, v = self._qkv(layer, _rms(layer.input_layernorm, x))  # [B, N, P, heads, D]
            q, k, v = (t.permute(0, 3, 1, 2, 4) for t in (q, k, v))  # [B, heads, N, P, D]
            cache.keys.append(k.reshape(b, self.kv_heads, n * p, -1))
            cache.values.append(v.reshape(b, self.kv_heads, n * p, -1))
            if i + 1 == len(layers):
                break  # nobody reads the video stream after the last layer's KV
            q, k = self.rotate(q, position), self.rotate(k, position)
            q = (
                q.reshape(b, self.kv_heads, g, n, p, -1)
                .transpose(2, 3)
                .reshape(b, self.kv_heads, n, g * p, -1)
            )
            k, v = _windows(k), _windows(v)  # [B, H_kv, N, W*P, D]
            score = q @ k.transpose(-1, -2) * self.head_dim**-0.5
            score = score.view(b, self.kv_heads, n, g, p, -1) + mask[:, None]
            out = score.softmax(-1).view(b, self.kv_heads, n, g * p, -1) @ v
            out = out.view(b, self.kv_heads, n, g, p, -1).permute(0, 2, 4, 1, 3, 5).reshape(x.shape)
            x = self._rest(layer, x, out)
        return cache

    def ask(
        self, cache: Cache, words: Tensor, positions: Tensor, start: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """Questions against a cache.

        words [B, Q, L]; positions [B, T] of the video tokens; start [B], the position of every question's
        first word;
        bias [B, T] added to the logits (-inf drops a token, log n weighs a mean). Returns logits [B, Q, L,
        vocab].
        """
        b, nq, length = words.shape
        g = self.heads // self.kv_heads
        text = self.hf.model.language_model
        x = F.embedding(words, text.embed_tokens.weight)
        at = start[:, None] + torch.arange(length)
        own_mask = torch.full((length, length), float("-inf")).triu(1)
        for layer, video_k, video_v in zip(text.layers, cache.keys, cache.values, strict=True):
            q, k, v = self._qkv(layer, _rms(layer.input_layernorm, x))  # [B, Q, L, heads, D]
            q, k, v = (t.permute(0, 3, 1, 2, 4) for t in (q, k, v))  # [B, heads, Q, L, D]
            q = self.rotate(q, at[:, None, None]) * self.head_dim**-0.5
            k = self.rotate(k, at[:, None, None])
            q = q.reshape(b, self.kv_heads, g, nq, length, -1)
            far = self.rotate(video_k, positions[:, None])
            to_video = q.reshape(b, self.kv_heads, g * nq * length, -1) @ far.transpose(-1, -2)
            if bias is not None:
                to_video = to_video + bias[:, None, None]
            to_own = q @ k[:, :, None].transpose(-1, -2) + own_mask
            joint = torch.cat((to_video.view(*to_own.shape[:-1], -1), to_own), -1).softmax(-1)
            video_p, own_p = joint.split((far.shape[2], length), -1)
            out = (video_p.reshape(b, self.kv_heads, g * nq * length, -1) @ video_v).view(
                *to_own.shape[:-1], -1
            )
            out = out + own_p @ v[:, :, None]
            out = out.permute(0, 3, 4, 1, 2, 5).reshape(x.shape)
            x = self._rest(layer, x, out)
        return self._linear(self.hf.lm_head, _rms(text.norm, x))


def _rms(norm: nn.Module, x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), norm.weight, norm.variance_epsilon)


def _windows(x: Tensor) -> Tensor:
    """[B, H, N, P, D] -> [B, H, N, W*P, D]: for each frame the W frames that end with it (zeros before the
    first).
    """
    n = x.shape[2]
    padded = F.pad(x, (0, 0, 0, 0, VIDEO_WINDOW - 1, 0))
    return torch.cat([padded[:, :, i : i + n] for i in range(VIDEO_WINDOW)], 3)


def _window_mask(frames: int, tokens: int) -> Tensor:
    """[N, P, W*P]: 0 where a token may look, -inf elsewhere."""
    slot = torch.arange(VIDEO_WINDOW * tokens)
    exists = slot // tokens + torch.arange(frames)[:, None, None] >= VIDEO_WINDOW - 1
    causal = slot <= (VIDEO_WINDOW - 1) * tokens + torch.arange(tokens)[:, None]
    return torch.zeros(frames, tokens, len(slot)).masked_fill(~(exists & causal), float("-inf"))
