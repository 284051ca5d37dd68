"""Scaled rotary embeddings: frequencies and attention factor as the library computes them, under the
memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from fixtures_hf import Library, picture, write_checkpoint
from mosaic_edge.engine import Engine
from mosaic_edge.models.hf.rope import rope_of
from mosaic_edge.sampling import SamplingParams

LONG = [1.0 + 0.7 * i for i in range(8)]
SCALED: dict[str, dict[str, Any]] = {
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "longrope": {
        "rope_type": "longrope", "factor": 4.0, "short_factor": [1.0 + 0.05 * i for i in range(8)],
        "long_factor": LONG, "original_max_position_embeddings": 2048,
    },
}  # fmt: skip


def checkpoint(kind: str, scaled: dict[str, Any], folder: Path) -> Path:
    """A checkpoint of a family whose config says `scaled`."""
    write_checkpoint(kind, folder)
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"]
    before = {**text, **(text.get("rope_scaling") or {}), **(text.pop("rope_parameters", None) or {})}
    multi = {"mrope_section": before["mrope_section"]} if kind.startswith("qwen") else {}
    text.update(rope_theta=before["rope_theta"], rope_scaling=scaled | multi)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def play(engine: Engine, frames: list[np.ndarray], times: list[float]) -> np.ndarray:
    with engine.session(
        memory="64MiB", policy="full", exact="fp32", positions="original", branch_tokens=400, kernel_threads=1
    ) as session:
        for frame, pts in zip(frames, times, strict=True):
            session.append(frame, pts)
        return session.ask("what is it?", sampling=SamplingParams(max_tokens=1)).logits


@pytest.mark.parametrize(("kind", "name"), [*(("internvl", name) for name in SCALED), ("qwen2_5_vl", "yarn")])
def test_a_scaled_rotary_embedding_answers_as_by_the_library(kind: str, name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    folder = checkpoint(kind, SCALED[name], tmp_path)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    images = transformers.AutoImageProcessor.from_pretrained(folder)
    frames, times = [picture(i) for i in range(24)], [0.5 * i for i in range(24)]
    theirs = Library(kind, model, images).read(frames, times, "what is it?").numpy()
    engine = Engine.load(folder, device="cpu", tokens_per_frame=6 if kind.startswith("qwen") else None)
    ours = play(engine, frames, times)
    assert np.abs(ours - theirs).max() < 1e-4
    assert bool(engine.spec.rope.frequencies) == (name != "dynamic")
    assert engine.spec.context == (2048 if name == "longrope" else 8192)


def test_a_model_that_has_read_past_its_context_is_wrapped_with_the_frequencies_it_began_with(
    tmp_path: Path,
) -> None:
    import mosaic_edge.hf

    folder = checkpoint("internvl", SCALED["dynamic"], tmp_path)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    model.model.language_model.rotary_emb(torch.zeros(1), torch.arange(9000)[None])  # as a long text would
    from fixtures_hf import tokenizer

    images = transformers.AutoImageProcessor.from_pretrained(folder)
    processor = type(
        "Processor", (), dict(image_processor=images, tokenizer=tokenizer(), chat_template=None)
    )()
    frames, times = [picture(i) for i in range(3)], [0.0, 1.0, 2.0]
    wrapped = Engine(mosaic_edge.hf.wrap(model, processor))
    assert np.array_equal(
        play(wrapped, frames, times), play(Engine.load(folder, device="cpu"), frames, times)
    )


def test_pairs_of_channels_are_those_that_the_library_turns(tmp_path: Path) -> None:
    config = transformers.LlavaConfig(
        text_config=dict(
            model_type="glm", vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16, pad_token_id=0,
        ),
        vision_config=dict(
            model_type="siglip_vision_model", hidden_size=32, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, image_size=28, patch_size=14,
        ),
    )  # fmt: skip
    language = transformers.LlavaForConditionalGeneration(config).model.language_model
    spec = rope_of("a model", language, 1)
    assert (spec.layout, spec.rotary_dim) == ("interleaved", 8)
    config.text_config = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=4, num_hidden_layers=1, vocab_size=64, intermediate_size=64
    )
    language = transformers.LlavaForConditionalGeneration(config).model.language_model
    assert rope_of("a model", language, 1).layout == "half"
