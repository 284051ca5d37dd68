"""What differs between families of vision-language models: their picture, the text around it, its time, their
prompt.

A family turns one frame into the features that the decoder reads, through the model's own image processor and
vision tower. A frame is a video of one: where the tower takes frames in pairs (Qwen) it is doubled, as for a
still image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any, ClassVar

import torch

from mosaic_edge.models.hf.prompt import NEWLINE, Prompt
from mosaic_edge.models.vlm import FrameArray, ModelError, RopeSpec


@dataclass(frozen=True)
class Picture:
    """Features of one frame, and how many of them make a row."""

    features: torch.Tensor  # [n, hidden * (1 + deep layers)]
    columns: int


class Family:
    """One image in, a fixed number of tokens out, one-dimensional positions: what most families do."""

    types: ClassVar[tuple[str, ...]] = ()
    """`model_type` of config.json."""
    axes = 1
    """Of the rotary positions: 3 under M-RoPE."""
    prompt = Prompt("", "{question}")
    """The published one, for checkpoints without a chat template."""
    video_mark = "<video>"
    """What a chat template writes where the video goes."""

    def __init__(self, name: str, model: Any, images: Any, tokens_per_frame: int | None) -> None:
        self.name, self.model, self.images = name, model.model, images
        self.config = model.config
        self.limit = tokens_per_frame

    @property
    def language(self) -> Any:
        """The decoder: `layers`, `rotary_emb`, `norm`."""
        return self.model.language_model

    @property
    def deep_layers(self) -> int:
        """Early layers that add features of their own to the picture's tokens."""
        return 0

    def rope(self, rope: RopeSpec) -> RopeSpec:
        """What the rotary module does not tell."""
        return rope

    def lead(self, pts: float, number: int) -> str:
        """Text before the picture of frame `number`, at `pts` seconds."""
        return ""

    def trail(self) -> str:
        """Text behind it."""
        return ""

    @property
    def tokens_per_second(self) -> float:
        """Temporal positions a second; 0: a frame takes the next one."""
        return 0.0

    def largest(self) -> tuple[int, int]:
        """Rows and columns of the largest picture. ModelError if tokens_per_frame= cannot be kept to."""
        picture = self.encode(_grey(64, 64))
        rows, columns = len(picture.features) // picture.columns, picture.columns
        if self.limit is not None and rows * columns > self.limit:
            raise ModelError(
                f"{self.name}: tokens_per_frame={self.limit}, but every frame of this family is "
                f"{rows * columns} tokens, whatever its size"
            )
        return rows, columns

    def encode(self, frame: FrameArray) -> Picture:
        """RGB uint8 [H, W, 3] -> its features."""
        raise NotImplementedError

    def _pixels(self, frame: FrameArray, **settings: Any) -> dict[str, torch.Tensor]:
        """What the image processor makes of a frame, where and as the model wants it."""
        made = self.images(images=[frame], return_tensors="pt", input_data_format="channels_last", **settings)
        weight = next(self.model.parameters())
        return {
            key: value.to(weight.device, self._vision_type() if value.is_floating_point() else None)
            for key, value in made.items()
            if isinstance(value, torch.Tensor)
        }

    def _vision_type(self) -> torch.dtype:
        return self.model.dtype


class Llava(Family):
    """LLaVA 1.5 (and mosaic-tiny)."""

    types = ("llava",)
    prompt = Prompt("USER: ", "\n{question} ASSISTANT:", "</s>USER: {question} ASSISTANT:")
    video_mark = "<image>"

    def encode(self, frame: FrameArray) -> Picture:
        """The processor's one crop, through tower and projector."""
        return self.encode_pixels(self._pixels(frame)["pixel_values"])

    def encode_pixels(self, pixels: torch.Tensor) -> Picture:
        """Pixels [1, 3, H, W], normalised."""
        weight = next(self.model.parameters())
        return _square(_pooled(self.model.get_image_features(pixels.to(weight.device, self.model.dtype))))


