"""Which of a question's tokens are its template's: counted from both ends, handed to the memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mosaic_edge.engine import Engine
from mosaic_edge.question import question_tokens, template_tokens
from mosaic_edge.sampling import SamplingParams
from numpy_vlm import NumpyVlm, picture

PIECES = ("<user>", "<end>", "answer", "ab", "a", "b", "c", " ", "?")
"""The longest that fits is a token."""


class Told(NumpyVlm):
    """A tokenizer that joins an "a" of the template with a "b" of the question."""

    def __init__(self, template: str, follow_up: str = "") -> None:
        super().__init__()
        self.told = replace(super().spec, template=template, follow_up=follow_up)

    @property
    def spec(self) -> Any:
        return self.told

    def tokenize(self, text: str, plain: tuple[int, int] | None = None) -> list[int]:
        ids = []
        while text:
            piece = next(i for i, piece in enumerate(PIECES) if text.startswith(piece))
            ids.append(piece)
            text = text.removeprefix(PIECES[piece])
        return ids


@pytest.mark.parametrize(
    ("template", "question", "bare"),
    [
        ("{question}", "a b?", ["a", " ", "b", "?"]),
        ("<user>{question}<end>answer", "a b?", ["a", " ", "b", "?"]),
        ("<user> {question}", "c?", ["c", "?"]),
        ("<user>a{question}<end>", "b c", ["ab", " ", "c"]),  # one token of both
        ("<user>{question}b<end>", "c a", ["c", " ", "ab"]),
        ("<user>a{question}b<end>", "bca", ["ab", "c", "ab"]),
        ("c{question}c", "c", ["c"]),
        ("c{question}c", "cc", ["c", "c"]),
    ],
)
def test_the_bare_question_is_what_its_template_is_not(template: str, question: str, bare: list[str]) -> None:
    model = Told(template)
    ids = question_tokens(model, question)
    lead, trail = template_tokens(model, ids)
    assert [PIECES[i] for i in ids[lead : len(ids) - trail]] == bare


def test_a_follow_up_has_a_template_of_its_own() -> None:
    model = Told("<user>{question}", follow_up="<end><user>{question}<end>")
    ids = question_tokens(model, "c?", follow_up=True)
    assert template_tokens(model, ids, follow_up=True) == (2, 1)


def test_the_memory_is_told_which_tokens_are_the_template_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = []
    with Engine(Told("<user>{question}<end>answer")).session(
        memory="1MiB", policy="rekv", kernel_threads=1
    ) as session:
        session.append(picture(0), 0.0)
        memory: Any = session._blocks.memory

        class Listened:
            def __getattr__(self, name: str) -> Any:
                return getattr(memory, name)

            def begin_text(self, *given: int) -> None:
                told.append(given)
                memory.begin_text(*given)

        monkeypatch.setattr(session._blocks, "memory", Listened())
        session.ask("c b?", sampling=SamplingParams(max_tokens=3))
    assert told[0] == (7, 1, 2)
    assert all(one == (1, 0, 0) for one in told[1:])
