"""Rows of what is read and said: ids, logits, greedy tokens; for both layouts."""

from __future__ import annotations

from itertools import groupby

import numpy as np

from mosaic_edge.evaluation.check.row import Row, largest, near, same_ids
from mosaic_edge.evaluation.check.watched import PICTURE, Watched
from mosaic_edge.models.vlm import FloatArray


def ids_rows(ours: list[int], theirs: list[int]) -> tuple[Row, Row]:
    """Text and where pictures stand in it; how long each stretch of a picture's tokens is."""
    (our_words, our_sizes), (words, sizes) = _split(ours), _split(theirs)
    shown = f"stretches of picture tokens: {', '.join(map(str, our_sizes[:8]))}"
    return same_ids("prompt", our_words, words, "ids"), same_ids("tokens a frame", our_sizes, sizes, shown)


def _split(ids: list[int]) -> tuple[list[int], list[int]]:
    """Ids with one PICTURE for each stretch of them, and the lengths of these."""
    words: list[int] = []
    sizes: list[int] = []
    for token, stretch in groupby(ids):
        count = len(list(stretch))
        words += [token] * (1 if token == PICTURE else count)
        sizes += [count] if token == PICTURE else []
    return words, sizes


def logits_row(ours: FloatArray, theirs: FloatArray, allowed: float) -> Row:
    """Of the first token."""
    return near("logits", largest(ours, theirs, float(theirs.std())), allowed, "their spread")


def tokens_row(
    ours: Watched, logits: list[FloatArray], tokens: list[int], ends: tuple[int, ...], allowed: float
) -> Row:
    """Greedy tokens, to the end of our answer; where the two likeliest are as good as equal, to there."""
    said = ours.tokens
    count = len(said)
    at = next((i for i, (a, b) in enumerate(zip(said, tokens, strict=False)) if a != b), None)
    if at is None:
        ended = said[-1] in ends
        whole = count == len(tokens) or ended
        return Row("greedy tokens", whole, f"{count} tokens{', the last ends the answer' if ended else ''}")
    best = np.sort(logits[at])[-2:]
    if best[1] - best[0] <= 2 * allowed * float(logits[at].std()):
        return Row("greedy tokens", True, f"{at} tokens, then a tie of {said[at]} and {tokens[at]}")
    return Row("greedy tokens", False, f"token {at} is {said[at]}, the script has {tokens[at]}")
