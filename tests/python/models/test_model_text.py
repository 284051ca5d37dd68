"""What a directory of graphs has its model read around a question, whichever of its files says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from tokenizers.processors import TemplateProcessing

from mosaic_edge.models.model_text import text_of
from mosaic_edge.models.tokenizer import TextTokenizer
from mosaic_edge.models.video_text import VIDEO_TEXTS


def tokenizer_of(model: BPE | WordLevel, file: Path) -> TextTokenizer:
    raw = Tokenizer(model)
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.save(str(file))
    return TextTokenizer(file)


@pytest.fixture
def letters(tmp_path: Path) -> TextTokenizer:
    """A token a byte."""
    table = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    return tokenizer_of(BPE(vocab=table, merges=[]), tmp_path / "tokenizer.json")


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl", "qwen3_vl", "internvl", "smolvlm"])
def test_graphs_without_a_chat_template_are_asked_as_their_family_was_published(
    kind: str, letters: TextTokenizer, tmp_path: Path
) -> None:
    text, published = text_of(tmp_path, {"fps": 2.0}, kind, letters, 8), VIDEO_TEXTS[kind].prompt
    assert (text.prefix, text.template, text.follow_up) == published.whole()
    assert text.video is not None and text.tokens == len(VIDEO_TEXTS[kind].trail) + max(
        len(text.video.lead(9_999_999.0, number)) for number in (0, 9_999_999)
    )
    assert text.left_out == ""


def test_a_chat_template_goes_before_what_was_published(letters: TextTokenizer, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("<|video_pad|>{{ messages[0]['content'][1]['text'] }}:")
    text = text_of(tmp_path, {}, "qwen2_vl", letters, 8)
    assert (text.prefix, text.template) == ("", "{question}:")


@pytest.mark.parametrize("template", ["USER: <image>{{ '<image>' }}", "{{ bos_token }}USER: <image><image>"])
def test_what_a_tokenizer_begins_every_text_with_begins_the_prompt(template: str, tmp_path: Path) -> None:
    """LLaVA 1.5: a chat template without <s>, which the processor's tokenizer adds."""
    file = tmp_path / "tokenizer.json"
    table = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    raw = Tokenizer(BPE(vocab=table | {"<s>": 256}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.add_special_tokens(["<s>"])
    raw.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    raw.save(str(file))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": "<s>"}}))
    (tmp_path / "chat_template.jinja").write_text(template + "{{ messages[0]['content'][2]['text'] }}")
    tokenizer = TextTokenizer(file)
    text = text_of(tmp_path, {}, "llava", tokenizer, 8)
    assert tokenizer.encode(text.prefix) == raw.encode("USER: ").ids
    raw.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    raw.save(str(file))
    (tmp_path / "chat_template.jinja").unlink()
    assert text_of(tmp_path, {}, "llava", TextTokenizer(file), 8).prefix == "USER: "


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("llava", "has no chat template, and no words for"),
        ("moondream", "the family 'moondream' has no text"),
    ],
)
def test_a_question_that_is_asked_without_any_prompt_is_said_to_be(
    kind: str, why: str, tmp_path: Path
) -> None:
    few = tokenizer_of(WordLevel({"what": 0, "<unk>": 1}, unk_token="<unk>"), tmp_path / "tokenizer.json")
    text = text_of(tmp_path, {}, kind, few, 8)
    assert (text.prefix, text.template, text.video) == ("", "{question}", None)
    assert text.left_out.startswith("all of it: ") and why in text.left_out
    said = {"prefix": "what", "template": "{question}"}
    (tmp_path / "mosaic.json").write_text(json.dumps(said))
    assert text_of(tmp_path, said, kind, few, 8).left_out == ""
