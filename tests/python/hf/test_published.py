"""Under published configuration files a checkpoint gives what a plain transformers script gives on the same
frames: prompt, pixels, tokens a picture, features, positions (the logits depend on them), logits, greedy
tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fixtures_hf import picture
from mosaic_edge.engine import Engine
from mosaic_edge.sampling import SamplingParams
from published import SOURCES, Answered, Clip, Watched, needs_published, processed, write_published

pytestmark = needs_published
STEPS = 8
LEVEL = 1.0 / 255.0
SETTINGS: dict[str, Any] = dict(
    memory="1GiB", policy="full", exact="fp32", branch_tokens=256, kernel_threads=1
)


@dataclass
class Comparison:
    """One clip, read by the library over AutoProcessor's inputs and by a session."""

    kind: str
    engine: Engine
    inputs: dict[str, Any]
    pixels: list[np.ndarray]
    theirs: Answered
    ours: Watched
    logits: list[np.ndarray]
    tokens: list[int]
    clip: Clip


@pytest.fixture(scope="module", params=SOURCES)
def compared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Comparison]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    kind = request.param
    folder = write_published(kind, tmp_path_factory.mktemp(kind))
    # Short enough that no frame stands further behind the first than its picture is wide (see
    # docs/models.md).
    # LLaVA 1.5 is full after seven frames, and a memory leaves room for the next one and the answer.
    clip = Clip(np.stack([picture(i, 140, 252) for i in range(5 if kind == "llava" else 6)]), 2.0)
    limit = 64 if kind.startswith("qwen") else None
    whole = {"do_image_splitting": False} if kind.startswith("idefics3") else {}  # a stream has no tiles
    inputs = processed(folder, clip, tmp_path_factory.mktemp("out"), limit, **whole)
    yield compare(kind, folder, clip, inputs)
    torch.set_num_threads(before)


def compare(kind: str, folder: Path, clip: Clip, inputs: dict[str, Any]) -> Comparison:
    engine = Engine.load(
        folder, device="cpu", dtype="fp32", tokens_per_frame=64 if kind.startswith("qwen") else None
    )
    model: Any = engine.model
    watched = Watched(model._family.model)
    logits: list[np.ndarray] = []
    forward = model.forward

    def record(embeds: Any, attend: Any, want_logits: bool = True) -> Any:
        made = forward(embeds, attend, want_logits)
        if made is not None:
            logits.append(made)
        return made

    model.forward = record
    with engine.session(**SETTINGS) as session:
        for frame, pts in zip(clip.frames, clip.times, strict=True):
            session.append(frame, pts)
        session.ask(clip.question, sampling=SamplingParams(max_tokens=STEPS))
        assert session.memory()["frames"] == len(clip.frames)
    caught = inputs.pop("ours")
    name = "pixel_values_videos" if "pixel_values_videos" in inputs else "pixel_values"
    shape = inputs[name].shape
    pixels = inputs[name].numpy()
    same = np.concatenate([p.numpy().reshape(-1, *shape[-1:]) for p in caught]).reshape(shape)
    # The library reads our pixels from here on: those are compared on their own.
    inputs[name] = torch.from_numpy(
        np.concatenate([p.reshape(-1, *shape[-1:]) for p in watched.pixels]).reshape(shape)
    )
    theirs = Answered(folder, say_no_more_than_a_stream_knows(kind, model, inputs), STEPS)
    return Comparison(
        kind,
        engine,
        inputs,
        [pixels, same, inputs[name].numpy()],
        theirs,
        watched,
        logits,
        [int(x.argmax()) for x in logits],
        clip,
    )


def say_no_more_than_a_stream_knows(kind: str, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """SmolVLM's intro counts the frames and says how long the video is."""
    if kind != "smolvlm":
        return inputs
    ids = inputs["input_ids"][0].tolist()
    whole = model.tokenize(
        "You are provided the following series of six frames from a 0:00:03 [H:MM:SS] video.\n"
    )
    ours = model.tokenize("You are provided the following series of frames from a video.\n")
    (at,) = [i for i in range(len(ids)) if ids[i : i + len(whole)] == whole]
    ids[at : at + len(whole)] = ours
    return inputs | {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
    }


def rows(compared: Comparison) -> tuple[np.ndarray, np.ndarray]:
    """What the decoder reads up to the first answered token: theirs, ours."""
    theirs = compared.theirs.watched.embeds[0]
    ours = np.concatenate(compared.ours.embeds)[: len(theirs)]
    return theirs, ours


def test_the_prompt_is_the_processors_word_for_word(compared: Comparison) -> None:
    theirs, ours = rows(compared)
    assert len(theirs) <= sum(map(len, compared.ours.embeds))
    ids = compared.inputs["input_ids"][0].numpy()
    ids = (
        ids
        if compared.kind != "smolvlm"
        else say_no_more_than_a_stream_knows("smolvlm", compared.engine.model, compared.inputs)["input_ids"][
            0
        ].numpy()
    )
    config = compared.engine.model._family.config  # type: ignore[attr-defined]
    marks = {
        getattr(config, name, None)
        for name in ("image_token_id", "video_token_id", "image_token_index", "video_token_index")
    }
    text = ~np.isin(ids, [m for m in marks if m is not None])
    assert text.sum() >= 15 and (~text).sum() > 90
    words = compared.engine.model.embed_text(ids[text].tolist())[:, : theirs.shape[1]]
    assert np.array_equal(ours[text], words)
    assert not (ours[~text][:, None] == words[None]).all(axis=-1).any()


def test_pixels_are_the_processors_bit_for_bit_and_without_torchvision_nearly(compared: Comparison) -> None:
    theirs, same, ours = compared.pixels
    assert theirs.shape == same.shape == ours.shape
    assert np.abs(theirs - same).max() < 1e-5
    # Pillow rounds between its two passes otherwise: a level of 255 here and there, more where edges
    # overshoot.
    off = np.abs(theirs - ours) * min(compared.engine.spec.image_std) / LEVEL
    assert off.mean() < 0.1
    assert (off > 1.5).mean() < 5e-3


def test_features_and_text_reach_the_decoder_in_the_librarys_order(compared: Comparison) -> None:
    theirs, ours = rows(compared)
    assert np.abs(theirs - ours).max() < 2e-5 * np.abs(theirs).max()


def test_logits_and_greedy_tokens_are_the_librarys(compared: Comparison) -> None:
    spread = float(np.std(compared.theirs.logits[0]))
    worst = max(
        float(np.abs(a - b).max()) for a, b in zip(compared.theirs.logits, compared.logits, strict=False)
    )
    assert worst < 1e-4 * spread
    assert compared.tokens[:STEPS] == compared.theirs.tokens
