"""What sandbox.py runs in a child process; plain data in and out, heavy imports inside."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

_MOST_TOKENS = 64
"""Of a character; bytes of one are four."""
_MOST_TEXT = 1 << 16
"""Characters that a template writes, or one token of an answer."""
_IDS = 1 << 24
"""Of a vocabulary. Whoever writes it down walks through all numbers up to its largest."""


def tokenizer(path: str) -> None:
    """Load a tokenizer.json and encode texts that show what grows without bound."""
    from tokenizers import Tokenizer

    from mosaic_edge.models.tokenizer_growth import check_growth, growth

    made = Tokenizer.from_file(path)
    made.no_truncation()
    made.no_padding()
    vocabulary = made.get_vocab()
    largest = max(vocabulary.values(), default=0)
    if largest >= _IDS:
        raise ValueError(f"has a token of id {largest}, expected less than {_IDS}")
    said = json.loads(made.to_str())  # not the file: steps may stand there without their type
    check_growth(said)
    written = max(map(len, vocabulary), default=0) * growth(said.get("decoder"))
    if written > _MOST_TEXT:
        raise ValueError(f"may write {written:.0f} characters for one token, expected at most {_MOST_TEXT}")
    printable = "".join(map(chr, range(32, 127)))
    count = 0
    for text in (printable, "what colour was the ball ? " * 8, "a" * 512, "\u00e9\u4e16\U0001f600\n\t" * 32):
        with suppress(Exception):  # a vocabulary without a word for unknown ones refuses most texts
            count = len(made.encode(text, add_special_tokens=False).ids)
        if count > _MOST_TOKENS * len(text):
            raise ValueError(f"makes {count} tokens of a text of {len(text)} characters")


def chat_template(template: str, conversations: list[Any], tokens: dict[str, str]) -> dict[str, Any]:
    """Each conversation as transformers renders it, with a prompt for the answer behind it, as `texts`; or
    why that cannot be, as `error`."""
    from mosaic_edge.models.chat_template import render

    try:
        texts = [render(template, conversation, tokens) for conversation in conversations]
    except MemoryError:
        raise
    except Exception as error:  # a template may refuse anything, by any exception
        return {"error": " ".join(str(error).split())[:200] or type(error).__name__, "texts": []}
    longest = max(map(len, texts))
    if longest > _MOST_TEXT:
        raise ValueError(f"writes {longest} characters, expected at most {_MOST_TEXT}")
    return {"error": None, "texts": texts}
