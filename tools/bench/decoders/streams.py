"""Narrated streams by seed: sentences as frames, and questions about what was said.

A stream has scenes of 3 to 7 like sentences that put a thing of some colour into a room, and empty stretches
between them; a thing is seen in one scene only. `recall` questions are asked at the end, one a scene at most;
`perception` questions are asked inside a scene, about the thing that is seen then. Two forms: `plain`, in
which every scene has one wording, and `varied`, with other words and a wording that changes with the scene.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

SYSTEM = "You remember what was seen."
OPENING = "This is what was seen, in order:\n"
MOST_RECALL = 40


@dataclass(frozen=True)
class Words:
    """What a form of stream is made of."""

    rooms: tuple[str, ...]
    colours: tuple[str, ...]
    things: tuple[str, ...]
    asides: tuple[str, ...]
    scenes: tuple[str, ...]
    """Wordings of a sentence of a scene: {colour}, {thing}, {room}."""
    empty: str
    recall: tuple[str, str]
    """A question, and how its answer begins: {colour}, {thing}."""
    perception: tuple[str, str]
    """The same, of what is still seen."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FORMS = {
    "plain": Words(
        rooms=_words(
            "kitchen garden office garage library bathroom bedroom attic basement hallway balcony workshop"
        ),
        colours=_words("red blue green yellow black white purple orange pink brown"),
        things=_words("mug book chair lamp ball hat bottle clock shoe box guitar umbrella"),
        asides=(
            "The light is dim.", "A fan is humming.", "The floor is wet.", "A window is open.",
            "Dust floats in the air.", "The door is closed.", "It is quiet.", "A radio plays.",
        ),
        scenes=("A {colour} {thing} is in the {room}.",),
        empty="The {room} is empty.",
        recall=("Where was the {colour} {thing}?", "The {colour} {thing} was in the"),
        perception=("Where is the {colour} {thing}?", "The {colour} {thing} is in the"),
    ),
    "varied": Words(
        rooms=_words(
            "cellar studio lobby nursery stable chapel courtyard laundry theater museum bakery greenhouse"
        ),
        colours=_words(
            "gray silver golden violet crimson beige turquoise striped wooden plastic broken tiny"
        ),
        things=_words(
            """kettle candle violin pillow ladder bucket vase basket drum mirror carpet helmet hammer
            blanket camera trumpet statue lantern wallet suitcase teapot puzzle rope shovel telescope barrel
            flag typewriter cushion balloon whistle necklace compass magnet skateboard tent kite sofa globe
            anchor"""
        ),
        asides=(
            "Rain taps on the roof.", "Somebody coughs.", "The air smells of paint.", "A phone rings twice.",
            "The curtains move.", "Shadows grow longer.", "A dog barks outside.", "Nothing moves.",
        ),
        scenes=(
            "The camera shows a {colour} {thing} in the {room}.",
            "In the {room} there is a {colour} {thing}.",
            "Somebody left a {colour} {thing} in the {room}.",
            "Now the {room}: a {colour} {thing} stands there.",
            "We see the {room}, and in it a {colour} {thing}.",
        ),
        empty="Nobody is in the {room}, and nothing is there.",
        recall=("In which room did we see the {colour} {thing}?", "We saw the {colour} {thing} in the"),
        perception=("In which room is the {colour} {thing}?", "The {colour} {thing} is in the"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """Asked once `asked` frames have been seen; the answer is one of the stream's rooms."""

    kind: str
    text: str
    opening: str
    """The beginning of the answer, which is given: its next token is judged."""
    answer: str
    scene: tuple[int, int]
    """The frames that say it, first and last."""
    asked: int


@dataclass(frozen=True)
class Stream:
    """Sentences and questions; equal arguments give equal streams."""

    form: str
    seed: int
    sentences: tuple[str, ...]
    questions: tuple[Question, ...]
    """In the order in which they are asked."""
    rooms: tuple[str, ...]


@dataclass(frozen=True)
class _Scene:
    first: int
    last: int
    room: str
    pair: tuple[str, str] | None  # colour and thing; None where the room is empty


def make_stream(sentences: int, seed: int, form: str = "plain", perception: int = 16) -> Stream:
    """A stream of so many sentences. perception: questions about what is seen, at most."""
    if form not in FORMS:
        raise ValueError(f"form={form!r}; there are {', '.join(FORMS)}")
    if sentences < 1:
        raise ValueError(f"sentences={sentences}: expected 1 or more")
    words = FORMS[form]
    said, scenes = _scenes(sentences, random.Random(seed), words)
    facts = [scene for scene in scenes if scene.pair and scene.last < sentences]
    facts = random.Random(seed + 99).sample(facts, min(MOST_RECALL, len(facts)))
    recall = [_question("recall", scene, scene.last, sentences, words.recall) for scene in facts]
    seen = [scene for scene in scenes if scene.pair and scene.first >= 8 and scene.last < sentences]
    chosen = random.Random(seed + 7)
    seen = sorted(chosen.sample(seen, min(perception, len(seen))), key=lambda scene: scene.first)
    ends = [chosen.randint(scene.first + 1, scene.last) for scene in seen]
    now = [
        _question("perception", s, end, end + 1, words.perception) for s, end in zip(seen, ends, strict=True)
    ]
    return Stream(form, seed, tuple(said), tuple(now + recall), words.rooms)


def _scenes(n: int, rng: random.Random, words: Words) -> tuple[list[str], list[_Scene]]:
    """n sentences and their scenes; the last scene may go on behind the end."""
    pairs = [(colour, thing) for colour in words.colours for thing in words.things]
    rng.shuffle(pairs)
    pairs.reverse()
    said: list[str] = []
    scenes: list[_Scene] = []
    while len(said) < n:
        room, first = rng.choice(words.rooms), len(said)
        pair = None
        if rng.random() < 0.25 or not pairs:
            length, sentence = rng.randint(3, 8), words.empty.format(room=room)
        else:
            pair, length = pairs.pop(), rng.randint(3, 7)
            wording = words.scenes[0] if len(words.scenes) == 1 else rng.choice(words.scenes)
            sentence = wording.format(colour=pair[0], thing=pair[1], room=room)
        said += [f"{sentence} {rng.choice(words.asides)}\n" for _ in range(length)]
        scenes.append(_Scene(first, len(said) - 1, room, pair))
    return said[:n], scenes


def _question(kind: str, scene: _Scene, last: int, asked: int, words: tuple[str, str]) -> Question:
    """About the thing of a scene, which was seen up to frame `last`."""
    assert scene.pair is not None
    colour, thing = scene.pair
    text, opening = (part.format(colour=colour, thing=thing) for part in words)
    return Question(kind, text, opening, scene.room, (scene.first, last), asked)
