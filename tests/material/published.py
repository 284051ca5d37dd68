"""Checkpoints with random weights under configuration files that were published, and what AutoProcessor makes
of a video.

The files lie beside the repository, not in it (`PUBLISHED`); layers and widths are cut so that a test can
hold the weights, all else is kept. AutoProcessor needs torchvision to look at a video, and this project does
not: it runs in a process of its own, over `tools/setup published`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = Path(os.environ.get("MOSAIC_PUBLISHED") or ROOT.parent / "shared" / "configs")
PROCESSORS = ROOT / "build" / "published"
needs_published = pytest.mark.skipif(
    not (PUBLISHED.is_dir() and PROCESSORS.is_dir()),
    reason="needs the published configuration files beside the repository, and tools/setup published",
)
Change = Callable[[dict[str, Any]], None]


def _qwen_text(text: dict[str, Any]) -> None:
    text.update(
        num_hidden_layers=2,
        hidden_size=256,
        intermediate_size=256,
        num_attention_heads=2,
        num_key_value_heads=1,
    )


def _qwen2_vl(config: dict[str, Any]) -> None:
    _qwen_text(config)
    config["vision_config"].update(depth=2, embed_dim=160, hidden_size=256, num_heads=2)


def _qwen2_5_vl(config: dict[str, Any]) -> None:
    _qwen_text(config)
    config["vision_config"].update(
        depth=2,
        hidden_size=160,
        intermediate_size=160,
        num_heads=2,
        out_hidden_size=256,
        fullatt_block_indexes=[1],
    )


def _qwen3_vl(config: dict[str, Any]) -> None:
    _qwen_text(config["text_config"])
    config["text_config"]["num_hidden_layers"] = 4
    config["vision_config"].update(
        depth=3,
        hidden_size=128,
        intermediate_size=160,
        num_heads=2,
        out_hidden_size=256,
        deepstack_visual_indexes=[0, 1, 2],
    )


def _small_text(config: dict[str, Any]) -> None:
    config["text_config"].update(
        num_hidden_layers=2,
        hidden_size=256,
        intermediate_size=256,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
    )
    config["vision_config"].update(
        num_hidden_layers=2, hidden_size=128, intermediate_size=160, num_attention_heads=2
    )


ONEVISION_TOKENS = {
    "<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645, "<image>": 151646,
    "<video>": 151647,
}  # fmt: skip
SMOL_TOKENS = {
    "<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2, "<global-img>": 49152,
    "<fake_token_around_image>": 49189, "<image>": 49190, "<end_of_utterance>": 49279,
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """How a family's folder is made out of what was published."""

    cut: Change
    tokens: dict[str, int] | None = None
    """Control tokens of a tokenizer that had to be put together; None: it is as published."""
    tokenizer: str = ""
    """A file of another model with the same vocabulary, whose control tokens of these numbers are `tokens`
    here."""
    words: bool = True
    """Whether its vocabulary was to be had (Qwen's); else it knows bytes alone."""


SOURCES: dict[str, Source] = {
    "qwen2_vl": Source(_qwen2_vl),
    "qwen2_5_vl": Source(_qwen2_5_vl),
    "qwen3_vl": Source(_qwen3_vl),
    "internvl": Source(_small_text),
    "llava_onevision": Source(_small_text, ONEVISION_TOKENS),
    "smolvlm": Source(_small_text, SMOL_TOKENS, words=False),
    "idefics3_granite_docling": Source(_small_text),
    "llava": Source(_small_text, {"<image>": 32000, "<pad>": 32001}, tokenizer="tokenizer.phi3v.json"),
}


def write_published(kind: str, folder: Path, change: Change | None = None) -> Path:
    """A checkpoint directory of a family: published files, random weights."""
    source = SOURCES[kind]
    shutil.copytree(PUBLISHED / kind, folder, dirs_exist_ok=True)
    for extra in (
        *folder.glob("*.embedding8b.*"),
        *folder.glob("*.7b.json"),
        *folder.glob("*.index.json"),
        *folder.glob("*.old.json"),
    ):
        extra.unlink()
    config = json.loads((folder / "config.json").read_text())
    source.cut(config)
    if change is not None:
        change(config)
    (folder / "config.json").write_text(json.dumps(config))
    _write_tokenizer(folder, source)
    torch.manual_seed(len(kind))
    model = tf.AutoModelForImageTextToText.from_config(tf.AutoConfig.from_pretrained(folder)).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 1.2 / parameter[0].numel() ** 0.5)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        model.get_input_embeddings().weight.normal_(
            0, 0.05
        )  # tied: else the last word read is the next one said
    weights = folder / "weights"
    model.save_pretrained(weights)  # beside the published files, which stay as they are
    for file in weights.glob("*.safetensors*"):
        file.rename(folder / file.name)
    shutil.rmtree(weights)
    return folder


