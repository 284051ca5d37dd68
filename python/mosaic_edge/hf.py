"""For an existing transformers script: generate() over a model and processor it has loaded already.

reply = mosaic_edge.hf.generate(model, processor, video="walk.mp4", question="What did I put down?",
memory="256MiB")
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mosaic_edge.config import SessionSettings
from mosaic_edge.engine import Engine
from mosaic_edge.models.hf.families import family_of
from mosaic_edge.models.hf.family import Limit
from mosaic_edge.models.hf.load import Parts
from mosaic_edge.models.hf.vlm import HfVlm
from mosaic_edge.models.vlm import FrameArray, ModelError
from mosaic_edge.reply import Reply
from mosaic_edge.sampling import SamplingParams

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mosaic_edge.sources.frame_source import Where


def generate(
    model: Any,
    processor: Any,
    *,
    video: Where | Iterable[FrameArray],
    question: str,
    fps: float = 1.0,
    max_new_tokens: int | None = None,
    tokens_per_frame: Limit = None,
    sampling: SamplingParams | None = None,
    **settings: Unpack[SessionSettings],
) -> Reply:
    """Stream a video through `model` under a cap and ask one question about it.

    video: a file (its path, its bytes, or open), or RGB frames uint8 [H, W, 3] at `fps` a second (an array
    [N, H, W, 3] too). max_new_tokens: 256 by default, 2,048 for a model that thinks; sampling= overrides it.
    settings: fields of SessionConfig (memory=, 256 MiB by default, policy=, ...).
    While it runs, the attention of the model's decoder is the registered one: the memory's in runs for a
    session, SDPA in every other, so that the model works as before in other threads too; then it is as it
    was. Raises ModelError, MemoryCapError, SourceError.
    """
    from mosaic_edge.sources.frame_source import is_held  # PyAV is for files only

    if not fps > 0:
        raise ValueError(f"fps={fps}: expected more than 0")
    settings.setdefault("memory", "256MiB")
    vlm = wrap(model, processor, tokens_per_frame)
    try:
        most = {} if max_new_tokens is None else {"max_tokens": max_new_tokens}
        sampling = sampling or SamplingParams.from_model(vlm.spec, **most)
        with Engine(vlm).session(**settings) as session:
            if isinstance(video, str | os.PathLike) or is_held(video):
                session.append_video(cast("Where", video), fps=fps)
            else:
                for number, frame in enumerate(cast("Iterable[FrameArray]", video)):
                    session.append(frame, number / fps)
            return session.ask(question, sampling=sampling)
    finally:
        vlm.release()


def wrap(model: Any, processor: Any, tokens_per_frame: Limit = None) -> HfVlm:
    """`model` and `processor` of transformers as a Vlm, for Engine(...). ModelError names what does not
    fit."""
    name = type(model).__name__
    family = family_of(str(getattr(model.config, "model_type", "")), name)
    images, tokenizer = getattr(processor, "image_processor", None), getattr(processor, "tokenizer", None)
    if images is None or getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelError(
            f"{name}: the processor {type(processor).__name__} needs an image_processor and a fast tokenizer"
        )
    videos = (getattr(processor, "video_processor", None) or images).to_dict()
    videos = {key: value for key, value in videos.items() if value is not None}
    folder = Path(str(getattr(model.config, "_name_or_path", "") or name))
    template = getattr(processor, "chat_template", None)
    return HfVlm.of(Parts(folder, model, images, videos, tokenizer, template, family), tokens_per_frame)
