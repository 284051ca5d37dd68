"""A procedural video world: rooms, objects that come and go, and questions that have one right answer."""

from .questions import KINDS, Question
from .video import write_mp4
from .words import COLOURS, NOTHING, ROOMS, SHAPES, VOCABULARY, check_words
from .world import Difficulty, World

__all__ = [
    "COLOURS",
    "KINDS",
    "NOTHING",
    "ROOMS",
    "SHAPES",
    "VOCABULARY",
    "Difficulty",
    "Question",
    "World",
    "check_words",
    "write_mp4",
]