def _write_tokenizer(folder: Path, source: Source) -> None:
    """tokenizer.json, as the hub has it beside vocab.json and merges.txt."""
    if source.tokenizer:
        said = json.loads((folder / source.tokenizer).read_text())
        names = {i: token for token, i in (source.tokens or {}).items()}
        said["added_tokens"] = [
            t | {"content": names.get(t["id"], t["content"])} for t in said["added_tokens"]
        ]
        (folder / "tokenizer.json").write_text(json.dumps(said))
        write_settings(folder, eos_token="</s>", bos_token="<s>")
        return
    for name in ("vocab.json", "merges.txt") if source.words else ():
        if not (folder / name).exists():
            shutil.copy(PUBLISHED / "qwen_bpe" / name, folder)
    if source.tokens is None:
        tf.AutoTokenizer.from_pretrained(folder).backend_tokenizer.save(str(folder / "tokenizer.json"))
        return
    if source.words:
        raw = tf.Qwen2Tokenizer.from_pretrained(folder).backend_tokenizer
        merges = [tuple(m) for m in json.loads(raw.to_str())["model"]["merges"]]
        vocab = json.loads((folder / "vocab.json").read_text())
    else:
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        first = max(i for i in source.tokens.values() if i < 100) + 1
        vocab, merges = {c: first + i for i, c in enumerate(letters)}, []
        raw = Tokenizer(BPE())
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        raw.decoder = decoders.ByteLevel()
    made = Tokenizer(BPE(vocab=vocab | source.tokens, merges=merges))
    made.normalizer, made.pre_tokenizer, made.decoder = raw.normalizer, raw.pre_tokenizer, raw.decoder
    made.add_special_tokens([AddedToken(token, special=True) for token in source.tokens])
    made.save(str(folder / "tokenizer.json"))
    write_settings(folder, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def write_settings(folder: Path, **tokens: str) -> None:
    """tokenizer_config.json where none was to be had."""
    if not (folder / "tokenizer_config.json").exists():
        said = {"tokenizer_class": "PreTrainedTokenizerFast", **tokens}
        (folder / "tokenizer_config.json").write_text(json.dumps(said))


@dataclass(frozen=True)
class Clip:
    """Frames of one size at a steady rate, and what is asked about them."""

    frames: np.ndarray  # uint8 [T, H, W, 3]
    fps: float
    question: str = "What was on the table?"

    @property
    def times(self) -> list[float]:
        return [i / self.fps for i in range(len(self.frames))]


def processed(
    folder: Path, clip: Clip, out: Path, tokens_per_frame: int | None = None, **settings: Any
) -> dict[str, Any]:
    """What AutoProcessor gives for a conversation of one video and a question: the model's inputs, by name;
    and under "ours" the pixels that our family makes in the same process."""
    np.savez(out / "clip.npz", frames=clip.frames)
    job = dict(
        folder=str(folder), fps=clip.fps, question=clip.question, settings=settings, out=str(out),
        tokens_per_frame=tokens_per_frame,
    )  # fmt: skip
    (out / "job.json").write_text(json.dumps(job))
    path = os.pathsep.join(filter(None, (str(PROCESSORS), os.environ.get("PYTHONPATH"))))
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("published_processor.py")), str(out / "job.json")],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    inputs: dict[str, Any] = torch.load(out / "inputs.pt")
    return inputs | {"ours": torch.load(out / "ours.pt")}


class Watched:
    """What the decoder and the vision tower of a transformers model are given from now on."""

    def __init__(self, model: Any) -> None:
        """model: the one without a head."""
        self.embeds: list[np.ndarray] = []
        self.positions: list[torch.Tensor] = []
        self.pixels: list[np.ndarray] = []
        language = getattr(model, "language_model", None) or model.text_model
        towers = (getattr(model, name, None) for name in ("visual", "vision_tower", "vision_model"))
        tower = next(t for t in towers if t is not None)
        language.register_forward_pre_hook(self._read, with_kwargs=True)
        tower.register_forward_pre_hook(self._seen, with_kwargs=True)

    def _read(self, module: Any, args: Any, given: dict[str, Any]) -> None:
        self.embeds.append(given["inputs_embeds"][0].numpy())
        self.positions.append(given.get("position_ids"))

    def _seen(self, module: Any, args: Any, given: dict[str, Any]) -> None:
        pixels = args[0] if args else given.get("pixel_values", given.get("hidden_states"))
        self.pixels.append(pixels.float().numpy())


class Answered:
    """One run of the library over the inputs of its processor: what was given to its parts, and greedy
    tokens."""

    def __init__(self, folder: Path, inputs: dict[str, Any], steps: int) -> None:
        model = tf.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.watched = Watched(model.model)
        with torch.inference_mode():
            made = model.generate(
                **inputs, max_new_tokens=steps, do_sample=False, repetition_penalty=1.0, eos_token_id=None,
                return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
        self.tokens = made.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        self.logits = [step[0].float().numpy() for step in made.logits]
