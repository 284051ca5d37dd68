"""A chat template rendered as transformers renders it, by jinja2 alone, so that every layout has its
prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any


def render(template: str, conversation: Sequence[Mapping[str, Any]], tokens: Mapping[str, str]) -> str:
    """The text of a conversation with a prompt for the answer behind it. tokens: bos_token, eos_token ... by
    name.

    Raises ImportError without jinja2, and whatever else a template makes jinja2 raise.
    """
    from jinja2 import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import Scope
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %}: marks what the model said; here it is text like any other."""

        tags = {"generation"}  # noqa: RUF012  jinja2's own type

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=refuse, strftime_now=lambda form: datetime.now().strftime(form)
    )
    compiled = environment.from_string(template)
    return str(
        compiled.render(
            messages=conversation, tools=None, documents=None, add_generation_prompt=True, **tokens
        )
    )


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
    """Without jinja2's own escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)
