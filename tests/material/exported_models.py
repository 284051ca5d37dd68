"""Whole models as files that others' exporters wrote: random small Qwen2.5-VL, Qwen3-VL, LLaVA (a Llama).

The decoder is made by onnxruntime-genai's model builder from a random transformers checkpoint, the vision
part and the token embedding by torch's exporter. Nothing here writes a node.
"""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

HIDDEN, VOCAB, LAYERS = 64, 96, 3
WORDS = [f"w{i}" for i in range(VOCAB)]
THETA = 1e6
HEAD_DIM = {"qwen2.5-vl": 16, "qwen3-vl": 32, "llava": 32}


def write_words(folder: Path) -> None:
    """tokenizer.json of VOCAB words w0 ... w95, one token each."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=raw).save_pretrained(folder)


def random_model(kind: str) -> Any:
    """A transformers model of `kind` (qwen2.5-vl, qwen3-vl, llava: SigLIP and Llama), random weights."""
    import torch
    import transformers

    text: dict[str, Any] = dict(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=128, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048, head_dim=32,
        tie_word_embeddings=False, initializer_range=0.3, bos_token_id=1, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": THETA}
    # The builder takes the first linear layer with VOCAB outputs for the lm_head: qkv of the vision must not
    # have them.
    vision: dict[str, Any] = dict(
        depth=2, hidden_size=48, num_heads=2, out_hidden_size=HIDDEN, intermediate_size=48
    )
    torch.manual_seed(11)
    if kind == "qwen2.5-vl":
        text |= {"rope_parameters": rope | {"mrope_section": [2, 3, 3]}}
        del text["head_dim"]
        config = transformers.Qwen2_5_VLConfig(
            text_config=text,
            vision_config=vision | {"fullatt_block_indexes": [0, 1]},
            tie_word_embeddings=False,
        )
        model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    elif kind == "qwen3-vl":
        text |= {"rope_parameters": rope | {"mrope_section": [6, 5, 5], "mrope_interleaved": True}}
        vision |= {"deepstack_visual_indexes": [], "num_position_embeddings": 64, "patch_size": 16}
        config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
        model = transformers.Qwen3VLForConditionalGeneration(config)
        for layer in model.model.language_model.layers:
            layer.self_attn.q_norm.weight.data.uniform_(0.5, 2.0)
            layer.self_attn.k_norm.weight.data.uniform_(0.5, 2.0)
    else:
        assert kind == "llava"
        tower: dict[str, Any] = dict(
            model_type="siglip_vision_model", hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=2, image_size=42, patch_size=14,
        )  # fmt: skip
        config = transformers.LlavaConfig(
            text_config=text | {"model_type": "llama", "rope_parameters": rope},
            vision_config=tower, vision_feature_select_strategy="full", image_token_index=2,
            tie_word_embeddings=False,
        )  # fmt: skip
        model = transformers.LlavaForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if "visual" in name or "vision" in name or "projector" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)  # frames must differ
    return model.eval()


def write_decoder(model: Any, folder: Path, precision: str, *options: str) -> Path:
    """The text model through onnxruntime_genai's builder; returns its directory: model.onnx,
    genai_config.json.

    precision: fp32, int4 (float32 between the weights) or q4f16 (float16: what the builder makes for a GPU).
    """
    import transformers

    source = folder / "source"
    if hasattr(model.model, "visual"):
        model.save_pretrained(source)
    else:  # the builder knows the text part of LLaVA as the Llama that it is
        text = transformers.LlamaForCausalLM(model.config.text_config)
        text.model, text.lm_head = model.model.language_model, model.lm_head
        text.save_pretrained(source)
    write_words(source)
    built = folder / "built"
    arguments = ["builder", "-m", "local", "-i", str(source), "-o", str(built), "-c"]
    arguments += [str(folder / "cache"), "--extra_options", "exclude_embeds=true", "hf_token=false", *options]
    arguments[1:1] = ["-p", "int4", "-e", "cuda"] if precision == "q4f16" else ["-p", precision, "-e", "cpu"]
    drawn = contextlib.redirect_stderr(io.StringIO())  # progress bars
    with mock.patch.object(sys, "argv", arguments), contextlib.redirect_stdout(io.StringIO()), drawn:
        runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
    return built


def write_parts(model: Any, folder: Path) -> None:
    """vision_encoder.onnx and embed_tokens.onnx by torch's exporter, for any number of patches."""
    import torch

    class Patches(torch.nn.Module):
        """The vision model with what it would read out of the grid by Python loops worked out by tensors."""

        def __init__(self, visual: Any) -> None:
            super().__init__()
            self.visual = visual

        def forward(self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor) -> torch.Tensor:
            count, merge = pixel_values.shape[0], self.visual.spatial_merge_size
            at, across = torch.arange(count), image_grid_thw[0, 2] // merge
            block, inside = at // merge**2, at % merge**2
            rows = block // across * merge + inside // merge
            columns = block % across * merge + inside % merge
            ends = torch.stack([torch.zeros_like(image_grid_thw[0, 0]), image_grid_thw[0].prod()]).int()
            known: dict[str, Any] = dict(
                position_ids=torch.stack([rows, columns], -1), cu_seqlens=ends, max_seqlen=count
            )
            if hasattr(self.visual, "window_size"):
                known |= dict(
                    window_index=torch.arange(count // merge**2),
                    cu_window_seqlens=ends,
                    max_window_seqlen=count,
                )
            else:
                from transformers.vision_utils import _interpolation_axis_taps_weights as taps

                side = self.visual.num_grid_per_side
                h, hw = taps(rows, image_grid_thw[0, 1], side, "bilinear", True, "border")
                w, ww = taps(columns, image_grid_thw[0, 2], side, "bilinear", True, "border")
                known["interp_indices"] = (h[:, :, None] * side + w[:, None]).reshape(-1, 4)
                known["interp_weights"] = (hw[:, :, None] * ww[:, None]).reshape(-1, 4)
            return self.visual(pixel_values, image_grid_thw, **known).pooler_output

    class Pictures(torch.nn.Module):
        def __init__(self, llava: Any) -> None:
            super().__init__()
            self.llava = llava

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            features = self.llava.vision_tower(pixel_values, output_hidden_states=True)
            return self.llava.multi_modal_projector(features.hidden_states[-2])

    quiet = contextlib.ExitStack()
    quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))
    quiet.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    with quiet, torch.no_grad():
        if hasattr(model.model, "visual"):
            visual = model.model.visual
            visual.config._attn_implementation = whole_attention()
            size = visual.config.patch_size
            pixels = torch.randn(24, 3 * visual.config.temporal_patch_size * size * size)
            quarter = torch.export.Dim("quarter", min=2, max=4096)
            torch.onnx.export(
                Patches(visual).eval(), (pixels, torch.tensor([[1, 4, 6]])), folder / "vision_encoder.onnx",
                dynamo=True, input_names=["pixel_values", "image_grid_thw"], output_names=["image_features"],
                dynamic_shapes=({0: 4 * quarter}, None), verbose=False,
            )  # fmt: skip
            visual.config._attn_implementation = "sdpa"
        else:
            torch.onnx.export(
                Pictures(model.model).eval(), (torch.randn(1, 3, 42, 42),), folder / "vision_encoder.onnx",
                dynamo=True, input_names=["pixel_values"], output_names=["image_features"], verbose=False,
            )  # fmt: skip
        length = torch.export.Dim("length", min=1, max=4096)
        torch.onnx.export(
            model.get_input_embeddings(), (torch.zeros(1, 5, dtype=int),), folder / "embed_tokens.onnx",
            dynamo=True, input_names=["input_ids"], output_names=["inputs_embeds"],
            dynamic_shapes=({1: length},), verbose=False,
        )  # fmt: skip


