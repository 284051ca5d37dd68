"""The families there are, by the model_type of their config."""

from __future__ import annotations

from mosaic_edge.models.hf.family import Family
from mosaic_edge.models.hf.qwen_families import Qwen2Vl, Qwen3Vl, Qwen25Vl, VideoLlama3
from mosaic_edge.models.hf.refused import HAS
from mosaic_edge.models.hf.square_families import (
    Idefics3,
    InternVl,
    Llava,
    LlavaNextVideo,
    LlavaOneVision,
    Ovis2,
    PerceptionLm,
    SmolVlm,
)  # fmt: skip
from mosaic_edge.models.vlm import ModelError

FAMILIES: tuple[type[Family], ...] = (
    Qwen25Vl, Qwen2Vl, Qwen3Vl, LlavaOneVision, LlavaNextVideo, SmolVlm, Idefics3, InternVl, Llava, Ovis2,
    VideoLlama3, PerceptionLm,
)  # fmt: skip


def family_of(kind: str, name: str) -> type[Family]:
    """The family of a config's model_type. ModelError names those there are."""
    for family in FAMILIES:
        if kind in family.types:
            return family
    if has := HAS.get(kind):
        raise ModelError(f"{name}: model_type={kind!r} has {has}, which the memory cannot stand in for")
    supported = ", ".join(sorted(kind for family in FAMILIES for kind in family.types))
    raise ModelError(f"{name}: model_type={kind!r} is not supported; supported are: {supported}")
