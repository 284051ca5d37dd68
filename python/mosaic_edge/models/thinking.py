"""Models that think before they answer: how they mark a thought, and what is thought, what answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

MARKS = (("<think>", "</think>"), ("◁think▷", "◁/think▷"), ("[THINK]", "[/THINK]"))
"""What begins a thought and what ends it: Qwen3-VL, GLM-4.1V, InternVL 3.5; Kimi-VL; Magistral."""


@dataclass(frozen=True)
class Thinking:
    """How a model marks its thoughts."""

    start: str
    end: str
    usual: bool = True
    """It thinks whenever it is asked, by its chat template; else its vocabulary has the marks, and it may."""
    opened: bool = False
    """Its prompt ends inside a thought, so that an answer begins with one."""


def thinking_of(chat_template: str | None, question: str, knows: Callable[[str], bool]) -> Thinking | None:
    """chat_template: as the model has it. question: the text of a question that it makes. knows: whether the
    vocabulary has a token."""
    behind = question.rpartition("{question}")[2]
    for start, end in MARKS:
        if behind.rfind(start) > behind.rfind(end):
            return Thinking(start, end, opened=True)
        # A template that takes thoughts out of earlier answers is of a model that thinks, unless it ends the
        # thought itself.
        if end in (chat_template or "") and end not in behind:
            return Thinking(start, end)
        if knows(start) and knows(end):
            return Thinking(start, end, usual=False)
    return None


def parted(thinking: Thinking | None, said: str, ended: bool = False) -> tuple[str, str]:
    """Thought and answer in what a model said so far. An answer is empty as long as it may be a thought.
    ended: no more follows."""
    if thinking is None:
        return "", said
    begun = said.lstrip()
    if begun.startswith(thinking.start):
        inside = begun[len(thinking.start) :]
    elif thinking.opened:
        inside = said
    elif thinking.start.startswith(begun) and not ended:  # half a mark, or nothing yet
        return "", ""
    else:
        return "", said
    thought, _, answer = inside.partition(thinking.end)
    return thought.strip(), answer.lstrip()
