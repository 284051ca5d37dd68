"""Chat templates are rendered as transformers renders them, and read from wherever a model directory keeps
one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from mosaic_edge.models.chat_template import render
from mosaic_edge.models.prompt import chat_template_in, named_template, special_tokens_in

SAID = [
    {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "why <b>?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "so"}]},
]
MESSAGES = "{% for m in messages %}"
TEMPLATES = {
    "blocks lose their line": MESSAGES
    + "\n  {% if m.role == 'user' %}\n{{ m.role }}\n{% endif %}\n{% endfor %}",
    "loop controls": MESSAGES + "{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "generation": MESSAGES + "\n{% generation %}\n{{ m.role }}\n{% endgeneration %}\n!{% endfor %}",
    "json": "{{ messages | tojson }} {{ messages[0] | tojson(indent=2) }}",
    "tokens": "{{ bos_token }}{% if tools %}T{% endif %}{% if add_generation_prompt %}G{% endif %}"
    "{{ documents }}",
}
BY_NAME = [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_rendered_as_by_transformers(name: str) -> None:
    template = TEMPLATES[name]
    (theirs,), _ = render_jinja_template(
        conversations=[SAID], chat_template=template, add_generation_prompt=True, bos_token="<s>"
    )
    assert render(template, SAID, {"bos_token": "<s>"}) == theirs
    assert theirs


def test_a_template_reaches_nothing_outside() -> None:
    from jinja2.exceptions import SecurityError

    with pytest.raises(SecurityError):
        render("{{ messages.__class__.__base__.__subclasses__() }}", SAID, {})


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"chat_template.jinja": "a", "chat_template.json": {"chat_template": "b"}}, "a"),
        ({"chat_template.json": {"chat_template": "b"}, "tokenizer_config.json": {"chat_template": ""}}, "b"),
        ({"tokenizer_config.json": {"chat_template": "c"}}, "c"),
        ({"tokenizer_config.json": {"chat_template": BY_NAME}}, "d"),
        ({"chat_template.json": {"chat_template": {"default": "e", "rag": "r"}}}, "e"),
        ({"tokenizer_config.json": {}}, None),
    ],
)  # fmt: skip
def test_a_template_is_found_where_a_directory_keeps_it(
    files: dict[str, Any], found: str | None, tmp_path: Path
) -> None:
    for name, said in files.items():
        (tmp_path / name).write_text(said if isinstance(said, str) else json.dumps(said))
    assert chat_template_in(tmp_path) == found


def test_what_is_no_template_is_none() -> None:
    assert [named_template(said) for said in (None, [], [1], {}, {"x": "y"}, 3)] == [None] * 6


def test_special_tokens_are_read_as_text_or_as_objects(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": None, "model_max_length": 9}
        )
    )
    assert special_tokens_in(tmp_path) == {"bos_token": "<s>", "eos_token": "</s>"}
