"""How good an answer's first token is: right among the candidates, nll of the right one, KL to full's."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .decoder import Decoder, Floats
from .streams import Stream

Doubles = NDArray[np.float64]


def room_ids(decoder: Decoder, stream: Stream) -> dict[str, int]:
    """The first token of each candidate behind the opening of an answer. ValueError where two share it."""
    first = {room: decoder.ids(" " + room)[0] for room in stream.rooms}
    if len(set(first.values())) < len(first):
        raise ValueError(f"{decoder.name}: two of {', '.join(stream.rooms)} begin with the same token")
    return first


def log_softmax(logits: Floats) -> Doubles:
    """Of the last axis, in float64."""
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(-1, keepdims=True)))


def judged(decoder: Decoder, stream: Stream, logits: Floats, full: Floats | None) -> list[dict[str, Any]]:
    """{"right", "nll", "kl"} of each question's logits [questions, vocab]; KL(full || these), if known."""
    ids = room_ids(decoder, stream)
    rooms, tokens = list(ids), list(ids.values())
    rows = []
    for index, question in enumerate(stream.questions):  # one at a time: a vocabulary is large
        said = log_softmax(logits[index])
        row: dict[str, Any] = {
            "right": rooms[int(said[tokens].argmax())] == question.answer,
            "nll": round(float(-said[ids[question.answer]]), 5),
            "kl": None,
        }
        if full is not None:
            meant = log_softmax(full[index])
            row["kl"] = round(max(float((np.exp(meant) * (meant - said)).sum()), 0.0), 6)
        rows.append(row)
    return rows
