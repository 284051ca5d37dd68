"""What a family of vision-language models is to the engine: its picture, the text around it, its time, its
prompt.

A family turns frames into the features that the decoder reads, through the model's own image processor and
vision tower, with the sizes that its video processor has. A frame is a video of one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from mosaic_edge.models.video_text import VIDEO_TEXTS, VideoText
from mosaic_edge.models.vlm import FrameArray, ModelError, RopeSpec

_PIXEL_RULES = ("image_mean", "image_std", "resample", "do_normalize", "do_rescale", "rescale_factor")
"""What a video processor may have otherwise than the image processor beside it."""

Limit = int | Literal["native"] | None
"""tokens_per_frame=: the most that a picture becomes; "native": what the processor allows; None: what is
usual here."""


@dataclass(frozen=True)
class Picture:
    """Features of one picture, and how many of them make a row."""

    features: torch.Tensor  # [n, hidden * (1 + deep layers)]
    columns: int


class Family(ABC):
    """One image in, a fixed number of tokens out, one-dimensional positions: what most families do."""

    types: ClassVar[tuple[str, ...]] = ()
    """`model_type` of config.json."""
    axes = 1
    """Of the rotary positions: 3 under M-RoPE."""

    def __init__(
        self, name: str, model: Any, images: Any, videos: Mapping[str, Any], tokens_per_frame: Limit
    ) -> None:
        """images: the image processor. videos: what the video processor is set to, as far as the checkpoint
        says."""
        self.whole = model  # with its head
        self.name, self.model, self.images, self.videos = name, model.model, images, videos
        self.config = model.config
        self.limit = tokens_per_frame

    @property
    def language(self) -> Any:
        """The decoder: `layers`, `rotary_emb`, `norm`."""
        return self.model.language_model

    @property
    def temporal_patch_size(self) -> int:
        """Frames that become one picture."""
        return 1

    @property
    def deep_layers(self) -> int:
        """Early layers that add features of their own to the picture's tokens."""
        return 0

    @property
    def own_words(self) -> Mapping[int, torch.Tensor]:
        """Embeddings of token ids that the decoder reads something else for than its table has."""
        return {}

    def rope(self, rope: RopeSpec) -> RopeSpec:
        """What the rotary module does not tell."""
        return rope

    @property
    def text(self) -> VideoText:
        """What stands around its video and its pictures."""
        return VIDEO_TEXTS[self.types[0]]

    @property
    def tokens_per_second(self) -> float:
        """Temporal positions a second; 0: a picture takes the next one."""
        return 0.0

    def largest(self) -> tuple[int, int]:
        """Rows and columns of the largest picture. ModelError if tokens_per_frame= cannot be kept to."""
        picture = self.encode(np.full((64, 64, 3), 127, np.uint8))
        rows, columns = len(picture.features) // picture.columns, picture.columns
        if isinstance(self.limit, int) and rows * columns > self.limit:
            raise ModelError(
                f"{self.name}: tokens_per_frame={self.limit}, but every frame of this family is "
                f"{rows * columns} tokens, whatever its size"
            )
        return rows, columns

    def native_tokens(self) -> int:
        """Tokens of the largest picture that the processor would make."""
        rows, columns = self.largest()
        return rows * columns

    def check(self, height: int, width: int) -> None:
        """ValueError for a frame of a size that encode() would refuse."""
        del height, width  # most families take every size

    @abstractmethod
    def encode(self, frame: FrameArray) -> Picture:
        """RGB uint8 [H, W, 3], or [temporal_patch_size, H, W, 3] -> features of the picture they are."""

    def _pixels(self, frame: FrameArray, processor: Any = None, **settings: Any) -> dict[str, torch.Tensor]:
        """What the image processor, or another, makes of a frame, where and as the model wants it."""
        rules = {key: self.videos[key] for key in _PIXEL_RULES if key in self.videos}
        made = (processor or self.images)(
            images=[frame], return_tensors="pt", input_data_format="channels_last", **(rules | settings)
        )
        weight = next(self.model.parameters())
        return {
            key: value.to(weight.device, self._vision_type() if value.is_floating_point() else None)
            for key, value in made.items()
            if isinstance(value, torch.Tensor)
        }

    def _video_size(self) -> dict[str, Any]:
        """size= where the video processor has one of its own."""
        return {"size": self.videos["size"]} if "size" in self.videos else {}

    def _vision_type(self) -> torch.dtype:
        return self.model.dtype


def pooled(made: Any) -> torch.Tensor:
    """Features [n, hidden] out of what get_image_features gives: an output object (transformers 5), tensors
    (4)."""
    return joined(getattr(made, "pooler_output", made))


def joined(parts: Any) -> torch.Tensor:
    """Tensors of rows, one behind the other: [n, hidden]."""
    parts = torch.cat(list(parts)) if isinstance(parts, list | tuple) else parts
    return parts.reshape(-1, parts.shape[-1])


def square(features: torch.Tensor) -> Picture:
    """Features as rows of a square, or as one row."""
    side = isqrt(len(features))
    return Picture(features, side if side * side == len(features) else len(features))
