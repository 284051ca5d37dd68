"""Families whose frame is one square picture of a fixed number of tokens: LLaVA, LLaVA-NeXT-Video,
LLaVA-OneVision, SmolVLM and Idefics 3, InternVL, Ovis 2, PerceptionLM. None cuts tiles out of a frame, as for
a video."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
import transformers

from mosaic_edge.models.hf.family import Family, Picture, pooled, square
from mosaic_edge.models.vlm import FrameArray


class Llava(Family):
    """LLaVA 1.5 (and mosaic-tiny): frames are pictures."""

    types = ("llava",)

    def encode(self, frame: FrameArray) -> Picture:
        """The processor's one crop, through tower and projector."""
        return self.encode_pixels(self._pixels(frame)["pixel_values"])

    def encode_pixels(self, pixels: torch.Tensor) -> Picture:
        """Pixels [1, 3, H, W], normalised."""
        weight = next(self.model.parameters())
        return square(pooled(self.model.get_image_features(pixels.to(weight.device, self.model.dtype))))


class LlavaNextVideo(Family):
    """Frames are pooled by the tower's side; its image processor would cut tiles, its video processor does
    not: a frame is made as CLIP has it."""

    types = ("llava_next_video",)

    def encode(self, frame: FrameArray) -> Picture:
        """One crop, pooled."""
        sizes = {name: self.videos[name] for name in ("size", "crop_size") if name in self.videos}
        keep = {name: getattr(self.images, name) for name in ("image_mean", "image_std", "resample")}
        crop = _clip_processor()(**keep)
        pixels = self._pixels(frame, processor=crop, **sizes)["pixel_values"]
        features = self.model.get_video_features(
            pixels[None],
            vision_feature_layer=self.config.vision_feature_layer,
            vision_feature_select_strategy=self.config.vision_feature_select_strategy,
        )
        return square(pooled(features))


def _clip_processor() -> Any:
    """CLIP's, with torchvision where that is installed, as video processors are; it had a name of its own up
    to transformers 5.2. Without torchvision transformers has a remark on it, whatever the family: so it is
    named where it is used."""
    if transformers.utils.is_torchvision_available():
        return getattr(transformers, "CLIPImageProcessorFast", transformers.CLIPImageProcessor)
    return transformers.CLIPImageProcessor


class LlavaOneVision(Family):
    """Frames are pooled 2 x 2; one newline embedding ends the video."""

    types = ("llava_onevision",)

    def encode(self, frame: FrameArray) -> Picture:
        """The whole frame at the tower's size, as the video processor has it."""
        side = int(self.config.vision_config.image_size)
        pixels = self._pixels(frame, image_grid_pinpoints=[[side, side]], **self._video_size())[
            "pixel_values"
        ]
        features = pooled(
            self.model.get_video_features(
                pixels[:, :1],
                vision_feature_layer=self.config.vision_feature_layer,  # 4.57 asks for these two
                vision_feature_select_strategy=self.config.vision_feature_select_strategy,
            )
        )
        # A newline may stand behind the square (newer transformers): it ends the video, not the frame.
        return square(features[: isqrt(len(features)) ** 2])


class Idefics3(Family):
    """Idefics 3, SmolVLM 1, granite-docling: frames are pictures between tags."""

    types = ("idefics3",)

    @property
    def language(self) -> Any:
        """Its name differs."""
        return self.model.text_model

    def encode(self, frame: FrameArray) -> Picture:
        """One square of the tower's size."""
        pixels = self._pixels(frame, do_image_splitting=False, **self._video_size())
        features = self.model.get_image_features(
            pixels["pixel_values"], pixels["pixel_attention_mask"].bool()
        )
        return square(pooled(features))

    def _video_size(self) -> dict[str, Any]:
        """A frame is brought to this size first and to the tower's square then: two steps, as published."""
        older = self.videos.get("video_sampling", {}).get("video_size")
        sizes = {
            "size": self.videos.get("size") or older,
            "max_image_size": self.videos.get("max_image_size"),
        }
        return {key: size for key, size in sizes.items() if size}


class SmolVlm(Idefics3):
    """SmolVLM 2: every frame has its time. The published intro counts the frames and the length of the video,
    which a stream does not know: it is left without the numbers. The processor has this prompt in place of
    the chat template wherever there is a video.
    """

    types = ("smolvlm",)


class InternVl(Family):
    """InternVL 2.5, 3 and 3.5 in the transformers layout: numbered frames."""

    types = ("internvl",)

    def encode(self, frame: FrameArray) -> Picture:
        """The whole frame as one square."""
        pixels = self._pixels(frame, crop_to_patches=False, **self._video_size())["pixel_values"]
        return square(pooled(self.model.get_image_features(pixel_values=pixels)))


class Ovis2(Family):
    """A frame is an image between tags, whose embeddings are the tower's, not the decoder's."""

    types = ("ovis2",)

    @property
    def own_words(self) -> Mapping[int, torch.Tensor]:
        """The tags, which stand behind all other words of that vocabulary."""
        ids = self.config.visual_indicator_token_ids
        table = self.model.visual_embeddings_table
        last = table.weight.shape[0]
        rows = table(torch.arange(last - len(ids), last, device=table.weight.device))
        return dict(zip(ids, rows, strict=True))

    def encode(self, frame: FrameArray) -> Picture:
        """The whole frame as one square."""
        pixels = self._pixels(frame, crop_to_patches=False, **self._video_size())["pixel_values"]
        made = self.model.get_image_features(pixel_values=pixels)
        return square(pooled(made[0] if isinstance(made, tuple) else made))  # transformers 4: the tags behind


class PerceptionLm(Family):
    """PerceptionLM: the whole frame as one tile, pooled 2 x 2; its tower is timm's."""

    types = ("perception_lm",)

    def encode(self, frame: FrameArray) -> Picture:
        """One square, without tiles, as its video processor has it."""
        side = int(self.videos.get("size", {}).get("height", self.images.tile_size))
        pixels = self._pixels(frame, vision_input_type="vanilla", tile_size=side)["pixel_values"]
        return square(pooled(self.model.get_image_features(pixel_values=pixels)))