def whole_attention() -> str:
    """Register attention over a whole frame without a loop over cu_seqlens; its name."""
    import torch
    from transformers import AttentionInterface

    def attend(
        module: Any, q: Any, k: Any, v: Any, attention_mask: None, scaling: float, **_: Any
    ) -> tuple[Any, None]:
        return (torch.softmax(q @ k.transpose(-1, -2) * scaling, -1) @ v).transpose(1, 2), None

    AttentionInterface.register("flash_whole", attend)
    return "flash_whole"


def write_processor(model: Any, folder: Path) -> None:
    """preprocessor_config.json as the model's own image processor saves it."""
    import transformers.models.qwen2_vl.image_processing_pil_qwen2_vl as qwen
    import transformers.models.siglip.image_processing_pil_siglip as siglip

    if hasattr(model.model, "visual"):
        patch = model.config.vision_config.patch_size
        qwen.Qwen2VLImageProcessorPil(patch_size=patch, min_pixels=4 * patch**2).save_pretrained(folder)
    else:
        size = {"height": 42, "width": 42}
        siglip.SiglipImageProcessorPil(size=size).save_pretrained(folder)


class Exporter:
    """Makes each model once: `exporter(kind, layout, precision, *options)` -> its directory, not to be
    changed.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._made: dict[tuple[str, ...], Path] = {}
        self._models: dict[str, Any] = {}

    def __call__(
        self, kind: str, layout: str = "transformers.js", precision: str = "fp32", *options: str
    ) -> Path:
        key = (kind, layout, precision, *options)
        if key not in self._made:
            folder = self._root / f"{len(self._made)}"
            built = write_decoder(self.model(kind), folder, precision, *options)
            shutil.rmtree(folder / "source")
            write = as_genai if layout == "genai" else as_transformers_js
            self._made[key] = write(built, self._root / kind, folder / "model", precision)
        return self._made[key]

    def model(self, kind: str) -> Any:
        """The transformers model that was exported."""
        if kind not in self._models:
            model = self._models[kind] = random_model(kind)
            parts = self._root / kind
            parts.mkdir()
            write_parts(model, parts)
            write_processor(model, parts)
            write_words(parts)
            model.config.save_pretrained(parts)
        return self._models[kind]


def as_transformers_js(built: Path, parts: Path, target: Path, precision: str) -> Path:
    """config.json and onnx/decoder_model_merged_<variant>.onnx, its weights inside it."""
    import onnx

    shutil.copytree(parts, target)
    (target / "onnx").mkdir()
    for path in target.glob("*.onnx*"):
        path.rename(target / "onnx" / path.name)
    suffix = {"fp32": "", "int4": "_q4", "q4f16": "_q4f16"}[precision]
    onnx.save(onnx.load(built / "model.onnx"), target / "onnx" / f"decoder_model_merged{suffix}.onnx")
    return target


def as_genai(built: Path, parts: Path, target: Path, precision: str) -> Path:
    """genai_config.json names the files, weights lie in external data; there is no config.json."""
    built.rename(target)
    for path in parts.iterdir():
        if path.suffix != ".onnx" and path.name != "config.json":
            shutil.copy(path, target)
    shutil.copy(parts / "vision_encoder.onnx", target / "sees.onnx")
    shutil.copy(parts / "embed_tokens.onnx", target / "reads.onnx")
    config = json.loads((target / "genai_config.json").read_text())
    config["model"] |= {"vision": {"filename": "sees.onnx"}, "embedding": {"filename": "reads.onnx"}}
    (target / "genai_config.json").write_text(json.dumps(config))
    return target
