"""From a directory or hub id to a model, an image processor and a tokenizer - nothing executed that came with
the weights.

Weights are read from safetensors; every file is checked for being there and whole before transformers reads
it, so that a broken download is named instead of half loaded. Code shipped with a checkpoint is never run.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer

from mosaic_edge.models.directory import check_directory, is_there, named_file, read_json
from mosaic_edge.models.hf.families import family_of
from mosaic_edge.models.hf.family import Family
from mosaic_edge.models.hf.mapped import MappedWeights, type_of_files
from mosaic_edge.models.hf.quantised import check_quantised
from mosaic_edge.models.hf.refused import check_layers
from mosaic_edge.models.hf.rope import check_rope_type
from mosaic_edge.models.hf.sizes import Stored, check_built, check_sizes
from mosaic_edge.models.hf.weight_only import quantise
from mosaic_edge.models.hub import PICKLES
from mosaic_edge.models.image_settings import video_settings
from mosaic_edge.models.prompt import chat_template_in
from mosaic_edge.models.sandbox import check_memory
from mosaic_edge.models.tensor_file import header_of, tensor_files
from mosaic_edge.models.tokenizer import check_tokenizer
from mosaic_edge.models.vlm import ModelError

_TYPES = {
    "fp32": torch.float32, "float32": torch.float32, "fp16": torch.float16, "float16": torch.float16,
    "bf16": torch.bfloat16, "bfloat16": torch.bfloat16,
}  # fmt: skip
_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.safetensors"]


@dataclass(frozen=True)
class Parts:
    """What a model directory holds, loaded."""

    folder: Path
    model: Any
    images: Any
    videos: Mapping[str, Any]
    """What its video processor is set to, as far as the checkpoint says."""
    tokenizer: Any
    chat_template: str | None
    family: type[Family]


def load_parts(
    folder: Path, dtype: str | None, device: str | None, quantization: str | None, allow_pickle: bool
) -> Parts:
    """Read a checkpoint in the transformers layout. ModelError in one line for whatever is wrong with it."""
    if is_there(folder / "adapter_config.json"):
        raise ModelError(
            f"{folder / 'adapter_config.json'}: adapters are not loaded; merge it (a LoRA) into its model"
        )
    config = read_json(folder / "config.json")
    if not config:
        raise ModelError(f"{folder}: no config.json")
    family = family_of(str(config.get("model_type", "")), str(folder))
    text = config.get("text_config") or config
    check_layers(str(folder), text)
    check_rope_type(str(folder), text.get("rope_parameters") or text.get("rope_scaling") or {})
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    quantised = config.get("quantization_config") or config.get("text_config", {}).get("quantization_config")
    check_quantised(str(folder), quantised or {}, target != "cpu")
    if dtype is not None and dtype not in _TYPES:
        raise ValueError(f"dtype={dtype!r}: expected fp32, fp16 or bf16")
    if quantization not in (None, "int4", "int8"):
        raise ValueError(f"quantization={quantization!r}: expected None, 'int4' or 'int8'")
    if quantization is not None and quantised:
        raise ValueError(f"quantization={quantization!r}: {folder} is quantised already")
    check_directory(folder, (*_FILES, *(PICKLES if allow_pickle else ())))
    stored = check_weights(folder, allow_pickle)
    check_sizes(folder, config, stored)
    built = _config(folder)
    check_built(folder, built, stored)
    read_json(folder / "generation_config.json")  # transformers goes on without one that it cannot read
    template = chat_template_in(folder)
    images = _image_processor(folder)
    tokenizer = _tokenizer(folder)
    wanted = _type_for(dtype, config, target)
    pickled = allow_pickle and not tensor_files(folder)
    stays = quantised is not None  # a pre-quantised checkpoint is and lies as transformers made it
    filed = None if stays or pickled else type_of_files(built, stored, wanted)
    model = _read_weights(folder, built, filed or wanted, pickled)
    model.eval().requires_grad_(False)
    if not stays:
        weights = MappedWeights(model, target, wanted if filed else None)
        if quantization is not None:
            quantise(model, quantization, weights)
        weights.settle(model)
    return Parts(folder, model, images, video_settings(folder), tokenizer, template, family)


def _read_weights(folder: Path, built: Any, dtype: torch.dtype, pickled: bool) -> Any:
    """The model of a configuration with its weights. ModelError for those that are not there, too."""
    quiet = not sys.stderr.isatty() and transformers.utils.logging.is_progress_bar_enabled()
    if quiet:  # no bar in a pipe
        transformers.utils.logging.disable_progress_bar()
    try:
        model, found = transformers.AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            config=built,
            attn_implementation="sdpa",
            use_safetensors=not pickled,
            output_loading_info=True,
        )
    except Exception as error:  # transformers, safetensors and torch raise all kinds
        check_memory(error, str(folder))
        raise ModelError(f"{folder}: cannot be loaded ({' '.join(str(error).split())[:300]})") from None
    finally:
        if quiet:
            transformers.utils.logging.enable_progress_bar()
    missing = sorted(map(str, found["missing_keys"]))
    if missing:  # transformers goes on with random ones
        version = read_json(folder / "config.json").get("transformers_version", "no version")
        raise ModelError(
            f"{folder}: {len(missing)} weights are not in it, {missing[0]} first, as transformers "
            f"{transformers.__version__} names them; config.json says it was saved by {version}"
        )
    return model


def _config(folder: Path) -> Any:
    """config.json as transformers has it, attention of its own apart: that may name code to fetch from a hub,
    and transformers would, whatever else it is told."""
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers raises all kinds
        raise ModelError(f"{folder}: cannot be loaded ({' '.join(str(error).split())[:300]})") from None
    check_layers(str(folder), config.get_text_config(decoder=True).to_dict())  # which may be said by default
    config._attn_implementation = "sdpa"  # of its sections too
    return config


def check_weights(folder: Path, allow_pickle: bool) -> Stored:
    """Every shard there and as long as its header says; pickles refused unless allowed."""
    index = "model.safetensors.index.json"
    shards = sorted(set(read_json(folder / index).get("weight_map", {}).values()))
    missing = [name for name in shards if not is_there(folder / name)]
    if missing:
        raise ModelError(f"{folder}: shard {missing[0]} is missing ({len(missing)} of {len(shards)} are)")
    files = [named_file(folder, name, index) for name in shards] or tensor_files(folder)
    if files:
        headers = [header_of(file) for file in files]
        types = {str(tensor.get("dtype")) for header in headers for tensor in header.values()}
        size = sum(file.stat().st_size for file in files)
        return Stored(sum(map(len, headers)), size, frozenset(types))
    pickles = sorted(file for pattern in PICKLES for file in folder.glob(pattern))
    if not pickles:
        raise ModelError(f"{folder}: no *.safetensors")
    if not allow_pickle:
        raise ModelError(
            f"{pickles[0]}: pickled weights can run code when they are loaded; convert them to "
            "safetensors, or pass allow_pickle=True if you trust who made them"
        )
    return Stored(1 << 30, sum(file.stat().st_size for file in pickles))


def _image_processor(folder: Path) -> Any:
    names = ("preprocessor_config.json", "processor_config.json")
    if not any((folder / name).is_file() for name in names):
        raise ModelError(f"{folder}: no image processor: expected {' or '.join(names)} beside config.json")
    try:
        return transformers.AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise ModelError(
            f"{folder}: its image processor cannot be loaded ({' '.join(str(error).split())[:200]})"
        ) from None


def _tokenizer(folder: Path) -> Any:
    names = ("tokenizer.json", "vocab.json", "tokenizer.model")
    if not any((folder / name).is_file() for name in names):  # transformers would make up an empty one
        raise ModelError(f"{folder}: no tokenizer: expected {', '.join(names[:-1])} or {names[-1]}")
    if is_there(folder / "tokenizer.json"):
        check_tokenizer(folder / "tokenizer.json")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise ModelError(
            f"{folder}: no tokenizer that loads ({' '.join(str(error).split())[:200]})"
        ) from None
    if not isinstance(getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
        raise ModelError(f"{folder}: needs a tokenizer.json (a fast tokenizer)")
    return tokenizer


def _type_for(dtype: str | None, config: dict[str, Any], device: str) -> Any:
    """The asked type; else the checkpoint's, but not half precision on a CPU, which is slow at it."""
    if dtype is not None:
        return _TYPES[dtype]
    text = config.get("text_config") or {}
    stored = next(
        (str(c[key]) for c in (config, text) for key in ("dtype", "torch_dtype") if c.get(key)), "float32"
    ).removeprefix("torch.")
    return torch.float32 if device == "cpu" and stored == "float16" else _TYPES.get(stored, torch.float32)
