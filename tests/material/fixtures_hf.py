"""Real architectures of transformers in small sizes with random weights, saved as any checkpoint is.

Weights are large enough that attention picks and logits differ, so that a wrong position or a lost key shows.
The tokenizer knows every byte and the family's special tokens, so that any text has token ids.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

SPECIAL = (
    "<pad>", "<end>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>", "<image>", "<video>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>",
    "<img>", "</img>", "<IMG_CONTEXT>",
)  # fmt: skip
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
ID = {token: i for i, token in enumerate([*SPECIAL, *BYTES])}
VOCAB = len(ID) + 5  # as real ones: more rows than tokens
HIDDEN = 96
EOS = ID["<end>"]

TEXT: dict[str, Any] = dict(
    vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=112, num_hidden_layers=3, num_attention_heads=6,
    num_key_value_heads=2, max_position_embeddings=8192, tie_word_embeddings=False, bos_token_id=None,
    eos_token_id=EOS, pad_token_id=0,
)  # fmt: skip


def rope(theta: float = 1e6, **more: Any) -> dict[str, Any]:
    """As published checkpoints say it; transformers 5 reads this too, 4 reads nothing else."""
    return {"rope_theta": theta, "rope_scaling": {"rope_type": "default", **more} if more else None}


def tokenizer(chat_template: str | None = None) -> Any:
    """Bytes and special tokens, nothing merged: text falls into the same ids wherever it is cut."""
    raw = Tokenizer(BPE(vocab=ID, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(list(SPECIAL))
    made = tf.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<end>",
        model_input_names=["input_ids", "attention_mask"],  # as of decoders: no kinds of tokens
    )  # fmt: skip
    if chat_template is not None:
        made.chat_template = chat_template
    return made


QWEN_IDS = dict(
    image_token_id=ID["<|image_pad|>"], video_token_id=ID["<|video_pad|>"],
    vision_start_token_id=ID["<|vision_start|>"], vision_end_token_id=ID["<|vision_end|>"],
)  # fmt: skip


def qwen2_vl() -> Any:
    vision = dict(depth=2, embed_dim=32, hidden_size=HIDDEN, num_heads=2, mlp_ratio=2)
    text = TEXT | rope(mrope_section=[2, 3, 3])
    config = tf.Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **QWEN_IDS)
    return tf.Qwen2VLForConditionalGeneration(config)


def qwen2_5_vl() -> Any:
    vision = dict(
        depth=2, hidden_size=32, num_heads=2, intermediate_size=48, out_hidden_size=HIDDEN, window_size=56,
        fullatt_block_indexes=[1], tokens_per_second=2,
    )  # fmt: skip
    text = TEXT | rope(mrope_section=[2, 3, 3])
    config = tf.Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=False, **QWEN_IDS
    )
    return tf.Qwen2_5_VLForConditionalGeneration(config)


def qwen3_vl() -> Any:
    vision = dict(
        depth=3, hidden_size=32, num_heads=2, intermediate_size=48, out_hidden_size=HIDDEN, patch_size=16,
        deepstack_visual_indexes=[0, 1], num_position_embeddings=64,
    )  # fmt: skip
    text = TEXT | dict(head_dim=24) | rope(5e6, mrope_section=[4, 4, 4], mrope_interleaved=True)
    config = tf.Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **QWEN_IDS)
    return tf.Qwen3VLForConditionalGeneration(config)


def llava_onevision() -> Any:
    vision = dict(
        model_type="siglip_vision_model", hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, image_size=70, patch_size=14, vision_use_head=False,
    )  # fmt: skip
    config = tf.LlavaOnevisionConfig(
        vision_config=vision, text_config=TEXT | dict(model_type="qwen2") | rope(),
        image_token_index=ID["<image>"], video_token_index=ID["<video>"],
        image_grid_pinpoints=[[70, 70], [70, 140]], vision_feature_layer=-1,
        vision_feature_select_strategy="full", tie_word_embeddings=False,
    )  # fmt: skip
    return tf.LlavaOnevisionForConditionalGeneration(config)


def smolvlm() -> Any:
    vision = dict(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=48,
        patch_size=8,
    )
    config = tf.SmolVLMConfig(
        vision_config=vision, text_config=TEXT | dict(model_type="llama") | rope(1e5), scale_factor=2,
        image_token_id=ID["<image>"], pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    return tf.SmolVLMForConditionalGeneration(config)


def internvl() -> Any:
    vision = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=[56, 56],
        patch_size=[14, 14],
    )  # fmt: skip
    config = tf.InternVLConfig(
        vision_config=vision, text_config=TEXT | dict(model_type="qwen2") | rope(),
        image_token_id=ID["<IMG_CONTEXT>"], image_seq_length=4, vision_feature_layer=-1,
        tie_word_embeddings=False,
    )  # fmt: skip
    return tf.InternVLForConditionalGeneration(config)


def qwen_images() -> Any:
    return tf.Qwen2VLImageProcessor(size={"shortest_edge": 784, "longest_edge": 28 * 28 * 16})


def qwen3_images() -> Any:
    return tf.Qwen2VLImageProcessor(
        patch_size=16, size={"shortest_edge": 1024, "longest_edge": 32 * 32 * 16}, image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )  # fmt: skip


def onevision_images() -> Any:
    return tf.LlavaOnevisionImageProcessor(
        size={"height": 70, "width": 70}, image_grid_pinpoints=[[70, 70], [70, 140]]
    )


def smolvlm_images() -> Any:
    return tf.SmolVLMImageProcessor(size={"longest_edge": 96}, max_image_size={"longest_edge": 48})


def internvl_images() -> Any:
    return tf.GotOcr2ImageProcessor(size={"height": 56, "width": 56})


FAMILIES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "qwen2_5_vl": (qwen2_5_vl, qwen_images),
    "qwen2_vl": (qwen2_vl, qwen_images),
    "qwen3_vl": (qwen3_vl, qwen3_images),
    "llava_onevision": (llava_onevision, onevision_images),
    "smolvlm": (smolvlm, smolvlm_images),
    "internvl": (internvl, internvl_images),
}


def write_checkpoint(kind: str, folder: Path, chat_template: str | None = None) -> Path:
    """A directory as save_pretrained writes it; the end token never wins."""
    build, images = FAMILIES[kind]
    torch.manual_seed(len(kind))
    model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 1.2 / parameter[0].numel() ** 0.5)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        model.get_input_embeddings().weight.normal_(0, 1)
        model.lm_head.weight[EOS] = 0
    model.generation_config.eos_token_id = EOS
    model.save_pretrained(folder)
    images().save_pretrained(folder)
    tokenizer(chat_template).save_pretrained(folder)
    return folder


def picture(number: int, height: int = 60, width: int = 92) -> np.ndarray:
    """Coarse noise, so that frames differ after any resizing: uint8 [H, W, 3]."""
    random = np.random.default_rng(number)
    coarse = random.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width])


def text_ids(text: str) -> list[int]:
    """Ids as the vocabulary has them, worked out without a tokenizer."""
    table = {bytes([b]): c for b, c in _byte_letters().items()}
    out, at = [], 0
    while at < len(text):
        special = next((s for s in SPECIAL if text.startswith(s, at)), None)
        if special is not None:
            out.append(ID[special])
            at += len(special)
        else:
            out += [ID[table[bytes([b])]] for b in text[at].encode()]
            at += 1
    return out


def _byte_letters() -> dict[int, str]:
    """GPT-2's printable letter of every byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


