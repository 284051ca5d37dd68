"""A llama or qwen2 decoder whose attention is done by someone else: one forward pass a block, in plain torch.

The linear layers of the blocks are float32 or bfloat16. Residual, norms, biases (Qwen2's of keys are so large
that bfloat16 would round the rest away), the head and what `attend` gets and gives are float32.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import linear, silu

from .gguf_file import digest

Floats = NDArray[np.float32]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


Attend: TypeAlias = Callable[[int, Floats, Floats, Floats], Floats]
"""attend(layer, q [T, H_q, D], k [T, H_kv, D], v [T, H_kv, D]) -> [T, H_q, D], before rotation."""


@dataclass(frozen=True)
class Shape:
    """What the configuration of a model says."""

    name: str
    layers: int
    q_heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    theta: float
    epsilon: float
    positions: int
    """max_position_embeddings."""
    eos: tuple[int, ...]


@dataclass(frozen=True)
class _Layer:
    norm: torch.Tensor
    qkv: torch.Tensor  # [(H_q + 2 H_kv) D, hidden]
    qkv_bias: torch.Tensor | None
    out: torch.Tensor  # [hidden, H_q D]
    mlp_norm: torch.Tensor
    gate_up: torch.Tensor  # [2 intermediate, hidden]
    down: torch.Tensor  # [hidden, intermediate]


def prepare_process() -> None:
    """One thread, and denormals are zero: dequantised weights have many, each costs a hundred cycles."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # of the processor's state, not of torch's: for a process of its own


def shape_of(folder: Path) -> Shape:
    """Read config.json; ValueError for a model that this decoder does not compute."""
    c = json.loads((folder / "config.json").read_text())
    rope = c.get("rope_parameters") or c.get("rope_scaling") or {}
    refused = {
        "model_type": (c.get("model_type"), ("llama", "qwen2")),
        "hidden_act": (c.get("hidden_act"), ("silu",)),
        "rope_type": (rope.get("rope_type", rope.get("type", "default")), ("default",)),
        "use_sliding_window": (bool(c.get("use_sliding_window")), (False,)),
        "mlp_bias": (bool(c.get("mlp_bias")), (False,)),
        "attention_bias": (bool(c.get("attention_bias")), (False,)),
    }
    for name, (value, known) in refused.items():
        if value not in known:
            raise ValueError(f"{folder}: {name}={value!r}; expected {' or '.join(map(str, known))}")
    heads, eos = c["num_attention_heads"], c.get("eos_token_id")
    return Shape(
        name=folder.name,
        layers=c["num_hidden_layers"],
        q_heads=heads,
        kv_heads=c.get("num_key_value_heads") or heads,
        head_dim=c.get("head_dim") or c["hidden_size"] // heads,
        hidden=c["hidden_size"],
        vocab=c["vocab_size"],
        theta=float(c.get("rope_theta") or rope["rope_theta"]),
        epsilon=c["rms_norm_eps"],
        positions=c["max_position_embeddings"],
        eos=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
    )


class Decoder:
    """A decoder read from a transformers directory, with its tokenizer."""

    def __init__(self, folder: Path, dtype: str = "fp32", name: str = "") -> None:
        from safetensors.torch import load_file
        from transformers import PreTrainedTokenizerFast

        self.shape = s = shape_of(folder)
        self.name = name or s.name
        self.dtype = dtype
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise FileNotFoundError(f"{folder}: no *.safetensors")
        self.digest = digest(folder / "config.json", *files)
        self.tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(str(folder))  # as tokenizer.json has it
        weights: dict[str, torch.Tensor] = {}
        for file in files:
            weights |= load_file(file)
        kind = DTYPES[dtype]
        self._embedding = weights["model.embed_tokens.weight"].float()
        head = weights.get("lm_head.weight")
        self._head = self._embedding if head is None else head.float()
        self._norm = weights["model.norm.weight"].float()
        self._layers = [_layer(weights, f"model.layers.{i}.", kind) for i in range(s.layers)]
        self._split = [s.q_heads * s.head_dim, s.kv_heads * s.head_dim, s.kv_heads * s.head_dim]

    def ids(self, text: str) -> list[int]:
        """Token ids of text, none added."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def embed(self, ids: Sequence[int]) -> Floats:
        """[T, hidden] of token ids."""
        return np.asarray(self._embedding[list(ids)].numpy())

    def forward(self, embeds: Floats, attend: Attend, rows: Sequence[int] = ()) -> Floats | None:
        """Run a block [T, hidden]; logits [len(rows), vocab] of these rows, or None."""
        with torch.inference_mode():
            return self._forward(embeds, attend, rows)

    def _forward(self, embeds: Floats, attend: Attend, rows: Sequence[int]) -> Floats | None:
        x = torch.from_numpy(embeds)
        for index, layer in enumerate(self._layers):
            qkv = self._linear(self._normed(x, layer.norm), layer.qkv)
            if layer.qkv_bias is not None:
                qkv = qkv + layer.qkv_bias
            q, k, v = (part.contiguous().numpy() for part in qkv.split(self._split, -1))
            at = attend(index, *(a.reshape(len(a), -1, self.shape.head_dim) for a in (q, k, v)))
            x = x + self._linear(torch.from_numpy(at).reshape(len(x), -1), layer.out)
            gate, up = self._linear(self._normed(x, layer.mlp_norm), layer.gate_up).chunk(2, -1)
            x = x + self._linear(silu(gate) * up, layer.down)
        if not rows:
            return None
        return np.asarray(self._linear(self._normed(x[list(rows)], self._norm), self._head).numpy())

    def _normed(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.shape.epsilon) * weight

    @staticmethod
    def _linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return linear(x.to(weight.dtype), weight).float()


def _layer(weights: dict[str, torch.Tensor], at: str, kind: torch.dtype) -> _Layer:
    """The tensors of one layer; what is multiplied by the same input is joined."""
    heads = [f"{at}self_attn.{x}_proj" for x in "qkv"]
    biased = f"{heads[0]}.bias" in weights
    return _Layer(
        weights[f"{at}input_layernorm.weight"].float(),
        torch.cat([weights[f"{name}.weight"] for name in heads]).to(kind),
        torch.cat([weights[f"{name}.bias"] for name in heads]).float() if biased else None,
        weights[f"{at}self_attn.o_proj.weight"].to(kind),
        weights[f"{at}post_attention_layernorm.weight"].float(),
        torch.cat([weights[f"{at}mlp.{x}_proj.weight"] for x in ("gate", "up")]).to(kind),
        weights[f"{at}mlp.down_proj.weight"].to(kind),
    )
