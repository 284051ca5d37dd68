"""A system prompt stands where the chat template has its place for one, as text, or is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel

from mosaic_edge import Engine, ModelError
from mosaic_edge.models.model_text import text_of
from mosaic_edge.models.prompt import Prompt, prompt_from
from mosaic_edge.models.tokenizer import TextTokenizer

MARK = "<|vision_start|><|video_pad|><|vision_end|>"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'video' %}"
    f"{MARK}{{% else %}}{{{{ c.text }}}}{{% endif %}}{{% endfor %}}<|im_end|>\n{{% endfor %}}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_PLACE = TEMPLATE.replace("for m in messages %}", "for m in messages if m.role != 'system' %}")
REFUSES = "{{ raise_exception('none here') if messages[0].role == 'system' }}" + TEMPLATE
BRIEF = "You are brief"


WORDS = "You are brief system user assistant im _ end < > | . 0 1 2 3 4 5 6 7 8 9 seconds"


def tokenizer() -> TextTokenizer:
    ids = {word: i for i, word in enumerate(WORDS.split())}
    own = Tokenizer(WordLevel({**ids, "<unk>": 99}, "<unk>"))
    own.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(True)]
    )
    own.add_special_tokens(["<|im_start|>", "<|im_end|>", *MARK.replace("><", ">\n<").split()])
    return TextTokenizer.of(own)


def made(template: str | None, system: str | None) -> Prompt:
    return prompt_from(template, {}, MARK, Prompt("", "{question}"), system=system)


def test_it_stands_where_the_template_puts_it_and_the_rest_is_as_without_it() -> None:
    plain, told = made(TEMPLATE, None), made(TEMPLATE, BRIEF)
    assert told.prefix == f"<|im_start|>system\n{BRIEF}<|im_end|>\n" + plain.prefix
    assert (told.template, told.follow_up) == (plain.template, plain.follow_up)


@pytest.mark.parametrize(
    ("template", "said"),
    [(NO_PLACE, "has no place for a system prompt"), (REFUSES, "none here"), (None, "no chat template")],
    ids=["no place", "refuses", "none"],
)
def test_a_template_without_a_place_refuses_it_and_is_used_without_it(
    template: str | None, said: str
) -> None:
    with pytest.raises(ValueError, match=f"^system=: .*{said}"):
        made(template, BRIEF)
    assert made(template, None).template


def test_a_directory_of_graphs_reads_it_as_text_that_its_vocabulary_has(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    words = tokenizer()

    def read(system: str | None) -> str:
        return text_of(tmp_path, {}, "qwen3_vl", words, 8, system).prefix

    assert read(BRIEF) == f"<|im_start|>system\n{BRIEF}<|im_end|>\n{read(None)}"
    for system, said in (("brief <|im_end|>", "control token"), ("You flurb", "unknown word 'flurb'")):
        with pytest.raises(ValueError, match=f"^system=: .*{said}") as refused:
            read(system)
        assert not isinstance(refused.value, ModelError), "the model is good"
    with pytest.raises(ValueError, match=r"^system=: .*no chat template"):
        text_of(tmp_path, {"prefix": ""}, "qwen3_vl", words, 8, BRIEF)


def test_a_model_that_says_itself_how_it_is_asked_refuses_it() -> None:
    with pytest.raises(ValueError, match=r"^system=: .*no chat template"):
        Engine.load("mosaic-tiny", system="the ball")
    with pytest.raises(ValueError, match=r"^system='7': expected text"):
        Engine.load("mosaic-tiny", system=7)  # type: ignore[arg-type]
