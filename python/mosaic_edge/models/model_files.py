"""Which files of a model directory to use, and what its JSON files say. Names only find files; graphs say
what they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from mosaic_edge.models.vlm import ModelError

STEMS = {
    "decoder": ("decoder_model_merged", "decoder_model", "decoder", "text_model", "model"),
    "vision encoder": ("vision_encoder", "vision_model", "vision"),
    "token embedding": ("embed_tokens", "embedding", "embeddings"),
}
# Best first on a CPU: 4-bit weights are the fastest decoder; an encoder is run in full precision if it is
# there.
_VARIANTS = {
    "decoder": ("_q4", "_int4", "_int8", "_quantized", "", "_fp32", "_q4f16", "_fp16"),
    "vision encoder": ("", "_fp32", "_fp16", "_int8", "_quantized", "_q4", "_q4f16"),
    "token embedding": ("", "_fp32", "_fp16", "_int8", "_quantized", "_q4", "_q4f16"),
}


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model directory that will be opened."""

    folder: Path
    decoder: Path
    vision: Path
    embeddings: Path
    tokenizer: Path

    @classmethod
    def find(cls, folder: Path, variant: str | None = None) -> ModelFiles:
        """Choose the files in `folder` or folder/onnx. `variant` ("q4", "fp16", "" ...) fixes the decoder's.

        Raises ModelError naming what is missing and what was looked for.
        """
        if not folder.is_dir():
            raise ModelError(f"{folder}: no such model directory")
        decoder = _choose(folder, "decoder", variant, strict=True)
        vision = _choose(folder, "vision encoder", variant, strict=False)
        embeddings = _choose(folder, "token embedding", variant, strict=False)
        tokenizer = folder / "tokenizer.json"
        if not tokenizer.is_file():
            raise ModelError(f"{folder}: no tokenizer; looked for tokenizer.json")
        return cls(folder, decoder, vision, embeddings, tokenizer)


def _choose(folder: Path, part: str, variant: str | None, strict: bool) -> Path:
    order = _VARIANTS[part]
    if variant is not None:
        wanted = f"_{variant.lstrip('_')}" if variant.strip("_") else ""
        order = (wanted,) if strict else (wanted, *(v for v in order if v != wanted))
    for stem in STEMS[part]:
        for suffix in order:
            for place in (folder / "onnx", folder):
                if (path := place / f"{stem}{suffix}.onnx").is_file():
                    return path
    suffixes = ",".join(order)
    shown = f"{STEMS[part][0]}{{{suffixes}}}.onnx" if len(order) > 1 else f"{STEMS[part][0]}{order[0]}.onnx"
    others = ", ".join(STEMS[part][1:])
    raise ModelError(f"{folder}: no {part}; looked for {shown} (or {others}) in it and in onnx/")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, {} if there is no such file; ModelError if it is damaged."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def read_graph(path: Path) -> onnx.ModelProto:
    """An ONNX file without its external data, which is checked to be there in full. ModelError otherwise."""
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own class, or the file system's
        raise ModelError(f"{path}: not a readable ONNX file, truncated or corrupt ({error})") from None
    if not model.graph.node:
        raise ModelError(f"{path}: an ONNX file without a graph, truncated or empty")
    ends: dict[str, int] = {}
    for tensor in model.graph.initializer:
        if uses_external_data(tensor):
            info = ExternalDataInfo(tensor)
            end = int(info.offset or 0) + int(info.length or 0)
            ends[info.location] = max(ends.get(info.location, 0), end)
    for location, end in ends.items():
        data = path.parent / location
        if not data.is_file():
            raise ModelError(f"{path}: its external data {location} is missing")
        if data.stat().st_size < end:
            raise ModelError(
                f"{data}: external data of {data.stat().st_size} bytes, {path.name} needs {end}: truncated"
            )
    return model


def decoder_hints(config: Mapping[str, Any], genai: Mapping[str, Any]) -> dict[str, object]:
    """Facts of the text model under their Hugging Face names, from config.json, then genai_config.json."""
    text = config.get("text_config", config)
    hints: dict[str, object] = {}
    heads = text.get("num_attention_heads")
    for name in ("num_attention_heads", "num_key_value_heads", "head_dim"):
        if text.get(name):
            hints[name] = text[name]
    if heads:
        hints.setdefault("num_key_value_heads", heads)
        if text.get("hidden_size"):
            hints.setdefault("head_dim", text["hidden_size"] // heads)
    rope = text.get("rope_parameters") or {}
    theta = rope.get("rope_theta", text.get("rope_theta"))
    scaling = rope.get("rope_type") or (text.get("rope_scaling") or {}).get("rope_type", "default")
    if theta and scaling in ("default", "mrope"):
        hints["rope_theta"] = theta
    decoder = genai.get("model", {}).get("decoder", {})
    for name, other in (
        ("head_dim", "head_size"),
        *((n, n) for n in ("num_attention_heads", "num_key_value_heads")),
    ):
        if decoder.get(other):
            hints.setdefault(name, decoder[other])
    return hints
