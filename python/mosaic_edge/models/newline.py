"""The embedding that ends a video (LLaVA-OneVision), which no text and no vocabulary has: in a prompt it is
the character NEWLINE, among token ids the one behind the last."""

from __future__ import annotations

from mosaic_edge.models.tokenizer import TextTokenizer

NEWLINE = "\ue000"
"""Private use: no tokenizer knows it, and in a question it is a character like any other."""


def encode_with_newline(
    tokenizer: TextTokenizer, text: str, plain: tuple[int, int] | None, newline: int
) -> list[int]:
    """Token ids of a text as the tokenizer has them, `newline` wherever a prompt of the model's own has the
    mark. plain: from which character to which the text is from outside."""
    start, end = plain or (len(text), len(text))
    marks = [i for i, c in enumerate(text) if c == NEWLINE and not start <= i < end]
    ids: list[int] = []
    for a, b in zip([0, *(i + 1 for i in marks)], [*marks, len(text)], strict=True):
        inside = plain is not None and a <= start and end <= b
        ids += [
            *([newline] if a else []),
            *tokenizer.encode(text[a:b], (start - a, end - a) if inside else None),
        ]
    return ids