class LlavaOneVision(Family):
    """Frames are pooled 2 x 2; one newline embedding ends the video."""

    types = ("llava_onevision",)
    prompt = Prompt(
        "<|im_start|>user ",
        "\n{question}<|im_end|><|im_start|>assistant\n",
        "<|im_end|><|im_start|>user \n{question}<|im_end|><|im_start|>assistant\n",
    ).behind_video(NEWLINE)

    def encode(self, frame: FrameArray) -> Picture:
        """The whole frame at the tower's size, as the video processor has it: no tiles."""
        side = int(self.config.vision_config.image_size)
        pixels = self._pixels(frame, image_grid_pinpoints=[[side, side]])["pixel_values"]
        features = _pooled(
            self.model.get_video_features(
                pixels[:, :1],
                vision_feature_layer=self.config.vision_feature_layer,  # 4.57 asks for these two
                vision_feature_select_strategy=self.config.vision_feature_select_strategy,
            )
        )
        # A newline may stand behind the square (newer transformers): it ends the video, not the frame.
        return _square(features[: isqrt(len(features)) ** 2])


class SmolVlm(Family):
    """SmolVLM 2: every frame has its time and stands between tags. The published intro counts the frames and
    the length of the video, which a stream does not know: it is left without the numbers.
    """

    types = ("smolvlm",)
    prompt = (
        Prompt(
            "<|im_start|>User: ",
            "{question}<end_of_utterance>\nAssistant:",
            "<end_of_utterance>\nUser: {question}<end_of_utterance>\nAssistant:",
        )
        .before_video("You are provided the following series of frames from a video.")
        .behind_video("\n\n")
    )

    @property
    def language(self) -> Any:
        """Its name differs."""
        return self.model.text_model

    def lead(self, pts: float, number: int) -> str:
        """The intro ends with a line break of its own, which belongs to the first frame's text."""
        start = "\n" if number == 0 else ""
        stamp = f"{int(pts // 60):02d}:{int(pts % 60):02d}"
        return f"{start}\nFrame from {stamp}:<fake_token_around_image><global-img>"

    def trail(self) -> str:
        """The tag that opens the picture closes it."""
        return "<fake_token_around_image>"

    def encode(self, frame: FrameArray) -> Picture:
        """One square of the tower's size: no tiles."""
        side = int(self.config.vision_config.image_size)
        pixels = self._pixels(
            frame,
            do_image_splitting=False,
            size={"longest_edge": side},
            max_image_size={"longest_edge": side},
        )
        features = self.model.get_image_features(
            pixels["pixel_values"], pixels["pixel_attention_mask"].bool()
        )
        return _square(_pooled(features))


class InternVl(Family):
    """InternVL 2.5, 3 and 3.5 in the transformers layout: numbered frames."""

    types = ("internvl",)
    prompt = Prompt(
        "<|im_start|>user\n",
        "\n{question}<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n",
    )

    def lead(self, pts: float, number: int) -> str:
        """Frames are separated by a line break."""
        return f"{'' if number == 0 else chr(10)}Frame{number + 1}: <img>"

    def trail(self) -> str:
        """The closing tag."""
        return "</img>"

    def encode(self, frame: FrameArray) -> Picture:
        """One square: no tiles."""
        pixels = self._pixels(frame, crop_to_patches=False)["pixel_values"]
        return _square(_pooled(self.model.get_image_features(pixel_values=pixels)))


