"""The words of the world: what can be shown, asked and answered. One list, used by the world and the
tokenizer.
"""

from __future__ import annotations

ROOMS = (
    "kitchen", "garden", "garage", "office", "hall", "attic",
    "cellar", "studio", "library", "bathroom", "bedroom", "porch",
)  # fmt: skip
SHAPES = ("ball", "box", "cone", "star", "ring", "cross", "moon", "diamond")
COLOURS = ("red", "yellow", "green", "cyan", "blue", "purple", "white", "black")
NOTHING = "nothing"

_GRAMMAR = (
    "what", "which", "where", "when", "who", "how", "many", "colour", "shape", "room", "object", "thing",
    "was", "is", "are", "were", "did", "do", "the", "a", "in", "of", "at", "to", "we", "you", "i", "it",
    "first", "last", "seen", "see", "now", "there", "?", ".", ",",
)  # fmt: skip

VOCABULARY: tuple[str, ...] = (*_GRAMMAR, NOTHING, *ROOMS, *SHAPES, *COLOURS)
"""Every word the questions and answers are made of."""

_KNOWN = frozenset(VOCABULARY)


def split_words(text: str) -> list[str]:
    """Lower-case words of `text`, with punctuation as words of its own."""
    for mark in "?.,":
        text = text.replace(mark, f" {mark} ")
    return text.lower().split()


def check_words(text: str) -> None:
    """Raise ValueError naming every unknown word of `text` and listing the known ones."""
    words = split_words(text)
    unknown = [w for w in words if w not in _KNOWN]
    if not words:
        raise ValueError("the question is empty; ask for example 'what colour was the ball in the kitchen ?'")
    if unknown:
        raise ValueError(f"unknown word {', '.join(map(repr, unknown))}; known words: {' '.join(VOCABULARY)}")
