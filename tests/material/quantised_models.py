"""A small LLaVA whose decoder is quantised, each time by the library of its format, saved as that library
saves it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from safetensors.torch import load_file, save_file

KEPT = ("lm_head", "vision_tower", "multi_modal_projector")
"""What stays as it is, as in published checkpoints; transformers compares whole names of modules."""
_KEPT = [*KEPT, *(f"model.{name}" for name in KEPT)]
BLOCK = 16


def write_torchao(plain: Path, folder: Path) -> None:
    """int8, a scale an output channel."""
    from torchao.quantization import Int8WeightOnlyConfig

    how = tf.TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=_KEPT)
    tf.AutoModelForImageTextToText.from_pretrained(plain, quantization_config=how).save_pretrained(folder)


def write_compressed_tensors(plain: Path, folder: Path) -> None:
    """int4 in groups of 16, packed: what vLLM calls W4A16."""
    from compressed_tensors import quantization as ct
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization.utils import calculate_qparams

    ignored = [f"re:.*{name}.*" for name in KEPT]
    args = ct.QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=BLOCK)
    scheme = ct.QuantizationScheme(targets=["Linear"], weights=args)
    how = ct.QuantizationConfig(
        config_groups={"group_0": scheme},
        ignore=ignored,
        format="pack-quantized",
        quantization_status="frozen",
    )
    model = tf.AutoModelForImageTextToText.from_pretrained(plain)
    ct.apply_quantization_config(model, how)
    for module in model.modules():
        if hasattr(module, "quantization_scheme"):
            groups = module.weight.detach().unflatten(-1, (-1, BLOCK))
            module.weight_scale.data.copy_(calculate_qparams(groups.amin(-1), groups.amax(-1), args)[0])
    packer = ModelCompressor.from_pretrained_model(model, quantization_format="pack-quantized")
    packer.compress_model(model)
    model.save_pretrained(folder)
    packer.update_config(folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["ignore"] = (
        ignored  # names of modules differ between versions of transformers
    )
    (folder / "config.json").write_text(json.dumps(config))


def write_fp8(plain: Path, folder: Path) -> None:
    """Float8 in blocks with a scale each, as DeepSeek and Qwen publish it. Written by hand: transformers
    makes it on a GPU alone."""
    weights: dict[str, torch.Tensor] = {}
    for name, weight in load_file(plain / "model.safetensors").items():
        if re.search(r"language_model\..*layers\..*_proj\.weight", name):
            blocks = weight.unflatten(0, (-1, BLOCK)).unflatten(-1, (-1, BLOCK))
            scale = blocks.abs().amax((1, 3)) / torch.finfo(torch.float8_e4m3fn).max
            small = (blocks / scale[:, None, :, None]).flatten(2).flatten(0, 1)
            weights |= {name: small.to(torch.float8_e4m3fn), f"{name}_scale_inv": scale}
        else:
            weights[name] = weight.to(torch.bfloat16)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((plain / "config.json").read_text())
    how = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
    config |= {"dtype": "bfloat16", "quantization_config": how | {"modules_to_not_convert": _KEPT}}
    (folder / "config.json").write_text(json.dumps(config))


def write_bitsandbytes(plain: Path, folder: Path) -> None:
    """nf4, as QLoRA's; a CPU computes with it in bfloat16."""
    how = tf.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=_KEPT,
    )  # fmt: skip
    model = tf.AutoModelForImageTextToText.from_pretrained(
        plain, device_map="cpu", quantization_config=how, dtype=torch.bfloat16
    )
    model.save_pretrained(folder)


QUANTISED: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "torchao": ("torchao", write_torchao),
    "compressed-tensors": ("compressed_tensors", write_compressed_tensors),
    "fp8": ("accelerate", write_fp8),
    "bitsandbytes": ("bitsandbytes", write_bitsandbytes),
}
"""By quant_method: the package it needs, and what writes it. Whatever has a way on a CPU and comes as a
wheel."""


def write_quantised(how: str, plain: Path, folder: Path) -> Path:
    """A directory with everything that the plain one has, its decoder quantised."""
    folder.mkdir(parents=True, exist_ok=True)
    QUANTISED[how][1](plain, folder)
    for file in plain.iterdir():
        if not (folder / file.name).exists() and file.suffix != ".safetensors":
            shutil.copy(file, folder)
    return folder


def said_method(folder: Path) -> Any:
    """quant_method of its config.json."""
    return json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"]
