"""The text around a video: cut out of a checkpoint's chat template, or the family's published one. For every
layout."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosaic_edge.models.chat_template import render
from mosaic_edge.models.directory import is_there, is_trusted, plain_file, read_json
from mosaic_edge.models.newline import NEWLINE
from mosaic_edge.models.sandbox import limited
from mosaic_edge.models.thinking import MARKS
from mosaic_edge.models.vlm import ModelError

if TYPE_CHECKING:
    from mosaic_edge.models.tokenizer import TextTokenizer

IMAGE = "<image>"
"""The mark of families whose video is so many images."""
_TEMPLATE_BYTES = 1 << 20
_QUESTION, _ANSWER, _NEXT, _THOUGHT = "\ue001", "\ue002", "\ue003", "\ue004"


@dataclass(frozen=True)
class Prompt:
    """A conversation in pieces: `prefix`, the video, `template`; then `follow_up` for every further
    question."""

    prefix: str
    template: str
    follow_up: str = ""
    answered: str | None = None
    """Text between a question and its answer once another question follows, where the template takes thoughts
    out of it; None: it leaves what was said."""
    around: tuple[str, str] = ("", "")
    """Text of the family between prefix and video, and between video and template; the chat template has
    neither."""

    between: str = ""
    """Text between two frames, where a video is so many images."""

    def before_video(self, text: str) -> Prompt:
        """With `text` before the frames."""
        return replace(self, around=(text, self.around[1]))

    def behind_video(self, text: str) -> Prompt:
        """With `text` behind the frames."""
        return replace(self, around=(self.around[0], text))

    def whole(self) -> tuple[str, str, str]:
        """Prefix, template and follow-up, the texts around the video included; `{question}` stands for it."""
        return self.prefix + self.around[0], self.around[1] + self.template, self.follow_up

    def check(self, where: str, tokenizer: TextTokenizer) -> None:
        """ModelError, named `where`, for what the vocabulary lacks of its texts."""
        prefix, template, follow_up = self.whole()
        texts = {
            "prefix": prefix,
            "template": template,
            "follow-up": follow_up,
            "answered": self.answered or "",
        }
        for part, text in texts.items():
            words = text.replace("{question}", "").replace(NEWLINE, "")
            tokenizer.check(f"{where}: {part} of its prompt", words)


def prompt_from(
    template: str | None,
    tokens: Mapping[str, str],
    mark: str,
    published: Prompt,
    folder: Path | None = None,
    system: str | None = None,
) -> Prompt:
    """The prompt that a chat template writes. `mark`: what it puts where the video goes; "": it knows of
    none.

    tokens: the special tokens that it may name (bos_token ...). Without a template it is the published one;
    with one that cannot be used too, after a warning that says why. folder: where the template came from,
    which is then rendered under limits (ModelError past them); None: from the caller's own objects.
    system: a system prompt, which the template puts where it has its place; ValueError where it has none.
    """
    where = f"{folder or 'the processor'}: its chat template"
    if template is None or not mark:
        if system is not None:
            raise no_template_for_system(folder or "the processor")
        return published
    shown = [{"type": "image"}] * 2 if mark == IMAGE else [{"type": "video"}]
    asked = [{"role": "user", "content": [*shown, {"type": "text", "text": _QUESTION}]}]
    if system is not None:
        asked.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})

    def after(answer: str) -> list[Any]:
        said = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        return [*asked, said, {"role": "user", "content": [{"type": "text", "text": _NEXT}]}]

    def rendered(*conversations: list[Any]) -> list[str]:
        return _rendered(template, tokens, list(conversations), where, folder)

    try:
        first, both = rendered(asked, after(_ANSWER))
    except _TemplateError as error:
        if system is not None:
            raise ValueError(f"system=: {where} does not take it ({error})") from None
        return _warned(published, f"{where} cannot be rendered ({error})")
    marks, questions = first.count(mark), first.count(_QUESTION)
    if (marks, questions) != (len(shown), 1):
        had = f"writes {mark} {marks} times and the question {questions} times"
        if system is not None:
            raise ValueError(f"system=: {where} {had}, expected {len(shown)} and 1")
        return _warned(published, f"{where} {had}, expected {len(shown)} and 1")
    prefix, *between, question = first.split(mark)
    if system is not None and system.strip() not in prefix:
        raise ValueError(f"system=: {where} has no place for a system prompt before the video")
    follow_up = both.partition(_ANSWER)[2]
    return replace(
        published,
        prefix=prefix,
        template=question.replace(_QUESTION, "{question}"),
        follow_up=follow_up.replace(_NEXT, "{question}")
        if follow_up.count(_NEXT) == 1
        else published.follow_up,
        answered=_answered(template, lambda answer: rendered(after(answer))[0]),
        between="".join(between),
    )


def no_template_for_system(where: object) -> ValueError:
    """Of a system prompt for what has no template that could put it into a prompt."""
    return ValueError(f"system=: {where} has no chat template to put it into")


def _answered(template: str, write: Callable[[str], str]) -> str | None:
    """Prompt.answered of a template that takes thoughts out. write(answer): a conversation that goes on."""
    for start, end in MARKS:
        if start not in template and end not in template:
            continue
        try:
            text = write(f"{start}\n{_THOUGHT}\n{end}\n\n{_ANSWER}")
        except _TemplateError:  # it takes no thoughts in what was said
            continue
        if _THOUGHT not in text and text.count(_ANSWER) == 1:
            return text.partition(_QUESTION)[2].partition(_ANSWER)[0]
    return None


def chat_template_in(folder: Path) -> str | None:
    """The template of a model directory: a file of its own, else as its tokenizer has it; None where there is
    none."""
    jinja = folder / "chat_template.jinja"
    if is_there(jinja):
        size = plain_file(folder, jinja).stat().st_size
        if size > _TEMPLATE_BYTES:
            raise ModelError(f"{jinja}: {size} bytes, expected at most {_TEMPLATE_BYTES}")
        try:
            return jinja.read_text(encoding="utf-8")
        except ValueError as error:
            raise ModelError(f"{jinja}: not readable as UTF-8 ({error})") from None
    files = ("chat_template.json", "tokenizer_config.json")
    return next(
        filter(None, (named_template(read_json(folder / name).get("chat_template")) for name in files)), None
    )


def named_template(said: Any) -> str | None:
    """A template as files and tokenizers have it: text; or several by name, as an object or as a list of
    pairs."""
    if isinstance(said, list):
        said = {t.get("name"): t.get("template") for t in said if isinstance(t, dict)}
    if isinstance(said, dict):
        said = said.get("default")
    return said if isinstance(said, str) else None


def special_tokens_in(folder: Path) -> dict[str, str]:
    """The special tokens of a model directory by name (bos_token ...), as its tokenizer's files say."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in read_json(folder / name).items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                found[key] = text
    return found


class _TemplateError(Exception):
    """A template that refused what it was given, or is none."""


def _rendered(
    template: str, tokens: Mapping[str, str], conversations: list[Any], where: str, folder: Path | None
) -> list[str]:
    if folder is not None and not is_trusted(folder):
        made = limited(where, "chat_template", template, conversations, dict(tokens))
        if made["error"] is not None:
            raise _TemplateError(made["error"])
        return list(made["texts"])
    try:
        return [render(template, messages, tokens) for messages in conversations]
    except Exception as error:  # a template may refuse anything, by any exception
        raise _TemplateError(" ".join(str(error).split())[:200] or type(error).__name__) from None


def _warned(published: Prompt, why: str) -> Prompt:
    warnings.warn(f"{why}: the published prompt of its family is used", stacklevel=2)
    return published
