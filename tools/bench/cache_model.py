"""One Qwen2.5-VL-shaped model with random weights, its frames, and the prompt around them.

The architecture is transformers' own; sizes follow the published 3B config, with fewer layers where a
machine is small. The tokenizer knows every byte and nothing more: what is timed does not depend on words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from mosaic_edge.models.hf.load import Parts
from mosaic_edge.models.hf.qwen_families import Qwen25Vl
from mosaic_edge.models.hf.vlm import HfVlm
from mosaic_edge.models.vlm import Attend, EncodedFrame, FloatArray, FrameArray, VlmSpec
from mosaic_edge.world.world import World

SPECIAL = ("<pad>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
IDS = {token: i for i, token in enumerate([*SPECIAL, *BYTES])}
END = IDS["<|im_end|>"]


@dataclass(frozen=True)
class Size:
    """What is built. Widths of the decoder, of the vision tower, and pixels of a frame."""

    words: str
    """Said in the table."""
    dtype: torch.dtype
    text: dict[str, Any]
    vision: dict[str, Any]
    tokens: int
    """A frame's tokens; its side is 28 pixels for each token of a row."""

    @property
    def cached_bytes_per_frame(self) -> int:
        """Keys and values of a frame in a cache of the model's own number format."""
        head = self.text["hidden_size"] // self.text["num_attention_heads"]
        row = 2 * self.text["num_key_value_heads"] * head * self.dtype.itemsize
        return int(self.tokens * self.text["num_hidden_layers"] * row)


WIDTHS_3B: dict[str, Any] = dict(
    vocab_size=151_936, hidden_size=2048, intermediate_size=11_008, num_attention_heads=16,
    num_key_value_heads=2, tie_word_embeddings=True,
    rope_theta=1e6, rope_scaling=dict(rope_type="default", mrope_section=[16, 24, 24]),
)  # fmt: skip
TOWER_3B: dict[str, Any] = dict(
    hidden_size=1280, num_heads=16, intermediate_size=3420, out_hidden_size=2048, tokens_per_second=2
)
SIZES = {
    "tiny": Size(
        "a toy for tests: 2 layers, 4 query and 2 KV heads of 32",
        torch.float32,
        dict(
            vocab_size=len(IDS) + 5, hidden_size=128, intermediate_size=112, num_attention_heads=4,
            num_key_value_heads=2, num_hidden_layers=2, tie_word_embeddings=False,
            rope_theta=1e6, rope_scaling=dict(rope_type="default", mrope_section=[4, 6, 6]),
        ),
        dict(depth=1, hidden_size=32, num_heads=2, intermediate_size=48, out_hidden_size=128,
             fullatt_block_indexes=[0], tokens_per_second=2),
        16,
    ),
    "small": Size(
        "widths of Qwen2.5-VL-3B (hidden 2048, MLP 11,008, 16 query and 2 KV heads of 128, vocabulary "
        "151,936), 4 of its 36 decoder layers, 2 of its 32 vision blocks",
        torch.bfloat16,
        WIDTHS_3B | dict(num_hidden_layers=4),
        TOWER_3B | dict(depth=2, fullatt_block_indexes=[1]),
        64,
    ),
    "3b": Size(
        "the shape of Qwen2.5-VL-3B, all 36 decoder layers and 32 vision blocks",
        torch.bfloat16,
        WIDTHS_3B | dict(num_hidden_layers=36),
        TOWER_3B | dict(depth=32, fullatt_block_indexes=[7, 15, 23, 31]),
        64,
    ),
}  # fmt: skip


class Recorded:
    """A model whose vision tower has run already: frames come in the order they were encoded in.

    Every contestant reads the same tokens, and its times are of decoder and cache alone.
    """

    def __init__(self, model: HfVlm, frames: Sequence[EncodedFrame]) -> None:
        self.model, self.frames = model, frames

    @property
    def spec(self) -> VlmSpec:
        return replace(self.model.spec, temporal_patch_size=1)  # what was recorded are whole pictures

    def encode(self, frame: FrameArray, pts: float, elapsed: float, number: int) -> EncodedFrame:
        return self.frames[number]

    def embed_text(self, ids: Sequence[int]) -> FloatArray:
        return self.model.embed_text(ids)

    def tokenize(self, text: str, plain: tuple[int, int] | None = None) -> list[int]:
        return self.model.tokenize(text, plain)

    def detokenize(self, ids: Sequence[int]) -> str:
        return self.model.detokenize(ids)

    def forward(self, embeds: FloatArray, attend: Attend, want_logits: bool = True) -> FloatArray | None:
        return self.model.forward(embeds, attend, want_logits)


def build_model(size: Size, seed: int = 7) -> HfVlm:
    """The model in memory; nothing is written or fetched."""
    text = size.text | dict(
        max_position_embeddings=128_000, bos_token_id=None, eos_token_id=END, pad_token_id=0
    )
    tied = bool(size.text["tie_word_embeddings"])
    config = tf.Qwen2_5_VLConfig(
        text_config=text, vision_config=size.vision, tie_word_embeddings=tied,
        image_token_id=IDS["<|video_pad|>"], video_token_id=IDS["<|video_pad|>"],
        vision_start_token_id=IDS["<|vision_start|>"], vision_end_token_id=IDS["<|vision_end|>"],
    )  # fmt: skip
    torch.manual_seed(seed)
    model = tf.AutoModelForImageTextToText.from_config(config, dtype=size.dtype)
    _fill(model)
    model.generation_config.eos_token_id = END
    side = 28 * int(size.tokens**0.5)
    images = tf.Qwen2VLImageProcessor(size={"shortest_edge": side * side // 4, "longest_edge": side * side})
    parts = Parts(
        Path("Qwen2.5-VL-shaped"), model.eval(), images, images.to_dict(), _tokenizer(), None, Qwen25Vl
    )
    return HfVlm.of(parts, size.tokens)


def encode_frames(model: HfVlm, size: Size, count: int) -> list[EncodedFrame]:
    """`count` frames of the procedural world, one a second, through the vision tower."""
    cells = int(size.tokens**0.5)
    world = World(seed=3, seconds=float(count + 1), difficulty="lively")
    frames = []
    for number in range(count):
        picture = world.render(float(number), size=7 * cells).repeat(4, axis=0).repeat(4, axis=1)
        frames.append(model.encode(np.ascontiguousarray(picture), float(number), float(number), number))
    return frames


def _fill(model: Any) -> None:
    """Random weights under which attention picks and logits differ; the end token's logit is 0, so that the
    largest of the others comes first and every answer has its full length.
    """
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.ndim >= 2:
                weights.normal_(0, 1.2 / weights[0].numel() ** 0.5)
            else:
                weights.fill_(0.0 if name.endswith("bias") else 1.0)
        model.get_output_embeddings().weight[END] = 0


def _tokenizer() -> Any:
    """Bytes and special tokens, nothing merged."""
    raw = Tokenizer(BPE(vocab=IDS, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(list(SPECIAL))
    return tf.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<|im_end|>")
