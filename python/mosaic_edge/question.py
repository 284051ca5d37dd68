"""What `ask` is given, checked before anything is opened, and the token ids of a question in its template."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from numbers import Real
from typing import Any

import numpy as np

from mosaic_edge.answer_text import AnswerText
from mosaic_edge.models.vlm import Vlm
from mosaic_edge.sampling import SamplingParams
from mosaic_edge.shown import shown

_FIELD = "{question}"


@dataclass(frozen=True)
class Asked:
    """A question as it is put to a model."""

    question: str
    ids: list[int]
    lead: int
    trail: int
    """How many of the first and the last `ids` are the template's."""
    follow_up: bool
    """The dialogue holds an answer before it."""
    since: float | None
    """Seconds; what was seen before them is not read."""
    dialogue: bool
    """Question and answer stay readable."""


def check_arguments(question: Any, since: Any, sampling: Any, **flags: Any) -> None:
    """The arguments of `ask` other than what the model says of the text. ValueError names the one."""
    if not isinstance(question, str):
        raise ValueError(f"question={shown(question)}: expected text")
    if any("\ud800" <= character <= "\udfff" for character in question):
        raise ValueError("question: holds half a character (a surrogate), which is no text")
    if since is not None:
        seconds(since, "since")
    if sampling is not None and not isinstance(sampling, SamplingParams):
        raise ValueError(f"sampling={shown(sampling)}: expected SamplingParams")
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name}={shown(value)}: expected True or False")


def question_tokens(
    model: Vlm, question: str, follow_up: bool = False, special_tokens: bool = False
) -> list[int]:
    """Token ids of the model's template around a question. ValueError for what it does not know, or no text.

    special_tokens: what reads like a control token of the model is one. Else it is text, as all that comes
    from outside must be: nothing typed ends a turn or stands for a frame.
    """
    if not question.strip():
        raise ValueError("question: no text")
    before, after = _around(model, follow_up)
    plain = None if special_tokens else (len(before), len(before) + len(question))
    return model.tokenize(before + question + after, plain)


def asked_of(
    model: Vlm, question: str, follow_up: bool, special_tokens: bool, since: float | None, dialogue: bool
) -> Asked:
    """Arguments that check_arguments() took, as the model is given them. ValueError as question_tokens."""
    ids = question_tokens(model, question, follow_up, special_tokens)
    lead, trail = template_tokens(model, ids, follow_up)
    return Asked(question, ids, lead, trail, follow_up, since, dialogue)


def template_tokens(model: Vlm, ids: Sequence[int], follow_up: bool = False) -> tuple[int, int]:
    """How many of a question's `ids` are the template's, before the question and behind it.

    A token that has characters of both, where the tokenizer joins them, counts as the question's.
    """
    before, after = _around(model, follow_up)
    lead = alike(ids, model.tokenize(before)) if before else 0
    trail = alike(ids[::-1], model.tokenize(after)[::-1]) if after else 0
    lead = min(lead, len(ids) - 1)
    return lead, min(trail, len(ids) - 1 - lead)


def kept_turn(model: Vlm, asked: Asked, answer: AnswerText, most_tokens: int) -> list[int] | None:
    """Token ids of a question and its answer as the chat template writes them once another question follows;
    None where that is what was read and drawn. What goes beyond `most_tokens` is cut off."""
    answered = model.spec.answered
    before, behind = _around(model, asked.follow_up)
    if answered is None or (behind == answered and not answer.has_thought):
        return None
    question = before + asked.question
    ids = model.tokenize(question + answered, (len(before), len(question)))
    try:
        ids += model.tokenize(answer.text, (0, len(answer.text))) if answer.text else []
    except ValueError:  # an answer that was cut off inside a character, of a vocabulary without bytes
        return None
    return ids[:most_tokens]


def _around(model: Vlm, follow_up: bool) -> tuple[str, str]:
    """The template's text before a question and behind it."""
    template = (model.spec.follow_up if follow_up else "") or model.spec.template
    before, _, behind = template.partition(_FIELD)
    return before, behind


def alike(a: Sequence[int], b: Sequence[int]) -> int:
    """How many of their first tokens are the same."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def seconds(value: Any, name: str) -> float:
    """A time as a plain float: a number, a timedelta, or an array of one without dimensions, which its owner
    may change. ValueError names the argument."""
    try:
        number = _scalar(value)
        if isinstance(number, timedelta):
            number = number.total_seconds()
        if isinstance(number, Real) and not isinstance(number, bool) and math.isfinite(number):
            return float(number)
    except Exception:  # whatever the object raises when it is asked for its number
        pass
    raise ValueError(f"{name}={shown(value)}: expected seconds, a finite number")


def _scalar(value: Any) -> Any:
    """What an array without dimensions holds. Times of NumPy have units, which item() leaves out of some."""
    if getattr(value, "shape", None) != () or not hasattr(value, "item"):
        return value
    kind = getattr(getattr(value, "dtype", None), "kind", None)
    if kind == "M" or np.ma.is_masked(value):
        return None
    return value / np.timedelta64(1, "s") if kind == "m" else value.item()
