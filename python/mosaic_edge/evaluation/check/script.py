"""The plain transformers script: AutoProcessor over a conversation of one video and a question, then greedy
generate() with the library's own cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from mosaic_edge.evaluation.check.clip import Clip
from mosaic_edge.evaluation.check.watched import PICTURE
from mosaic_edge.models.prompt import IMAGE
from mosaic_edge.models.video_text import VIDEO_TEXTS
from mosaic_edge.models.vlm import FloatArray

Inputs = dict[str, Any]
_MARKS = ("image_token_id", "video_token_id", "image_token_index", "video_token_index")
_WHOLE: dict[str, dict[str, Any]] = {
    "idefics3": {"do_image_splitting": False},
    "ovis2": {"crop_to_patches": False},
    "video_llama_3": {"use_token_compression": False},
}
"""By model_type: a stream's frames are not cut into tiles, nor freed of what the frame before showed."""
_REFUSED = ("token_type_ids",)
"""By generate(); up to transformers 4 every tokenizer without a class of its own gives them."""


def inputs_of(folder: Path, kind: str, clip: Clip, system: str | None = None) -> Inputs:
    """What a checkpoint's processor makes of a clip, for a family of one model_type; whatever the library
    raises where it cannot (it needs torchvision to look at a video)."""
    processor = transformers.AutoProcessor.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    count = len(clip.frames)
    images = VIDEO_TEXTS[kind].mark == IMAGE
    shown: list[Any] = [{"type": "image"}] * count if images else [{"type": "video"}]
    said = [{"role": "user", "content": [*shown, {"type": "text", "text": clip.question}]}]
    if system is not None:
        said.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    text = processor.apply_chat_template(said, add_generation_prompt=True)
    settings = dict(_WHOLE.get(kind, {}))
    for name, value in settings.items():  # up to transformers 4.57 a call may leave its own word unheard
        if hasattr(processor.image_processor, name):
            setattr(processor.image_processor, name, value)
    if images:
        settings["images"] = [list(clip.frames)]
    else:
        metadata = transformers.video_utils.VideoMetadata(
            total_num_frames=count, fps=clip.fps, duration=count / clip.fps,
            frames_indices=list(range(count)), height=clip.frames.shape[1], width=clip.frames.shape[2],
        )  # fmt: skip
        videos: list[Any] = [clip.frames]
        if (
            kind == "smolvlm"
        ):  # it takes those of each text; up to transformers 5.2 it counts an array's frames
            videos = [videos]
        settings |= {"videos": videos, "video_metadata": [metadata], "do_sample_frames": False}
    made = processor(text=[text], return_tensors="pt", **settings)
    inputs = {
        name: torch.as_tensor(value) if name == "second_per_grid_ts" else value
        for name, value in made.items()
        if name not in _REFUSED
    }
    return _without_numbers(processor, clip, inputs) if kind == "smolvlm" else inputs


def _without_numbers(processor: Any, clip: Clip, inputs: Inputs) -> Inputs:
    """SmolVLM's intro counts the frames and says how long the video is, which a stream does not know."""
    module = import_module(type(processor).__module__)
    length = str(timedelta(seconds=int(len(clip.frames) / clip.fps)))
    numbers = module.num2words(len(clip.frames))
    with_numbers = module.DEFAULT_VIDEO_INTRO.format(frame_count=numbers, video_duration=length)
    without = "You are provided the following series of frames from a video.\n"
    whole, ours = (
        processor.tokenizer(t, add_special_tokens=False)["input_ids"] for t in (with_numbers, without)
    )
    ids = inputs["input_ids"][0].tolist()
    at = next((i for i in range(len(ids)) if ids[i : i + len(whole)] == whole), None)
    if at is None:  # another text than this: the prompt will differ
        return inputs
    ids[at : at + len(whole)] = ours
    changed = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    return inputs | changed


def ids_of(inputs: Inputs, config: Mapping[str, Any]) -> list[int]:
    """The prompt's ids, PICTURE for a picture's. config: as config.json has it."""
    marks = {config.get(name) for name in _MARKS}
    return [PICTURE if i in marks else i for i in inputs["input_ids"][0].tolist()]


def pixels_of(inputs: Inputs) -> torch.Tensor:
    """What the processor made of the frames."""
    found = inputs.get("pixel_values_videos")
    return inputs["pixel_values"] if found is None else found


@dataclass
class Heard:
    """What the decoder and the vision tower of a transformers model were given while hooks were on them."""

    embeds: list[FloatArray] = field(default_factory=list)
    positions: list[NDArray[np.int64] | None] = field(default_factory=list)
    pixels: list[FloatArray] = field(default_factory=list)


@contextmanager
def hearing(model: Any) -> Iterator[Heard]:
    """model: the one without a head."""
    heard = Heard()
    language = getattr(model, "language_model", None) or model.text_model
    towers = (getattr(model, name, None) for name in ("visual", "vision_tower", "vision_model"))
    tower = next(t for t in towers if t is not None)

    def read(module: Any, args: Any, given: dict[str, Any]) -> None:
        heard.embeds.append(_array(given["inputs_embeds"][0]))
        at = given.get("position_ids")
        heard.positions.append(None if at is None else at.cpu().numpy())

    def saw(module: Any, args: Any, given: dict[str, Any]) -> None:
        heard.pixels.append(
            _array(args[0] if args else given.get("pixel_values", given.get("hidden_states")))
        )

    hooks = [
        language.register_forward_pre_hook(read, with_kwargs=True),
        tower.register_forward_pre_hook(saw, with_kwargs=True),
    ]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


@dataclass
class Answer:
    """A run of the library: what its parts were given, logits of each step, greedy tokens."""

    heard: Heard
    logits: list[FloatArray]
    tokens: list[int]

    @property
    def positions(self) -> NDArray[np.int64]:
        """[3, T] of the prompt."""
        at, count = self.heard.positions[0], len(self.heard.embeds[0])
        if at is None:
            at = np.arange(count)[None, None]
        at = at.reshape(-1, at.shape[-1])[-3:]  # under M-RoPE those of the text may stand before the three
        return np.broadcast_to(at, (3, at.shape[-1])).astype(np.int64)


def answer_of(model: Any, inputs: Inputs, steps: int) -> Answer:
    """Greedy tokens of a transformers model with its head, none ends it early."""
    given = {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None)
        for name, value in inputs.items()
        if isinstance(value, torch.Tensor)
    }
    rest = {name: value for name, value in inputs.items() if name not in given}
    with torch.inference_mode(), hearing(model.model) as heard:
        made = model.generate(
            **given, **rest, max_new_tokens=steps, do_sample=False, repetition_penalty=1.0, eos_token_id=None,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    asked = inputs["input_ids"].shape[1]
    return Answer(heard, [_array(step[0]) for step in made.logits], made.sequences[0, asked:].tolist())


def _array(x: torch.Tensor) -> FloatArray:
    return x.detach().float().cpu().numpy()
