"""The text of an answer while it is drawn: what of it is thought, and what can be given out already."""

from __future__ import annotations

from mosaic_edge.models.thinking import Thinking, parted


class AnswerText:
    """What a model said so far."""

    def __init__(self, thinking: Thinking | None) -> None:
        self._thinking = thinking
        self._said = self._given = ""
        self.thought = self.text = ""

    def piece(self, said: str) -> str | None:
        """What is new of the answer; None where it is held back: a character may take several tokens, and
        until its last it reads as U+FFFD."""
        self._said = said
        self.thought, self.text = parted(self._thinking, said)
        if not self.text.startswith(self._given) or self.text.endswith("\ufffd"):
            return None
        piece, self._given = self.text[len(self._given) :], self.text
        return piece

    def rest(self) -> str:
        """What was held back to the end."""
        self.thought, self.text = parted(self._thinking, self._said, ended=True)
        return self.text[len(self._given) :]
