"""What `ask` is given, checked before anything is opened, and the token ids of a question in its template."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import timedelta
from numbers import Real
from typing import Any

from mosaic_edge.models.vlm import Vlm
from mosaic_edge.sampling import SamplingParams

_FIELD = "{question}"


def check_arguments(question: Any, since: Any, sampling: Any, **flags: Any) -> None:
    """The arguments of `ask` other than what the model says of the text. ValueError names the one."""
    if not isinstance(question, str):
        raise ValueError(f"question={_short(question)}: expected text")
    if any("\ud800" <= character <= "\udfff" for character in question):
        raise ValueError("question: holds half a character (a surrogate), which is no text")
    if since is not None:
        seconds(since, "since")
    if sampling is not None and not isinstance(sampling, SamplingParams):
        raise ValueError(f"sampling={_short(sampling)}: expected SamplingParams")
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name}={_short(value)}: expected True or False")


def question_tokens(
    model: Vlm, question: str, follow_up: bool = False, special_tokens: bool = False
) -> list[int]:
    """Token ids of the model's template around a question. ValueError for what it does not know, or no text.

    special_tokens: what reads like a control token of the model is one. Else it is text, as all that comes
    from outside must be: nothing typed ends a turn or stands for a frame.
    """
    if not question.strip():
        raise ValueError("question: no text")
    template = (model.spec.follow_up if follow_up else "") or model.spec.template
    before, _, after = template.partition(_FIELD)
    plain = None if special_tokens else (len(before), len(before) + len(question))
    return model.tokenize(before + question + after, plain)


def template_tokens(model: Vlm, ids: Sequence[int], follow_up: bool = False) -> tuple[int, int]:
    """How many of a question's `ids` are the template's, before the question and behind it.

    A token that has characters of both, where the tokenizer joins them, counts as the question's.
    """
    template = (model.spec.follow_up if follow_up else "") or model.spec.template
    before, _, after = template.partition(_FIELD)
    lead = _alike(ids, model.tokenize(before)) if before else 0
    trail = _alike(ids[::-1], model.tokenize(after)[::-1]) if after else 0
    lead = min(lead, len(ids) - 1)
    return lead, min(trail, len(ids) - 1 - lead)


def _alike(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def seconds(value: Any, name: str) -> float:
    """A time as a plain float: a number, a timedelta, or an array of one without dimensions, which its owner
    may change. ValueError names the argument."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, timedelta):
        value = value.total_seconds()
    try:
        if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass
    raise ValueError(f"{name}={_short(value)}: expected seconds, a finite number")


def _short(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
