"""The text around a video: cut out of a checkpoint's chat template, or the family's published one."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

NEWLINE = "\ue000"
"""Stands in a prompt for the embedding that ends a video (LLaVA-OneVision), which no text has. Private use:
no tokenizer knows it, and a question may not hold it.
"""
_QUESTION, _ANSWER, _NEXT = "\ue001", "\ue002", "\ue003"


@dataclass(frozen=True)
class Prompt:
    """A conversation in pieces: `prefix`, the video, `template`; then `follow_up` for every further
    question."""

    prefix: str
    template: str
    follow_up: str = ""
    around: tuple[str, str] = ("", "")
    """Text of the family between prefix and video, and between video and template; the chat template has
    neither."""

    def before_video(self, text: str) -> Prompt:
        """With `text` before the frames."""
        return replace(self, around=(text, self.around[1]))

    def behind_video(self, text: str) -> Prompt:
        """With `text` behind the frames."""
        return replace(self, around=(self.around[0], text))

    def whole(self) -> tuple[str, str, str]:
        """Prefix, template and follow-up, the texts around the video included; `{question}` stands for it."""
        return self.prefix + self.around[0], self.around[1] + self.template, self.follow_up


def prompt_from(tokenizer: Any, chat_template: str | None, mark: str, published: Prompt) -> Prompt:
    """The prompt that a chat template writes. `mark`: what it puts where the video goes.

    Without a template, or with one that puts the video nowhere, it is the published one.
    """
    template = chat_template or getattr(tokenizer, "chat_template", None)
    if not isinstance(template, str):
        return published
    kind = "image" if mark == "<image>" else "video"
    asked = [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": _QUESTION}]}]
    answered = [
        *asked,
        {"role": "assistant", "content": [{"type": "text", "text": _ANSWER}]},
        {"role": "user", "content": [{"type": "text", "text": _NEXT}]},
    ]

    def render(messages: list[dict[str, Any]]) -> str:
        try:
            return str(
                tokenizer.apply_chat_template(
                    messages, chat_template=template, tokenize=False, add_generation_prompt=True
                )
            )
        except Exception:  # a template may refuse anything, by any exception
            return ""

    first, both = render(asked), render(answered)
    if first.count(mark) != 1 or first.count(_QUESTION) != 1:
        return published
    prefix, question = first.split(mark)
    follow_up = both.partition(_ANSWER)[2]
    return replace(
        published,
        prefix=prefix,
        template=_with_field(question, _QUESTION),
        follow_up=_with_field(follow_up, _NEXT) if _NEXT in follow_up else published.follow_up,
    )


def chat_template_in(folder: Path) -> str | None:
    """The template a processor keeps beside its tokenizer's, if there is one."""
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    old = folder / "chat_template.json"
    if old.is_file():
        found = json.loads(old.read_text(encoding="utf-8")).get("chat_template")
        return found if isinstance(found, str) else None
    return None


def _with_field(text: str, mark: str) -> str:
    """`text` as a format string whose one field stands where `mark` is."""
    return text.replace("{", "{{").replace("}", "}}").replace(mark, "{question}")
