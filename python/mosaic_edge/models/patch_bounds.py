"""Least and most pixels of a picture of a family that takes any aspect (Qwen-VL), as its video processor has
them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PatchBounds:
    """What a family's processor allows where the checkpoint does not say."""

    least: int
    most: int
    whole_video: bool = False
    """The bounds are of all frames together. A stream does not know how many there will be: a picture is
    bounded as if it were the only one."""

    def of(self, videos: Mapping[str, Any], frames: int) -> tuple[int, int]:
        """Pixels of a picture of so many frames, under a video processor's settings."""
        size = videos.get("size") if isinstance(videos.get("size"), Mapping) else {}
        least = int(videos.get("min_pixels") or (size or {}).get("shortest_edge") or self.least)
        most = int(videos.get("max_pixels") or (size or {}).get("longest_edge") or self.most)
        return (-(-least // frames), most // frames) if self.whole_video else (least, most)


_QWEN2 = PatchBounds(128 * 28 * 28, 768 * 28 * 28)
_QWEN3 = PatchBounds(128 * 32 * 32, 768 * 32 * 32, whole_video=True)
PATCH_BOUNDS: Mapping[str, PatchBounds] = {
    "qwen2_vl": _QWEN2, "qwen2_5_vl": _QWEN2, "qwen3_vl": _QWEN3, "qwen3_vl_moe": _QWEN3,
    "video_llama_3": PatchBounds(128 * 28 * 28, 768 * 28 * 28, whole_video=True),
}  # fmt: skip
"""By model_type."""
