"""Qwen-VL: pictures of any size under M-RoPE, each made of two frames, as the library's video processors have
them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from mosaic_edge.models.hf.family import Family, Picture, joined, pooled
from mosaic_edge.models.patch_bounds import PATCH_BOUNDS
from mosaic_edge.models.video_text import VideoText
from mosaic_edge.models.vlm import FrameArray, RopeSpec

_MOST_ASPECT = 200


class Qwen2Vl(Family):
    """A picture is the next temporal position."""

    types: ClassVar[tuple[str, ...]] = ("qwen2_vl",)
    axes = 3
    usual_tokens = 196
    """tokens_per_frame= where it is not given (a picture may have thousands)."""

    @property
    def temporal_patch_size(self) -> int:
        """Of the tower's patches."""
        return int(self.images.temporal_patch_size)

    @property
    def _merge(self) -> int:
        """Patches that a token is wide and high."""
        return int(self.images.merge_size)

    @property
    def _side(self) -> int:
        """Pixels that a token is wide and high."""
        return int(self.images.patch_size) * self._merge

    def largest(self) -> tuple[int, int]:
        """As many tokens as the limit says: a picture may be that many columns wide."""
        limit = self.usual_tokens if self.limit is None else self.limit
        if limit == "native":
            return 1, self.native_tokens()
        if limit < 1:
            raise ValueError(f"tokens_per_frame={limit}: expected 1 or more")
        return 1, limit

    def native_tokens(self) -> int:
        """As many as the most pixels hold."""
        return max(1, self._bounds()[1] // self._side**2)

    def check(self, height: int, width: int) -> None:
        """Its shape is kept, so it must fit a row of tokens."""
        longer, shorter, most = max(height, width), min(height, width), self.largest()[1]
        if longer > _MOST_ASPECT * shorter or longer // shorter > most:
            raise ValueError(f"a frame of {height} x {width} is too long for {most} tokens a frame")

    def encode(self, frame: FrameArray) -> Picture:
        """Resized to a multiple of a merged patch, its shape kept, within tokens_per_frame."""
        self.check(*frame.shape[-3:-1])
        frames = frame if frame.ndim == 4 else frame[None]
        most = self.largest()[1] * self._side**2
        bounds = self._bounds()
        # A small frame is enlarged to the least, each side rounded up: a quarter leaves room for that.
        size = {"shortest_edge": min(bounds[0], max(1, most // 4)), "longest_edge": min(bounds[1], most)}
        made = [self._pixels(one, size=size, merge_size=self._merge) for one in frames]
        grid = made[0]["image_grid_thw"]
        columns = int(grid[0, 2]) // self._merge
        return Picture(self._features(self._together([one["pixel_values"] for one in made]), grid), columns)

    def _together(self, patches: list[torch.Tensor]) -> torch.Tensor:
        """Patches [N, C * T * P * P] of frames, each doubled in time as a still image is -> those of all of
        them."""
        if len(patches) == 1:
            return patches[0]
        side = int(self.images.patch_size)
        split = [one.view(len(one), -1, self.temporal_patch_size, side, side) for one in patches]
        return torch.stack([one[:, :, t] for t, one in enumerate(split)], dim=2).flatten(1)

    def _bounds(self) -> tuple[int, int]:
        """Least and most pixels of a picture, as the video processor is set."""
        return PATCH_BOUNDS[self.types[0]].of(self.videos, self.temporal_patch_size)

    def _features(self, pixels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        return pooled(self.model.get_image_features(pixels, grid))

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
    """Time stamps in words, every picture between tags; rows and columns are counted from the picture's
    moment; features of three layers of the tower are added in the first layers of the decoder (DeepStack).
    """

    types = ("qwen3_vl", "qwen3_vl_moe")

    @property
    def text(self) -> VideoText:
        """transformers 5 leaves the tags that its chat template writes around the whole video, 4 does not."""
        own = super().text
        if not hasattr(Qwen3VLProcessor, "replace_video_token"):
            return own
        prompt = replace(
            own.prompt,
            prefix=f"{own.prompt.prefix}<|vision_start|>",
            template=f"<|vision_end|>{own.prompt.template}",
        )
        return replace(own, mark="<|video_pad|>", prompt=prompt)

    @property
    def deep_layers(self) -> int:
        """One for each tapped layer of the tower."""
        return len(self.config.vision_config.deepstack_visual_indexes)

    def rope(self, rope: RopeSpec) -> RopeSpec:
        """Sections take turns."""
        return replace(rope, sections_interleaved=True, grid_follows_time=True)

    def _features(self, pixels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        made: Any = self.model.get_image_features(pixels, grid)
        if isinstance(made, tuple):  # transformers 4
            first, deep = made
        else:
            first, deep = made.pooler_output, made.deepstack_features
        return torch.cat([joined(part) for part in (first, *deep)], dim=-1)


class VideoLlama3(Qwen2Vl):
    """VideoLLaMA 3: Qwen's patches, a frame at a time, time stamps in words, positions in one row. Its video
    processor leaves out tokens that equal those of the frame before; a memory that may give that frame up
    reads them all.
    """

    types = ("video_llama_3",)
    axes = 1

    @property
    def _merge(self) -> int:
        """Of a video; an image's patches stay apart."""
        return int(self.videos.get("merge_size", 2))

    def _features(self, pixels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        sizes = torch.tensor([self._merge], device=grid.device)
        return pooled(self.model.get_video_features(pixels, grid, sizes))

    def _vision_type(self) -> torch.dtype:
        return self.model.vision_model.dtype