OUTER_TAGS = ("<|vision_start|>", "<|vision_end|>")


def keeps_outer_tags() -> bool:
    """Whether this transformers' processor of Qwen3-VL keeps the tags that a chat template writes around a
    video."""
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

    return hasattr(Qwen3VLProcessor, "replace_video_token")


@dataclass
class Library:
    """The library's own full-cache run of a conversation, one block after the other.

    Ids, pixels and (for M-RoPE) positions are put together here from the published format; forward, vision
    tower, cache and attention are the library's.
    """

    kind: str
    model: Any
    images: Any
    cache: Any = field(default_factory=tf.DynamicCache)
    next: int = 0
    """The position of the next token of text."""

    @property
    def multi(self) -> bool:
        return self.kind.startswith("qwen")

    def read(self, frames: list[np.ndarray], times: list[float], question: str) -> torch.Tensor:
        """Prefix, video and the first question: logits [vocab] of the last token."""
        ids, inputs, positions = getattr(self, f"_{self.kind}")(frames, times, question)
        self.next = int(positions.max()) + 1
        inputs = {k: v for k, v in inputs.items() if isinstance(v, torch.Tensor)}
        if self.multi:
            inputs["position_ids"] = positions
        with torch.inference_mode():
            out = self.model(
                input_ids=torch.tensor([ids]), past_key_values=self.cache, use_cache=True,
                attention_mask=torch.ones(1, len(ids), dtype=torch.long), **inputs,
            )  # fmt: skip
        return out.logits[0, -1]

    def say(self, ids: list[int]) -> torch.Tensor:
        """More text: logits of the last token."""
        n = len(ids)
        positions = torch.arange(self.next, self.next + n)
        self.next += n
        length = self.cache.get_seq_length() + n
        with torch.inference_mode():
            out = self.model(
                input_ids=torch.tensor([ids]), past_key_values=self.cache, use_cache=True,
                position_ids=positions.expand(3, 1, n) if self.multi else positions[None],
                attention_mask=torch.ones(1, length, dtype=torch.long),
            )  # fmt: skip
        return out.logits[0, -1]

    def answer(self, logits: torch.Tensor, steps: int) -> tuple[list[int], list[np.ndarray]]:
        """Greedy tokens, and the logits each was drawn from and the one behind the last."""
        tokens, seen = [], [logits.numpy()]
        for _ in range(steps):
            tokens.append(int(logits.argmax()))
            logits = self.say(tokens[-1:])
            seen.append(logits.numpy())
        return tokens, seen

    def _video(self, frames: list[np.ndarray]) -> tuple[dict[str, Any], int, int]:
        """All frames as one video, two to a patch: pixels, and rows and columns of the decoder's grid."""
        frames = frames + frames[-1:] * (len(frames) % 2)
        made = [self.images(images=[f], return_tensors="pt") for f in frames]
        _, h, w = made[0]["image_grid_thw"][0].tolist()
        stills = [m["pixel_values"].reshape(h * w, 3, 2, -1) for m in made]  # [patch, colour, moment, pixel]
        pairs = zip(stills[::2], stills[1::2], strict=True)
        pixels = torch.cat([torch.stack([a[:, :, 0], b[:, :, 1]], 2).reshape(h * w, -1) for a, b in pairs])
        grid = torch.tensor([[len(frames) // 2, h, w]])
        return {"pixel_values_videos": pixels, "video_grid_thw": grid}, h // 2, w // 2

    def _qwen(self, frames: list[np.ndarray], moments: list[int], question: str) -> Any:
        inputs, rows, columns = self._video(frames)
        prefix = text_ids(
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        )
        ask = text_ids(f"<|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n")
        ids = prefix + [ID["<|video_pad|>"]] * (len(moments) * rows * columns) + ask
        start = len(prefix)
        positions = [(i, i, i) for i in range(start)]
        positions += [
            (start + t, start + y, start + x) for t in moments for y in range(rows) for x in range(columns)
        ]
        behind = max(max(p) for p in positions) + 1
        positions += [(behind + i,) * 3 for i in range(len(ask))]
        return ids, inputs, torch.tensor(positions).T[:, None]

    def _qwen2_vl(self, frames: list[np.ndarray], times: list[float], question: str) -> Any:
        return self._qwen(frames, list(range(len(times[::2]))), question)

    def _qwen2_5_vl(self, frames: list[np.ndarray], times: list[float], question: str) -> Any:
        return self._qwen(frames, [int((t - times[0]) * 2) for t in times[::2]], question)

    def _qwen3_vl(self, frames: list[np.ndarray], times: list[float], question: str) -> Any:
        inputs, rows, columns = self._video(frames)
        ids: list[int] = []
        positions: list[tuple[int, int, int]] = []

        def write(text: str) -> None:
            at = max((max(p) for p in positions), default=-1) + 1
            new = text_ids(text)
            ids.extend(new)
            positions.extend((at + i,) * 3 for i in range(len(new)))

        around = OUTER_TAGS if keeps_outer_tags() else ("", "")
        write("<|im_start|>user\n" + around[0])
        for time in [(a + b) / 2 for a, b in zip(times[::2], times[1::2] + times[-1:], strict=False)]:
            write(f"<{time:.1f} seconds><|vision_start|>")
            at = positions[-1][0] + 1
            ids.extend([ID["<|video_pad|>"]] * (rows * columns))
            positions.extend((at, at + y, at + x) for y in range(rows) for x in range(columns))
            write("<|vision_end|>")
        write(f"{around[1]}{question}<|im_end|>\n<|im_start|>assistant\n")
        return ids, inputs, torch.tensor(positions).T[:, None]

    def _llava_onevision(self, frames: list[np.ndarray], times: list[float], question: str) -> Any:
        # The library's video processor resizes the whole frame: the first of the image processor's two crops.
        pixels = torch.stack(
            [self.images(images=[f], return_tensors="pt")["pixel_values"][0, 0] for f in frames]
        )
        video = [ID["<video>"]] * (len(frames) * 9 + 1)
        ids = text_ids("<|im_start|>user ") + video
        ids += text_ids(f"\n{question}<|im_end|><|im_start|>assistant\n")
        return ids, {"pixel_values_videos": pixels[None]}, torch.arange(len(ids))

    def _smolvlm(self, frames: list[np.ndarray], times: list[float], question: str) -> Any:
        made = [self.images(images=[[f]], do_image_splitting=False, return_tensors="pt") for f in frames]
        inputs = {
            name: torch.cat([m[name] for m in made], dim=1)
            for name in ("pixel_values", "pixel_attention_mask")
        }
        text = "<|im_start|>User: You are provided the following series of frames from a video.\n"
        for time in times:
            stamp = f"{int(time // 60):02d}:{int(time % 60):02d}"
            text += f"\nFrame from {stamp}:<fake_token_around_image><global-img>"
            text += "<image>" * 9 + "<fake_token_around_image>"
        ids = text_ids(text + f"\n\n{question}<end_of_utterance>\nAssistant:")
        return ids, inputs, torch.arange(len(ids))

    def _internvl(self, frames: list[np.ndarray], times: list[float], question: str) -> Any:
        pixels = torch.cat(
            [
                self.images(images=[f], crop_to_patches=False, return_tensors="pt")["pixel_values"]
                for f in frames
            ]
        )
        video = "\n".join(f"Frame{i + 1}: <img>{'<IMG_CONTEXT>' * 4}</img>" for i in range(len(frames)))
        text = f"<|im_start|>user\n{video}\n{question}<|im_end|>\n<|im_start|>assistant\n"
        ids = text_ids(text)
        return ids, {"pixel_values": pixels}, torch.arange(len(ids))
