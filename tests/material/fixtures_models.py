"""Small decoders for the tests of the graph cut: built by onnxruntime-genai's model builder, or by hand node
by node.

All have random weights large enough that attention picks and logits differ, so that a wrong rotation or a
lost key shows.
"""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import sys
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HIDDEN, VOCAB = 64, 96
WORDS = ["<pad>", "<eos>", "<image>", "<unk>", "what", "colour", "was", "the", "ball", "?", "red", "green"]


def write_tokenizer(folder: Path) -> None:
    """A word-level tokenizer.json and tokenizer_config.json, as mosaic-tiny has."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.add_special_tokens(WORDS[:4])
    PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)


def build_with_genai(
    kind: str, folder: Path, precision: str = "fp32", theta: float = 1e6, *options: str
) -> Path:
    """Export a random `qwen2`, `qwen3` or `qwen2.5-vl` decoder; returns the directory with model.onnx."""
    import torch
    import transformers

    # The builder takes the first linear layer with vocab_size outputs for the lm_head: no other may
    # have as many.
    common = dict(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=128, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        tie_word_embeddings=False, initializer_range=0.15, bos_token_id=1, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    rope: dict[str, object] = {"rope_type": "default", "rope_theta": theta}
    torch.manual_seed(7)
    if kind == "qwen2":
        model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**common, rope_parameters=rope))
    elif kind == "qwen3":
        config = transformers.Qwen3Config(**common, head_dim=32, rope_parameters=rope)
        model = transformers.Qwen3ForCausalLM(config)
        for layer in model.model.layers:
            layer.self_attn.q_norm.weight.data.uniform_(0.5, 2.0)
            layer.self_attn.k_norm.weight.data.uniform_(0.5, 2.0)
    else:
        text = common | {"rope_parameters": rope | {"mrope_section": [2, 3, 3]}}
        vision = dict(depth=1, hidden_size=40, num_heads=2, out_hidden_size=HIDDEN, intermediate_size=32)
        model = transformers.Qwen2_5_VLForConditionalGeneration(
            transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
        )
    source = folder / "source"
    model.save_pretrained(source)
    write_tokenizer(source)
    built = folder / "built"
    arguments = ["builder", "-m", "local", "-i", str(source), "-o", str(built), "-p", precision, "-e", "cpu"]
    arguments += [
        "-c",
        str(folder / "cache"),
        "--extra_options",
        "exclude_embeds=true",
        "hf_token=false",
        *options,
    ]
    quiet = contextlib.redirect_stdout(io.StringIO())
    with (
        mock.patch.object(sys, "argv", arguments),
        quiet,
    ):  # in this process: importing torch is most of the time
        runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
    return built


@dataclass
class Handmade:
    """A decoder made node by node. `form`: gqa (rotary before it or inside), gqa-packed, rows or heads (ONNX
    Attention), mha (MultiHeadAttention), projecting (com.microsoft Attention). `mask`: the graph makes its
    own.
    """

    form: str = "gqa"
    rotary: str = "inside"
    """inside (do_rotary), microsoft, onnx, none."""
    layers: int = 2
    q_heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    rotary_dim: int = 16
    theta: float = 1e4
    interleaved: int = 0
    half: bool = False
    mask: bool = False
    window: int = 0
    """Tokens that the mask lets a token see; 0: all before it."""
    bias: bool = False
    extra_attributes: dict[str, object] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(11)
        self.type = TensorProto.FLOAT16 if self.half else TensorProto.FLOAT

    def constant(self, name: str, value: np.ndarray) -> str:
        if value.dtype.kind == "f":
            value = value.astype(np.float16 if self.half else np.float32)
        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def node(self, op: str, inputs: list[str], output: str, domain: str = "", **at: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"/{output}", domain=domain, **at))
        return output

    def matmul(self, x: str, rows: int, columns: int, output: str) -> str:
        weight = self.rng.standard_normal((rows, columns)) * 1.2 / np.sqrt(rows)
        return self.node("MatMul", [x, self.constant(f"{output}.weight", weight)], output)

    def norm(self, x: str, output: str) -> str:
        weight = self.constant(f"{output}.weight", self.rng.uniform(0.5, 1.5, HIDDEN))
        return self.node("SimplifiedLayerNormalization", [x, weight], output, epsilon=1e-6)

    def build(self) -> onnx.ModelProto:
        """inputs_embeds, position_ids, attention_mask, past_key_values.N.* -> logits, present.N.*"""
        positions = np.arange(128)[:, None] * self.theta ** (
            -np.arange(0, self.rotary_dim, 2) / self.rotary_dim
        )
        self.constant("cos_cache", np.cos(positions))
        self.constant("sin_cache", np.sin(positions))
        self.constant("one", np.array([1], np.int64))
        self.constant("axis1", np.array(1, np.int64))
        self.node("ReduceSum", ["attention_mask", "one"], "lengths", keepdims=0)
        self.node("Sub", ["lengths", "one"], "seqlens")
        self.node("Cast", ["seqlens"], "seqlens_k", to=TensorProto.INT32)
        self.node("Shape", ["attention_mask"], "mask_shape")
        self.node("Gather", ["mask_shape", "axis1"], "total")
        self.node("Cast", ["total"], "total_length", to=TensorProto.INT32)
        if self.mask:
            self._causal_mask()
        x = "inputs_embeds"
        for i in range(self.layers):
            x = self._layer(i, x)
        self.matmul(self.norm(x, "final"), HIDDEN, VOCAB, "logits")
        kv_shape = ["batch", self.kv_heads, "past", self.head_dim]
        value = helper.make_tensor_value_info
        inputs = [value("inputs_embeds", self.type, ["batch", "sequence", HIDDEN])]
        inputs += [value(n, TensorProto.INT64, ["batch", n]) for n in ("position_ids", "attention_mask")]
        outputs = [value("logits", self.type, ["batch", "sequence", VOCAB])]
        for i in range(self.layers):
            if self.form == "projecting":
                both = [2, "batch", self.kv_heads]
                inputs.append(value(f"past_{i}", self.type, [*both, "past", self.head_dim]))
                outputs.append(value(f"present_{i}", self.type, [*both, "total", self.head_dim]))
                continue
            for kv in ("key", "value"):
                inputs.append(value(f"past_key_values.{i}.{kv}", self.type, kv_shape))
                outputs.append(value(f"present.{i}.{kv}", self.type, [*kv_shape[:2], "total", self.head_dim]))
        graph = helper.make_graph(self.nodes, "handmade", inputs, outputs, self.initializers)
        opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=11)

    def _layer(self, i: int, x: str) -> str:
        q, kv = self.q_heads * self.head_dim, self.kv_heads * self.head_dim
        h = self.norm(x, f"norm.{i}")
        if self.form == "projecting":
            weight = self.rng.standard_normal((HIDDEN, 3 * q)) * 1.2 / np.sqrt(HIDDEN)
            bias = self.constant(f"bias.{i}", self.rng.standard_normal(3 * q))
            return self._after(i, x, self._attention(i, [h, self.constant(f"qkv.{i}", weight), bias]))
        ends = [
            self.matmul(h, HIDDEN, width, f"{name}.{i}") for name, width in (("q", q), ("k", kv), ("v", kv))
        ]
        if self.form == "heads":
            for e, heads in enumerate((self.q_heads, self.kv_heads, self.kv_heads)):
                shape = self.constant(f"{ends[e]}.shape", np.array([0, 0, heads, self.head_dim], np.int64))
                rows = self.node("Reshape", [ends[e], shape], f"{ends[e]}.heads")
                ends[e] = self.node("Transpose", [rows], f"{ends[e]}.first", perm=[0, 2, 1, 3])
        if self.rotary in ("microsoft", "onnx"):
            for e, heads in ((0, self.q_heads), (1, self.kv_heads)):
                ends[e] = self._rotate(ends[e], heads)
        if self.form == "gqa-packed":
            ends = [self.node("Concat", ends, f"qkv.{i}", axis=-1), "", ""]
        out = self._attention(i, ends)
        if self.form == "heads":
            shape = self.constant(f"{out}.shape", np.array([0, 0, q], np.int64))
            out = self.node(
                "Reshape",
                [self.node("Transpose", [out], f"{out}.back", perm=[0, 2, 1, 3]), shape],
                f"{out}.rows",
            )
        return self._after(i, x, out)

    def _after(self, i: int, x: str, out: str) -> str:
        q = self.q_heads * self.head_dim
        x = self.node("Add", [x, self.matmul(out, q, HIDDEN, f"o.{i}")], f"after_attention.{i}")
        up = self.matmul(self.norm(x, f"mlp_norm.{i}"), HIDDEN, 96, f"up.{i}")
        up = self.node("Mul", [up, self.node("Sigmoid", [up], f"sigmoid.{i}")], f"silu.{i}")
        return self.node("Add", [x, self.matmul(up, 96, HIDDEN, f"down.{i}")], f"after_mlp.{i}")

    def _causal_mask(self) -> None:
        """mask [1, 1, T, total]: 0 or -1e9, from position_ids and the length of attention_mask."""
        for name, value in (("zero", 0), ("step", 1)):
            self.constant(name, np.array(value, np.int64))
        self.node("Range", ["zero", "total", "step"], "columns")
        self.constant("second", np.array([2], np.int64))
        self.node("Unsqueeze", ["position_ids", "second"], "rows_at")
        self.node("Greater", ["columns", "rows_at"], "future")
        hidden = "future"
        if self.window:
            self.constant("window", np.array(self.window, np.int64))
            self.node("Sub", ["rows_at", "columns"], "age")
            self.node("GreaterOrEqual", ["age", "window"], "old")
            hidden = self.node("Or", ["future", "old"], "hidden")
        self.constant("first_axis", np.array([1], np.int64))
        self.node("Unsqueeze", [hidden, "first_axis"], "future_4d")
        self.constant("far", np.array(-1e9 if not self.half else -6e4))
        self.constant("near", np.array(0.0))
        self.node("Where", ["future_4d", "far", "near"], "mask")

    def _rotate(self, x: str, heads: int) -> str:
        at = dict(interleaved=self.interleaved)
        if self.rotary_dim != self.head_dim or self.rotary == "onnx":
            at |= dict(num_heads=heads)
        if self.rotary_dim != self.head_dim:
            at |= dict(rotary_embedding_dim=self.rotary_dim)
        if self.rotary == "microsoft":
            return self.node(
                "RotaryEmbedding",
                [x, "position_ids", "cos_cache", "sin_cache"],
                f"{x}.rotated",
                "com.microsoft",
                **at,
            )
        return self.node(
            "RotaryEmbedding", [x, "cos_cache", "sin_cache", "position_ids"], f"{x}.rotated", **at
        )

    def _attention(self, i: int, ends: list[str]) -> str:
        past = [f"past_key_values.{i}.key", f"past_key_values.{i}.value"]
        outputs = [f"attention.{i}", f"present.{i}.key", f"present.{i}.value"]
        at: dict[str, object] = dict(kv_num_heads=self.kv_heads)
        if self.form.startswith("gqa"):
            at |= dict(
                num_heads=self.q_heads,
                do_rotary=int(self.rotary == "inside"),
                rotary_interleaved=self.interleaved,
            )
            caches = ["cos_cache", "sin_cache"] if self.rotary == "inside" else ["", ""]
            inputs, op, domain = (
                [*ends, *past, "seqlens_k", "total_length", *caches],
                "GroupQueryAttention",
                "com.microsoft",
            )
        elif self.form in ("mha", "projecting"):
            mask, at = "mask" if self.mask else "", dict(num_heads=self.q_heads)
            if not self.mask:
                at["unidirectional"] = 1
            if self.form == "mha":
                width = 3 * self.q_heads * self.head_dim
                bias = self.constant(f"bias.{i}", self.rng.standard_normal(width)) if self.bias else ""
                inputs, op, domain = [*ends, bias, "", mask, *past], "MultiHeadAttention", "com.microsoft"
            else:
                inputs, op, domain = [*ends, "", f"past_{i}", mask], "Attention", "com.microsoft"
                outputs = [outputs[0], f"present_{i}"]
        elif self.mask:
            at = at | dict(q_num_heads=self.q_heads) if self.form == "rows" else {}
            inputs, op, domain = [*ends, "mask", *past], "Attention", ""
        else:
            at = dict(is_causal=1) | (at | dict(q_num_heads=self.q_heads) if self.form == "rows" else {})
            inputs, op, domain = [*ends, "", *past], "Attention", ""
        at |= self.extra_attributes
        self.nodes.append(helper.make_node(op, inputs, outputs, name=f"/{outputs[0]}", domain=domain, **at))
        return outputs[0]


def write_vision(path: Path, tokens: int = 4, size: int = 8, embedding: int = 12) -> None:
    """A vision encoder: pixel_values [B, 3, size, size] -> image_features [B, tokens, HIDDEN] (and
    frame_embedding).
    """
    rng = np.random.default_rng(5)
    weights = [
        numpy_helper.from_array(
            rng.standard_normal((3 * size * size // tokens, HIDDEN)).astype(np.float32) * 0.1, "w"
        ),
        numpy_helper.from_array(np.array([0, tokens, -1], np.int64), "shape"),
    ]
    nodes = [
        helper.make_node("Reshape", ["pixel_values", "shape"], ["patches"]),
        helper.make_node("MatMul", ["patches", "w"], ["image_features"]),
    ]
    value = helper.make_tensor_value_info
    outputs = [value("image_features", TensorProto.FLOAT, ["batch", tokens, HIDDEN])]
    if embedding:
        weights.append(
            numpy_helper.from_array(rng.standard_normal((HIDDEN, embedding)).astype(np.float32), "e")
        )
        weights.append(numpy_helper.from_array(np.array([1], np.int64), "axis"))
        nodes.append(helper.make_node("ReduceMean", ["image_features", "axis"], ["mean"], keepdims=0))
        nodes.append(helper.make_node("MatMul", ["mean", "e"], ["frame_embedding"]))
        outputs.append(value("frame_embedding", TensorProto.FLOAT, ["batch", embedding]))
    image = value("pixel_values", TensorProto.FLOAT, ["batch", 3, size, size])
    _save(nodes, [image], outputs, weights, path)


def write_embeddings(path: Path) -> None:
    """input_ids [B, S] -> inputs_embeds [B, S, HIDDEN]."""
    table = np.random.default_rng(6).standard_normal((VOCAB, HIDDEN)).astype(np.float32)
    value = helper.make_tensor_value_info
    _save(
        [helper.make_node("Gather", ["table", "input_ids"], ["inputs_embeds"])],
        [value("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [value("inputs_embeds", TensorProto.FLOAT, ["batch", "sequence", HIDDEN])],
        [numpy_helper.from_array(table, "table")],
        path,
    )


def _save(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: list[TensorProto],
    path: Path,
) -> None:
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


MOSAIC = {
    "video_window": 4, "tokens_per_frame": 4, "grid": [2, 2], "image_size": 8, "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.25, 0.2, 0.5], "fps": 1.0, "eos_token_id": 1, "template": "{question}",
}  # fmt: skip


def write_model(folder: Path, decoder: str = "decoder_model_merged_q4.onnx") -> Path:
    """A whole model directory in the standard layout, made by hand; returns `folder`."""
    (folder / "onnx").mkdir(parents=True)
    write_vision(folder / "onnx" / "vision_encoder.onnx")
    write_embeddings(folder / "onnx" / "embed_tokens.onnx")
    onnx.save(Handmade().build(), folder / "onnx" / decoder)
    write_tokenizer(folder)
    (folder / "mosaic.json").write_text(json.dumps(MOSAIC))
    return folder
