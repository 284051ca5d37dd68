"""Checkpoints with random weights under configuration files that were published, and what `mosaic-edge check`
says of them.

The files lie beside the repository, not in it (`PUBLISHED`); layers and widths are cut so that a test can
hold the weights, all else is kept. AutoProcessor needs torchvision to look at a video, and this project does
not: that is in another process, over `tools/setup published`.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
import pytest
import torch
import transformers as tf
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from mosaic_edge.models.hf.families import family_of
from mosaic_edge.models.image_settings import video_settings

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
    "internvl3_5": Source(_small_text),
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
        plain = tf.Qwen2Tokenizer  # up to transformers 4 one in Python, which has no such backend
        fast = plain if hasattr(plain, "backend_tokenizer") else tf.Qwen2TokenizerFast
        raw = fast.from_pretrained(folder).backend_tokenizer
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
class Checked:
    """What `mosaic-edge check --json` said of a folder, and what AutoProcessor made of its clip."""

    code: int
    said: dict[str, Any]
    pixels: np.ndarray

    def row(self, what: str) -> dict[str, Any]:
        """The one of this name."""
        (found,) = [row for row in self.said["rows"] if row["what"] == what]
        return found


@cache
def _checking() -> tuple[subprocess.Popen[str], IO[bytes]]:
    """published_check.py over `tools/setup published`, and what it complains of. One process for all that is
    asked: what it imports takes seconds, a check less than one. It ends with this one's end of the pipe."""
    path = os.pathsep.join(filter(None, (str(PROCESSORS), os.environ.get("PYTHONPATH"))))
    complaints = tempfile.TemporaryFile("a+b")  # noqa: SIM115  # as long as the process
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("published_check.py"))],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=complaints,
        text=True,
    )
    atexit.register(process.communicate)
    return process, complaints


def checked(folder: Path, out: Path, *options: str) -> Checked:
    """Run the command in a process that has torchvision."""
    process, complaints = _checking()
    assert process.stdin is not None and process.stdout is not None
    pixels = out / "pixels.npy"
    print(json.dumps([str(pixels), str(folder), *options]), file=process.stdin, flush=True)
    reply = process.stdout.readline()
    if not reply:
        complaints.seek(0)
        pytest.fail(complaints.read()[-3000:].decode())
    answer = json.loads(reply)
    assert answer["code"] in (0, 1) and answer["said"], answer["complained"][-3000:]
    return Checked(answer["code"], json.loads(answer["said"]), np.load(pixels))


class _CaughtError(Exception):
    """The pixels, on their way into a model."""


def our_pixels(folder: Path, frames: np.ndarray, tokens_per_frame: int | None) -> np.ndarray:
    """What our family makes of frames in this process, without a model: by Pillow, where torchvision is not
    installed."""

    def catch(*pixels: torch.Tensor, **named: torch.Tensor) -> None:
        raise _CaughtError(pixels[0] if pixels else named["pixel_values"])

    config = tf.AutoConfig.from_pretrained(folder)
    model = SimpleNamespace(
        config=config, dtype=torch.float32, visual=SimpleNamespace(dtype=torch.float32),
        parameters=lambda: iter([torch.zeros(1)]), get_image_features=catch, get_video_features=catch,
    )  # fmt: skip
    whole = SimpleNamespace(model=model, config=config)
    images = tf.AutoImageProcessor.from_pretrained(folder)
    kind = family_of(config.model_type, str(folder))
    family = kind(str(folder), whole, images, video_settings(folder), tokens_per_frame)
    together = family.temporal_patch_size
    made = []
    for i in range(0, len(frames), together):
        with pytest.raises(_CaughtError) as caught:
            family.encode(frames[i : i + together] if together > 1 else frames[i])
        made.append(caught.value.args[0].numpy())
    return np.concatenate([one.reshape(-1, one.shape[-1]) for one in made])
