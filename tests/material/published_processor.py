"""Run by published.py in a process of its own: AutoProcessor of a folder over a clip."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

# torchvision's compiled operators are built against CUDA and do not load under torch's CPU build. Resizing
# needs none of them, importing needs them to be named.
_operators = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _name):
        _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import transformers as tf  # noqa: E402
from transformers.video_utils import VideoMetadata  # noqa: E402

from mosaic_edge.models.hf.families import family_of  # noqa: E402
from mosaic_edge.models.hf.family import Family  # noqa: E402
from mosaic_edge.models.image_settings import video_settings  # noqa: E402

OF_IMAGES = ("llava", "idefics3")
"""model_type of those whose video is so many images."""


def main(job_file: str) -> None:
    job = json.loads(Path(job_file).read_text())
    out = Path(job["out"])
    frames = np.load(out / "clip.npz")["frames"]
    processor = tf.AutoProcessor.from_pretrained(job["folder"])
    kind = tf.AutoConfig.from_pretrained(job["folder"]).model_type
    shown = [{"type": "image"}] * len(frames) if kind in OF_IMAGES else [{"type": "video"}]
    content = [*shown, {"type": "text", "text": job["question"]}]
    said = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(said, add_generation_prompt=True)
    count = len(frames)
    metadata = VideoMetadata(
        total_num_frames=count, fps=job["fps"], duration=count / job["fps"],
        frames_indices=list(range(count)), height=frames.shape[1], width=frames.shape[2],
    )  # fmt: skip
    if kind in OF_IMAGES:
        job["settings"]["images"] = [list(frames)]
    else:
        job["settings"] |= dict(videos=[frames], video_metadata=[metadata], do_sample_frames=False)
    inputs = processor(text=[text], return_tensors="pt", **job["settings"])
    torch.save(
        {k: torch.as_tensor(v) if k == "second_per_grid_ts" else v for k, v in inputs.items()},
        out / "inputs.pt",
    )
    (out / "text.txt").write_text(text)
    torch.save(ours(Path(job["folder"]), frames, job["tokens_per_frame"]), out / "ours.pt")


class _CaughtError(Exception):
    """The pixels, on their way into a model."""


def ours(folder: Path, frames: np.ndarray, tokens_per_frame: int | None) -> list[torch.Tensor]:
    """What our families make of the same frames with the same arithmetic: torchvision's, where it is
    installed."""

    def catch(*pixels: torch.Tensor, **named: torch.Tensor) -> None:
        raise _CaughtError(pixels[0] if pixels else named["pixel_values"])

    config = tf.AutoConfig.from_pretrained(folder)
    model = SimpleNamespace(
        config=config, dtype=torch.float32, visual=SimpleNamespace(dtype=torch.float32),
        parameters=lambda: iter([torch.zeros(1)]), get_image_features=catch, get_video_features=catch,
    )  # fmt: skip
    whole = SimpleNamespace(model=model, config=config)
    images = tf.AutoImageProcessor.from_pretrained(folder)
    kind = family_of(config.model_type, str(folder))
    family = kind(str(folder), whole, images, video_settings(folder), tokens_per_frame)
    together = family.temporal_patch_size
    pictures = (
        frames[i : i + together] if together > 1 else frames[i] for i in range(0, len(frames), together)
    )
    return [_pixels(family, picture) for picture in pictures]


def _pixels(family: Family, picture: np.ndarray) -> torch.Tensor:
    try:
        family.encode(picture)
    except _CaughtError as caught:
        return caught.args[0]
    raise AssertionError("the family never asked for features")


if __name__ == "__main__":
    main(sys.argv[1])
