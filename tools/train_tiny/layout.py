"""The model's layout on disk: config, tokenizer, preprocessor and mosaic.json, all loadable by
transformers.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipImageProcessor,
    SiglipVisionConfig,
)

from mosaic_edge.world.words import VOCABULARY

WORDS = ["<pad>", "<eos>", "<image>", "<unk>", *VOCABULARY]
PAD, EOS, IMAGE, UNK = range(4)
WORD_ID = {w: i for i, w in enumerate(WORDS)}
VOCAB_SIZE = -(-len(WORDS) // 32) * 32
TOKENS_PER_FRAME = 16
VIDEO_WINDOW = 4
IMAGE_SIZE, PATCH = 48, 12
MEAN, STD = 0.5, 0.25


def build_model(
    hidden: int = 128, layers: int = 4, vision_hidden: int = 128, vision_layers: int = 3
) -> LlavaForConditionalGeneration:
    """A LLaVA of SigLIP, MLP projector and Qwen2, with fresh weights (seed torch first)."""
    vision = SiglipVisionConfig(
        hidden_size=vision_hidden,
        intermediate_size=4 * vision_hidden,
        num_hidden_layers=vision_layers,
        num_attention_heads=vision_hidden // 32,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=131072,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=TOKENS_PER_FRAME,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    config.bos_token_id, config.eos_token_id, config.pad_token_id = None, EOS, PAD
    return LlavaForConditionalGeneration(config)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One word, one token; punctuation stands alone; lower case; no BOS."""
    raw = Tokenizer(WordLevel(WORD_ID, unk_token="<unk>"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.add_special_tokens(["<pad>", "<eos>", "<image>", "<unk>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=131072
    )


def mosaic_facts() -> dict[str, object]:
    """What the runtime needs and no standard file says."""
    return {
        "video_window": VIDEO_WINDOW,
        "tokens_per_frame": TOKENS_PER_FRAME,
        "grid": [4, 4],
        "image_size": IMAGE_SIZE,
        "image_mean": [MEAN] * 3,
        "image_std": [STD] * 3,
        "fps": 1.0,
        "eos_token_id": EOS,
        "template": "{question}",
        "policy_settings": {"edge": {"unit": "summaries"}},  # it was trained to find its way among means
    }


def as_older_versions_read_it(folder: Path) -> None:
    """Name weights, rotary settings and tokenizer class as transformers 4.57 to 5.2 look for them, too.

    Newer ones write `vision_tower.encoder` for `vision_tower.vision_model.encoder`; an older one that does
    not find a weight goes on with a random one.
    """
    weights = folder / "model.safetensors"
    named = {name: tensor.clone() for name, tensor in load_file(weights).items()}
    short, long = "vision_tower.", "vision_tower.vision_model."
    save_file(
        {name.replace(long, short).replace(short, long): tensor for name, tensor in named.items()},
        weights,
        {"format": "pt"},
    )
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"]
    text["rope_theta"] = text["rope_parameters"]["rope_theta"]
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=2) + "\n")


def save(model: LlavaForConditionalGeneration, out: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the whole directory beside `out`, then swap it in, so a reader never sees half of it."""
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    state = {k: v.detach().to(dtype).contiguous() for k, v in model.state_dict().items()}
    model.save_pretrained(part, state_dict=state)
    config = json.loads((part / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    (part / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    build_tokenizer().save_pretrained(part)
    as_older_versions_read_it(part)
    SiglipImageProcessor(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_mean=[MEAN] * 3, image_std=[STD] * 3
    ).save_pretrained(part)
    (part / "mosaic.json").write_text(json.dumps(mosaic_facts(), indent=2) + "\n")
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    part.rename(out)
    shutil.rmtree(old, ignore_errors=True)