class Qwen2Vl(Family):
    """Pictures of any size under M-RoPE: a frame is the next temporal position."""

    types = ("qwen2_vl",)
    axes = 3
    prompt = Prompt(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>",
        "<|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n",
    )
    video_mark = "<|video_pad|>"
    usual_tokens = 196
    """tokens_per_frame= where it is not given (a still image may have thousands)."""

    def largest(self) -> tuple[int, int]:
        """As many tokens as the limit says: a picture may be that many columns wide."""
        limit = self.usual_tokens if self.limit is None else self.limit
        if limit < 1:
            raise ValueError(f"tokens_per_frame={limit}: expected 1 or more")
        return 1, limit

    def encode(self, frame: FrameArray) -> Picture:
        """Resized to a multiple of a merged patch, its shape kept, within tokens_per_frame."""
        side = int(self.images.patch_size) * int(self.images.merge_size)
        most = self.largest()[1] * side * side
        bounds = _bounds(self.images)
        # A small frame is enlarged to the least, each side rounded up: a quarter leaves room for that.
        size = {"shortest_edge": min(bounds[0], most // 4), "longest_edge": min(bounds[1], most)}
        height, width = frame.shape[:2]
        if (
            max(height, width) > 200 * min(height, width)
            or max(height, width) // min(height, width) > self.largest()[1]
        ):
            raise ValueError(
                f"a frame of {height} x {width} is too long for {self.largest()[1]} tokens a frame"
            )
        pixels = self._pixels(frame, size=size)
        grid = pixels["image_grid_thw"]
        columns = int(grid[0, 2]) // int(self.images.merge_size)
        return Picture(self._features(pixels["pixel_values"], grid), columns)

    def _features(self, pixels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        return _pooled(self.model.get_image_features(pixels, grid))

    def _vision_type(self) -> torch.dtype:
        return self.model.visual.dtype


class Qwen25Vl(Qwen2Vl):
    """Absolute time: `tokens_per_second` positions a second."""

    types = ("qwen2_5_vl",)

    @property
    def tokens_per_second(self) -> float:
        """As config.json has it."""
        return float(self.config.vision_config.tokens_per_second)


class Qwen3Vl(Qwen2Vl):
    """Time stamps in words, every frame between tags; rows and columns are counted from the frame's position;
    features of three layers of the tower are added in the first layers of the decoder (DeepStack).
    """

    types = ("qwen3_vl",)
    prompt = replace(
        Qwen2Vl.prompt,
        prefix="<|im_start|>user\n",
        template="{question}<|im_end|>\n<|im_start|>assistant\n",
    )
    video_mark = "<|vision_start|><|video_pad|><|vision_end|>"

    @property
    def deep_layers(self) -> int:
        """One for each tapped layer of the tower."""
        return len(self.config.vision_config.deepstack_visual_indexes)

    def rope(self, rope: RopeSpec) -> RopeSpec:
        """Sections take turns."""
        return replace(rope, sections_interleaved=True, grid_follows_time=True)

    def lead(self, pts: float, number: int) -> str:
        """Seconds with one decimal."""
        return f"<{pts:.1f} seconds><|vision_start|>"

    def trail(self) -> str:
        """The closing tag."""
        return "<|vision_end|>"

    def _features(self, pixels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        made = self.model.get_image_features(pixels, grid)
        if isinstance(made, tuple):  # transformers 4
            first, deep = made
        else:
            first, deep = made.pooler_output, made.deepstack_features
        return torch.cat([_joined(part) for part in (first, *deep)], dim=-1)


FAMILIES: tuple[type[Family], ...] = (Qwen25Vl, Qwen2Vl, Qwen3Vl, LlavaOneVision, SmolVlm, InternVl, Llava)


def family_of(kind: str, name: str) -> type[Family]:
    """The family of a config's model_type. ModelError names those there are."""
    for family in FAMILIES:
        if kind in family.types:
            return family
    supported = ", ".join(sorted(kind for family in FAMILIES for kind in family.types))
    raise ModelError(f"{name}: model_type={kind!r} is not supported; supported are: {supported}")


def _pooled(made: Any) -> torch.Tensor:
    """Features [n, hidden] out of what get_image_features gives: an output object (transformers 5), tensors
    (4)."""
    return _joined(getattr(made, "pooler_output", made))


def _joined(parts: Any) -> torch.Tensor:
    parts = torch.cat(list(parts)) if isinstance(parts, list | tuple) else parts
    return parts.reshape(-1, parts.shape[-1])


def _square(features: torch.Tensor) -> Picture:
    side = isqrt(len(features))
    return Picture(features, side if side * side == len(features) else len(features))


def _bounds(images: Any) -> tuple[int, int]:
    """Least and most pixels of a picture, as the processor is set."""
    size = images.size
    read: Callable[[str], Any] = size.get if isinstance(size, dict) else lambda key: getattr(size, key, None)
    least = read("shortest_edge") or getattr(images, "min_pixels", None)
    most = read("longest_edge") or getattr(images, "max_pixels", None)
    return int(least or 1), int(most or 1 << 40)


def _grey(height: int, width: int) -> FrameArray:
    import numpy as np

    return np.full((height, width, 3), 127, np.uint8)
