"""All text that an ONNX model directory has its model read, checked against its tokenizer: around the video,
around every picture. The transformers layout has the same from its family's class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mosaic_edge.models.newline import NEWLINE
from mosaic_edge.models.prompt import (
    chat_template_in,
    no_template_for_system,
    prompt_from,
    special_tokens_in,
)
from mosaic_edge.models.tensor_file import vector_of
from mosaic_edge.models.thinking import Thinking, thinking_of
from mosaic_edge.models.tokenizer import TextTokenizer
from mosaic_edge.models.video_text import VIDEO_TEXTS, VideoText
from mosaic_edge.models.vlm import FloatArray, ModelError

_GIVE = "mosaic.json can give a prefix and a template"
LAST = 9_999_999.0
"""Seconds and pictures that text around a picture is planned for."""


@dataclass(frozen=True)
class ModelText:
    """Fields of VlmSpec, and the text around a picture with the most tokens that it takes."""

    prefix: str
    template: str
    follow_up: str = ""
    video: VideoText | None = None
    tokens: int = 0
    thinking: Thinking | None = None
    newline: FloatArray | None = None
    """[hidden]: the embedding that ends a video, where the prompt has one."""
    left_out: str = ""
    """What of the published prompt is not read, and why."""
    answered: str | None = None


def family_name(config: Mapping[str, Any], genai: Mapping[str, Any]) -> str:
    """The model_type of config.json, or genai_config.json's word for it."""
    return str(config.get("model_type") or genai.get("model", {}).get("type") or "")


def text_of(
    folder: Path,
    mosaic: Mapping[str, Any],
    kind: str,
    tokenizer: TextTokenizer,
    hidden: int,
    system: str | None = None,
) -> ModelText:
    """As mosaic.json says; else by the chat template, in the words of the family; else its published prompt;
    else none, which is said. ModelError for what the vocabulary lacks. hidden: the width of an embedding.
    system: a system prompt; ValueError where it has no place."""
    video = VIDEO_TEXTS.get(kind)
    is_said = "prefix" in mosaic or "template" in mosaic
    template = None if is_said or video is None else chat_template_in(folder)
    if system is not None:
        if template is None:
            raise no_template_for_system(folder)
        tokenizer.check_plain("system=", system)
    if is_said:
        return _as_said(folder, mosaic, tokenizer)
    if video is None:
        lacks = f"all of it: the family {kind!r} has no text here"
        return replace(_as_said(folder, mosaic, tokenizer), left_out=f"{lacks}; {_GIVE}")
    try:
        return _of_family(folder, video, template, tokenizer, hidden, system)
    except ModelError:
        if template is not None:
            raise
        lacks = f"all of it: {folder} has no chat template, and no words for the published prompt"
        return replace(_as_said(folder, mosaic, tokenizer), left_out=f"{lacks}; {_GIVE}")


def _as_said(folder: Path, mosaic: Mapping[str, Any], tokenizer: TextTokenizer) -> ModelText:
    """By mosaic.json alone; the question as it is where that says nothing."""
    prefix, question = mosaic.get("prefix", ""), mosaic.get("template", "{question}")
    tokenizer.check(f"{folder / 'mosaic.json'}: prefix", prefix)
    tokenizer.check(f"{folder / 'mosaic.json'}: template", question.replace("{question}", ""))
    return ModelText(prefix, question, thinking=thinking_of(None, question, tokenizer.has))


def _of_family(
    folder: Path,
    video: VideoText,
    template: str | None,
    tokenizer: TextTokenizer,
    hidden: int,
    system: str | None,
) -> ModelText:
    special = special_tokens_in(folder)
    prompt = prompt_from(template, special, video.mark, video.prompt, folder, system)
    first = special.get("bos_token", "")
    if first and tokenizer.begins_with(first) and not prompt.prefix.startswith(first):
        prompt = replace(prompt, prefix=first + prompt.prefix)  # as a processor begins a text
    parts = prompt.whole()
    newline, left_out = _newline(folder, hidden) if NEWLINE in "".join(parts) else (None, "")
    prefix, question, follow_up = (
        part if newline is not None else part.replace(NEWLINE, "") for part in parts
    )
    prompt.check(str(folder), tokenizer)
    video = video.parted(prompt.between)
    try:
        thinking = thinking_of(template, question, tokenizer.has)
        most = most_tokens(video, tokenizer)
    except ValueError as error:
        raise ModelError(f"{folder}: text around a picture: {error}") from None
    return ModelText(prefix, question, follow_up, video, most, thinking, newline, left_out, prompt.answered)


def _newline(folder: Path, hidden: int) -> tuple[FloatArray | None, str]:
    """The embedding that ends a video, which no graph has: out of the weights of the same model, where they
    lie beside its graphs. Else None, and what is said of it."""
    what = "the embedding that ends a video (image_newline), which is in no graph"
    try:
        found = vector_of(folder, "image_newline", hidden)
    except ModelError as error:
        return None, f"{what}: {error}"
    lacks = f"{what}: {folder} has no *.safetensors with it; the model's own beside its graphs would do"
    return found, "" if found is not None else lacks


def most_tokens(video: VideoText, tokenizer: TextTokenizer) -> int:
    """Of the text around a picture, however late in a stream."""
    leads = (video.lead(LAST, number) for number in (0, int(LAST)))
    return max(len(tokenizer.encode(lead)) for lead in leads) + len(tokenizer.encode(video.trail))
