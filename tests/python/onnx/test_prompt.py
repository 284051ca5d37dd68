"""A directory of ONNX graphs asks as its family's checkpoint in the transformers layout does: chat template,
time stamps, tags, two frames to a picture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel

from exported_models import VOCAB, Exporter
from mosaic_edge import Engine, ModelError
from mosaic_edge.models.onnx.vlm import OnnxVlm
from mosaic_edge.sampling import SamplingParams

WORDS = [
    "system",
    "user",
    "assistant",
    "You",
    "are",
    "a",
    "helpful",
    "what",
    "is",
    "it",
    "?",
    "<",
    ">",
    ".",
    "seconds",
    "0",
    "1",
    "2",
    "3",
    "4",
    "5",
    "6",
    "7",
    "8",
    "9",
]
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"]
ID = {word: i for i, word in enumerate([*WORDS, *SPECIAL])}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    + "{% if c['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}"
    + "{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GENAI = ("genai", "int4", "accuracy_level=1")


def write_words(folder: Path) -> None:
    raw = Tokenizer(WordLevel(ID | {"<unk>": VOCAB - 1}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    raw.add_special_tokens(SPECIAL)
    raw.save(str(folder / "tokenizer.json"))


def with_template(folder: Path, place: str) -> Path:
    """A directory with a vocabulary for its family's text, and a chat template in one of its files."""
    write_words(folder)
    (folder / "mosaic.json").unlink(missing_ok=True)
    if (folder / "genai_config.json").exists():  # the builder was given the text part alone
        genai = json.loads((folder / "genai_config.json").read_text())
        genai["model"]["type"] = "qwen3_vl"
        (folder / "genai_config.json").write_text(json.dumps(genai))
    said = TEMPLATE if place.endswith("jinja") else json.dumps({"chat_template": TEMPLATE})
    (folder / place).write_text(said)
    return folder


def read_by(engine: Engine, frames: int) -> list[list[int | str]]:
    """What the decoder is given of each block: ids of words, "pixels" for a picture's rows."""
    table = engine.model.embed_text(list(range(VOCAB)))
    blocks: list[list[int | str]] = []
    forward = engine.model.forward

    def record(embeds: Any, attend: Any, want_logits: bool = True) -> Any:
        found = [np.flatnonzero((table == row).all(axis=1)) for row in embeds]
        blocks.append([int(at[0]) if len(at) else "pixels" for at in found])
        return forward(embeds, attend, want_logits)

    engine.model.forward = record  # type: ignore[method-assign]
    random = np.random.default_rng(5)
    with engine.session(memory="8MiB", policy="full", branch_tokens=64, kernel_threads=1) as session:
        for i in range(frames):
            session.append(random.integers(0, 255, (65, 98, 3), dtype=np.uint8), i / 2)
        session.ask("what is it ?", sampling=SamplingParams(max_tokens=1))
    return blocks


def words(text: str) -> list[int | str]:
    return [ID.get(word, word) for word in text.split()]


PICTURE = " ".join(["pixels"] * 6)


@pytest.mark.parametrize("place", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_qwen3_vl_is_read_with_time_stamps_and_tags(exporter: Exporter, tmp_path: Path, place: str) -> None:
    folder = with_template(Path(shutil.copytree(exporter("qwen3-vl", *GENAI), tmp_path / "model")), place)
    engine = Engine.load(folder, tokens_per_frame=12)
    stamp = "< {} seconds > <|vision_start|> " + PICTURE + " <|vision_end|>"
    assert engine.spec.temporal_patch_size == 2
    assert read_by(engine, 5) == [
        words("<|im_start|> user"),
        words(stamp.format("0 . 2")),
        words(stamp.format("1 . 2")),
        words(stamp.format("2 . 0")),  # the odd last one is paired with itself
        words("what is it ? <|im_end|> <|im_start|> assistant"),
    ]


def test_qwen2_5_vl_is_read_between_its_tags(exporter: Exporter, tmp_path: Path) -> None:
    source = exporter("qwen2.5-vl", "transformers.js", "fp32")
    folder = with_template(Path(shutil.copytree(source, tmp_path / "model")), "chat_template.json")
    blocks = read_by(Engine.load(folder, tokens_per_frame=12), 4)
    assert blocks == [
        words("<|im_start|> user <|vision_start|>"),
        words(" ".join(["pixels"] * 8)),
        words(" ".join(["pixels"] * 8)),
        words("<|vision_end|> what is it ? <|im_end|> <|im_start|> assistant"),
    ]


def test_mosaic_json_goes_before_the_chat_template(exporter: Exporter, tmp_path: Path) -> None:
    folder = with_template(
        Path(shutil.copytree(exporter("qwen3-vl", *GENAI), tmp_path / "model")), "chat_template.json"
    )
    (folder / "mosaic.json").write_text(json.dumps({"prefix": "You are", "template": "{question} ?"}))
    spec = OnnxVlm.load(folder).spec
    assert (spec.prefix, spec.template, spec.follow_up) == ("You are", "{question} ?", "")
    (folder / "mosaic.json").write_text(json.dumps({"fps": 2.0}))
    spec = OnnxVlm.load(folder).spec
    assert spec.fps == 2 and spec.prefix == "<|im_start|>user\n"


def test_a_vocabulary_without_the_words_of_a_time_stamp_is_named(exporter: Exporter, tmp_path: Path) -> None:
    folder = with_template(
        Path(shutil.copytree(exporter("qwen3-vl", *GENAI), tmp_path / "model")), "chat_template.json"
    )
    raw = json.loads((folder / "tokenizer.json").read_text())
    del raw["model"]["vocab"]["seconds"]
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(ModelError, match="text around a picture: unknown word 'seconds'"):
        OnnxVlm.load(folder)


def test_pairs_of_frames_are_one_picture_of_both(exporter: Exporter) -> None:
    model = OnnxVlm.load(exporter("qwen2.5-vl", "transformers.js", "fp32"), tokens_per_frame=12)
    a, b = np.random.default_rng(6).integers(0, 255, (2, 65, 98, 3), dtype=np.uint8)
    both, twice = model.encode(np.stack([a, b]), 0.25, 0.0, 0), model.encode(np.stack([a, a]), 0.25, 0.0, 0)
    assert np.array_equal(twice.tokens, model.encode(a, 0.0, 0.0, 0).tokens)
    assert both.tokens.shape == twice.tokens.shape and not np.allclose(both.tokens, twice.tokens)
    with pytest.raises(ValueError, match="a frame must be uint8"):
        model.encode(np.stack([a, b, a]), 0.0, 0.0, 0)
