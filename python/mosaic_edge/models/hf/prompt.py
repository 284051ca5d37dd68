"""The text around a video: cut out of a checkpoint's chat template, or the family's published one."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mosaic_edge.models.directory import is_there, is_trusted, plain_file, read_json
from mosaic_edge.models.sandbox import limited
from mosaic_edge.models.vlm import ModelError

NEWLINE = "\ue000"
"""Stands in a prompt for the embedding that ends a video (LLaVA-OneVision), which no text has. Private use:
no tokenizer knows it, and in a question it is a character like any other.
"""
_TEMPLATE_BYTES = 1 << 20
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


def prompt_from(
    tokenizer: Any, chat_template: str | None, mark: str, published: Prompt, folder: Path | None = None
) -> Prompt:
    """The prompt that a chat template writes. `mark`: what it puts where the video goes.

    Without a template it is the published one; with one that cannot be used too, after a warning that says
    why. folder: where the template came from, which is then rendered under limits (ModelError past them);
    None: from the caller's own objects.
    """
    template = chat_template or getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    if not isinstance(template, str):
        return published
    kind = "image" if mark == "<image>" else "video"
    asked = [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": _QUESTION}]}]
    answered = [
        *asked,
        {"role": "assistant", "content": [{"type": "text", "text": _ANSWER}]},
        {"role": "user", "content": [{"type": "text", "text": _NEXT}]},
    ]
    where = f"{folder or 'the processor'}: its chat template"
    try:
        first, both = _rendered(tokenizer, template, [asked, answered], where, folder)
    except _TemplateError as error:
        return _warned(published, f"{where} cannot be rendered ({error})")
    marks, questions = first.count(mark), first.count(_QUESTION)
    if (marks, questions) != (1, 1):
        had = f"writes {mark} {marks} times and the question {questions} times, expected once each"
        return _warned(published, f"{where} {had}")
    prefix, question = first.split(mark)
    follow_up = both.partition(_ANSWER)[2]
    return replace(
        published,
        prefix=prefix,
        template=question.replace(_QUESTION, "{question}"),
        follow_up=follow_up.replace(_NEXT, "{question}")
        if follow_up.count(_NEXT) == 1
        else published.follow_up,
    )


def chat_template_in(folder: Path) -> str | None:
    """The template a processor keeps beside its tokenizer's, if there is one."""
    jinja = folder / "chat_template.jinja"
    if not is_there(jinja):
        found: str | None = read_json(folder / "chat_template.json").get("chat_template")
        return found
    size = plain_file(folder, jinja).stat().st_size
    if size > _TEMPLATE_BYTES:
        raise ModelError(f"{jinja}: {size} bytes, expected at most {_TEMPLATE_BYTES}")
    try:
        return jinja.read_text(encoding="utf-8")
    except ValueError as error:
        raise ModelError(f"{jinja}: not readable as UTF-8 ({error})") from None


class _TemplateError(Exception):
    """A template that refused what it was given, or is none."""


def _rendered(
    tokenizer: Any, template: str, conversations: list[Any], where: str, folder: Path | None
) -> list[str]:
    if folder is not None and not is_trusted(folder):
        tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        made = limited(where, "chat_template", template, conversations, tokens)
        if made["error"] is not None:
            raise _TemplateError(made["error"])
        return list(made["texts"])
    try:
        return [
            str(
                tokenizer.apply_chat_template(
                    messages, chat_template=template, tokenize=False, add_generation_prompt=True
                )
            )
            for messages in conversations
        ]
    except Exception as error:  # a template may refuse anything, by any exception
        raise _TemplateError(" ".join(str(error).split())[:200] or type(error).__name__) from None


def _warned(published: Prompt, why: str) -> Prompt:
    warnings.warn(f"{why}: the published prompt of its family is used", stacklevel=2)
    return published
