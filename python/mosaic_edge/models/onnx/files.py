"""Which files of a model directory to use, and what its JSON files say. Names only find files; graphs say
what they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mosaic_edge.models.directory import is_folder, is_there, named_file, plain_file, read_json
from mosaic_edge.models.vlm import ModelError

STEMS = {
    "decoder": ("decoder_model_merged", "decoder_model", "decoder", "text_model", "model"),
    "vision encoder": ("vision_encoder", "vision_model", "vision"),
    "token embedding": ("embed_tokens", "embedding", "embeddings"),
}
# Best first. A decoder reads all its weights for every token: the fewest bytes that the device multiplies
# quickly win (a CPU has no float16 arithmetic). An encoder runs once a frame, on many tokens: full precision
# if it is there.
_ENCODER_CPU = ("", "fp32", "fp16", "int8", "uint8", "quantized", "q4", "q4f16", "bnb4")
_ENCODER_CUDA = ("fp16", "", "fp32", "q4f16", "q4", "bnb4", "int8", "uint8", "quantized")
VARIANTS: dict[str, dict[str, tuple[str, ...]]] = {
    "cpu": {
        "decoder": ("q4", "int4", "int8", "uint8", "quantized", "bnb4", "q4f16", "", "fp32", "fp16"),
        "vision encoder": _ENCODER_CPU,
        "token embedding": _ENCODER_CPU,
    },
    "cuda": {
        "decoder": ("q4f16", "fp16", "q4", "int4", "bnb4", "", "fp32", "int8", "uint8", "quantized"),
        "vision encoder": _ENCODER_CUDA,
        "token embedding": _ENCODER_CUDA,
    },
}
_GENAI_PARTS = {"decoder": "decoder", "vision encoder": "vision", "token embedding": "embedding"}


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model directory that will be opened."""

    folder: Path
    decoder: Path
    vision: Path
    embeddings: Path
    tokenizer: Path

    @classmethod
    def find(cls, folder: Path, variant: str | None = None, device: str = "cpu") -> ModelFiles:
        """Choose the files in `folder` or folder/onnx; `variant` ("q4", "fp16", "" ...) fixes the decoder's.

        genai_config.json names its files; parts it does not name, and everything when a variant is asked for,
        are found by name, the best variant for `device` first. ModelError names what is missing and lists
        what is there.
        """
        if device not in VARIANTS:
            raise ValueError(f"device={device!r}: there are {', '.join(VARIANTS)}")
        if not is_folder(folder):
            raise ModelError(f"{str(folder)[:500]}: no such model directory")
        named = _named(folder)
        decoder = (named.get("decoder") if variant is None else None) or _choose(
            folder, "decoder", variant, device, strict=True
        )
        vision, embeddings = (
            named.get(part) or _choose(folder, part, variant, device, strict=False)
            for part in ("vision encoder", "token embedding")
        )
        tokenizer = folder / "tokenizer.json"
        if not is_there(tokenizer):
            raise ModelError(f"{folder}: no tokenizer; looked for tokenizer.json")
        plain_file(folder, tokenizer)
        return cls(folder, decoder, vision, embeddings, tokenizer)


def _named(folder: Path) -> dict[str, Path]:
    """The files that genai_config.json names, by part; {} without one."""
    model = read_json(folder / "genai_config.json").get("model", {})
    files: dict[str, Path] = {}
    for part, key in _GENAI_PARTS.items():
        section = model.get(key) or {}
        if section.get("pipeline"):
            raise ModelError(
                f"{folder}: genai_config.json runs its {key} as a pipeline of graphs, which cannot be cut"
            )
        if section.get("filename"):
            files[part] = named_file(folder, section["filename"], "genai_config.json")
    return files


def _candidates(part: str, variant: str | None, device: str, strict: bool) -> list[str]:
    """File names of a part, best first. strict: in the variant that was asked for, or not at all."""
    order = VARIANTS[device][part]
    if variant is not None:
        wanted = variant.strip("_")
        order = (wanted,) if strict else (wanted, *(v for v in order if v != wanted))
    return [f"{stem}{v and '_'}{v}.onnx" for stem in STEMS[part] for v in order]


def names_of_parts(names: list[str], variant: str | None, device: str) -> list[str]:
    """Of the files of a repository, the graphs that ModelFiles.find() would choose, their external data with
    them. Where a genai_config.json names them, all of them."""
    if "genai_config.json" in names:
        return [name for name in names if name.count("/") <= 1 and ".onnx" in name]
    graphs = []
    for part in STEMS:
        wanted = _candidates(part, variant, device, strict=part == "decoder")
        paths = (f"{folder}{name}" for name in wanted for folder in ("onnx/", ""))
        graphs += [name for name in paths if name in names][:1]
    return [name for name in names if any(name == g or name.startswith((f"{g}_", f"{g}.")) for g in graphs)]


def _choose(folder: Path, part: str, variant: str | None, device: str, strict: bool) -> Path:
    names = _candidates(part, variant, device, strict)
    folders = (folder / "onnx", folder)
    for name in names:
        for where in folders:
            if is_there(where / name):
                return plain_file(folder, where / name)
    stem, others = STEMS[part][0], ", ".join(STEMS[part][1:])
    suffixes = [name.removeprefix(stem).removesuffix(".onnx") for name in names if name.startswith(stem)]
    shown = f"{stem}{{{','.join(suffixes)}}}.onnx" if len(suffixes) > 1 else names[0]
    found = sorted({path.name for where in folders for path in where.glob("*.onnx")})
    raise ModelError(
        f"{folder}: no {part}; looked for {shown} (or {others}) in it and in onnx/; "
        f"there are {', '.join(found) or 'no .onnx files'}"
    )


def bytes_on_disk(graph: Path) -> int:
    """Of a graph and the external data beside it (`x.onnx`, `x.onnx_data`, `x.onnx.data` ...)."""
    return sum(p.stat().st_size for p in graph.parent.glob(f"{graph.name}*") if p.is_file())


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
    older = text.get("rope_scaling") or {}
    scaling = rope.get("rope_type") or older.get("rope_type") or older.get("type") or "default"
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
