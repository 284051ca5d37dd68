"""The text of an answer while it is drawn: what of it is thought, where it stops, and what can be given out
already."""

from __future__ import annotations

from collections.abc import Sequence

from mosaic_edge.models.thinking import Thinking, parted


class AnswerText:
    """What a model said so far. stops: texts that end the answer and are no part of it."""

    def __init__(self, thinking: Thinking | None, stops: Sequence[str] = ()) -> None:
        self._thinking, self._stops = thinking, stops
        self._said = self._given = self._answer = ""
        self.thought = self.text = ""
        self.stopped = False
        """One of the stops was said."""

    def piece(self, said: str) -> str | None:
        """What is new of the answer; None where it is held back: a character may take several tokens, and
        until its last it reads as U+FFFD; so is what may be the beginning of a stop."""
        self._said = said
        self._take(ended=False)
        shown = self.text if self.stopped else self.text[: len(self.text) - self._begun_stop()]
        if not shown.startswith(self._given) or shown.endswith("\ufffd"):
            return None
        piece, self._given = shown[len(self._given) :], shown
        return piece

    def rest(self) -> str:
        """What was held back to the end."""
        self._take(ended=True)
        return self.text[len(self._given) :]

    @property
    def has_thought(self) -> bool:
        """Whether what was said is more than the answer: a thought, or its marks alone."""
        return self._answer != self._said

    def _take(self, ended: bool) -> None:
        self.thought, self._answer = parted(self._thinking, self._said, ended=ended)
        found = [at for stop in self._stops if (at := self._answer.find(stop)) >= 0]
        self.stopped = bool(found)
        self.text = self._answer[: min(found)] if found else self._answer

    def _begun_stop(self) -> int:
        """Characters at the end that a stop may begin with."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        ends = (self.text[-length:] for length in range(min(longest, len(self.text)), 0, -1))
        return next((len(end) for end in ends if any(stop.startswith(end) for stop in self._stops)), 0)
