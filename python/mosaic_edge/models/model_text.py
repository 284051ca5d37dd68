"""All text that an ONNX model directory has its model read, checked against its tokenizer: around the video,
around every picture. The transformers layout has the same from its family's class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mosaic_edge.models.prompt import NEWLINE, chat_template_in, prompt_from, special_tokens_in
from mosaic_edge.models.thinking import Thinking, thinking_of
from mosaic_edge.models.tokenizer import TextTokenizer
from mosaic_edge.models.video_text import VIDEO_TEXTS, VideoText
from mosaic_edge.models.vlm import ModelError

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


def family_name(config: Mapping[str, Any], genai: Mapping[str, Any]) -> str:
    """The model_type of config.json, or genai_config.json's word for it."""
    return str(config.get("model_type") or genai.get("model", {}).get("type") or "")


def text_of(folder: Path, mosaic: Mapping[str, Any], kind: str, tokenizer: TextTokenizer) -> ModelText:
    """As mosaic.json says; else by the chat template, in the words of the family; else none. ModelError for
    what the vocabulary lacks."""
    video = VIDEO_TEXTS.get(kind)
    template = None if "prefix" in mosaic or "template" in mosaic else chat_template_in(folder)
    if template is None or video is None:
        question = mosaic.get("template", "{question}")
        text = ModelText(
            mosaic.get("prefix", ""), question, thinking=thinking_of(None, question, tokenizer.has)
        )
        tokenizer.check(f"{folder / 'mosaic.json'}: prefix", text.prefix)
        tokenizer.check(f"{folder / 'mosaic.json'}: template", text.template.replace("{question}", ""))
        return text
    prompt = prompt_from(template, special_tokens_in(folder), video.mark, video.prompt, folder)
    # The embedding that ends a video is in no graph.
    prefix, question, follow_up = (part.replace(NEWLINE, "") for part in prompt.whole())
    for part, written in (("prefix", prefix), ("template", question), ("follow-up", follow_up)):
        tokenizer.check(f"{folder}: {part} of its prompt", written.replace("{question}", ""))
    video = video.parted(prompt.between)
    try:
        thinking = thinking_of(template, question, tokenizer.has)
        return ModelText(prefix, question, follow_up, video, most_tokens(video, tokenizer), thinking)
    except ValueError as error:
        raise ModelError(f"{folder}: text around a picture: {error}") from None


def most_tokens(video: VideoText, tokenizer: TextTokenizer) -> int:
    """Of the text around a picture, however late in a stream."""
    leads = (video.lead(LAST, number) for number in (0, int(LAST)))
    return max(len(tokenizer.encode(lead)) for lead in leads) + len(tokenizer.encode(video.trail))
