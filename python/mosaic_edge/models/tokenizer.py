"""tokenizer.json of a model directory: text to ids and back, with an error for an unknown word."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer

from mosaic_edge.models.directory import is_trusted, plain_file
from mosaic_edge.models.sandbox import limited
from mosaic_edge.models.thinking import MARKS
from mosaic_edge.models.vlm import ModelError

_LISTED_WORDS = 400


def check_tokenizer(path: Path) -> None:
    """Load a tokenizer.json aside, under limits: its steps may make any text out of any other. ModelError if
    it does not end well."""
    plain_file(path.parent, path)
    if not is_trusted(path.parent):
        limited(f"{path}: not a readable tokenizer", "tokenizer", str(path.resolve()))


@contextmanager
def _named(what: str) -> Iterator[None]:
    """ValueError for what the package raises: plain Exception for every cause, and a panic of its Rust, of a
    step that does not fit its text, is no Exception at all."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{what} ({' '.join(str(error).split())[:300]})") from None


class TextTokenizer:
    """Any tokenizer.json the `tokenizers` package reads."""

    def __init__(self, path: Path) -> None:
        check_tokenizer(path)
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises plain Exception for every cause
            raise ModelError(f"{path}: not a readable tokenizer ({error})") from None
        self._whole_texts()

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> TextTokenizer:
        """A copy of one that is loaded already: its owner may set it to pad or cut other texts."""
        made = cls.__new__(cls)
        made._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        made._whole_texts()
        return made

    def _whole_texts(self) -> None:
        self._show_marks()
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._added = {i: t.content for i, t in self._tokenizer.get_added_tokens_decoder().items()}
        self._plain: Tokenizer | None = None
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        self._unknown = self._tokenizer.token_to_id(unknown) if unknown else None

    def _show_marks(self) -> None:
        """Marks of thoughts are read in answers, also where the vocabulary has them for control tokens."""
        shown = {mark for pair in MARKS for mark in pair}
        added = self._tokenizer.get_added_tokens_decoder().values()
        if any(token.special and token.content in shown for token in added):
            document = json.loads(self._tokenizer.to_str())
            for token in document["added_tokens"]:
                token["special"] &= token["content"] not in shown
            self._tokenizer = Tokenizer.from_str(json.dumps(document))

    def has(self, token: str) -> bool:
        """Whether it is one token of the vocabulary."""
        return self._tokenizer.token_to_id(token) is not None

    def begins_with(self, token: str) -> bool:
        """Whether it puts this token before every text that it reads as a whole."""
        return token in self._tokenizer.encode("").tokens

    def encode(self, text: str, plain: tuple[int, int] | None = None) -> list[int]:
        """Token ids of `text`, none added. ValueError names a word the vocabulary lacks and, if short, lists
        it. plain: from which character to which nothing makes a control token.
        """
        if plain is None:
            return self._ids(self._tokenizer, text)
        before, outside, after = text[: plain[0]], text[plain[0] : plain[1]], text[plain[1] :]
        whole, ends = self.encode(text), (self.encode(before), self.encode(after))
        # One piece reads best. What was typed made a control token where there are more than the ends have.
        if [i for i in whole if i in self._added] == [i for end in ends for i in end if i in self._added]:
            return whole
        ids = self._ids(self._without_added(), outside)
        if made := [self._added[i] for i in ids if i in self._added]:
            raise ValueError(
                f"{made[0]!r} is a control token of the model; special_tokens=True lets it be one"
            )
        return ends[0] + ids + ends[1]

    def _without_added(self) -> Tokenizer:
        """The same tokenizer without its control tokens; made when a text first needs it."""
        if self._plain is None:
            document = json.loads(self._tokenizer.to_str())
            self._plain = Tokenizer.from_str(json.dumps(document | {"added_tokens": []}))
        return self._plain

    def _ids(self, tokenizer: Tokenizer, text: str) -> list[int]:
        with _named("the tokenizer cannot read this text"):
            encoding = tokenizer.encode(text, add_special_tokens=False)
        ids: list[int] = list(encoding.ids)
        if self._unknown is not None and self._unknown in ids:
            spans = [span for i, span in zip(ids, encoding.offsets, strict=True) if i == self._unknown]
            words = ", ".join(sorted({repr(text[a:b]) for a, b in spans}))
            raise ValueError(f"unknown word {words}{self._known_words()}")
        return ids

    def check(self, where: str, text: str) -> None:
        """ModelError, named `where`, if a text of the model's own holds what its vocabulary lacks."""
        try:
            self.encode(text)
        except ValueError as error:
            raise ModelError(f"{where}: {error}") from None

    def check_plain(self, where: str, text: str) -> None:
        """ValueError, named `where`, for a text from outside that holds a control token or what the
        vocabulary lacks."""
        try:
            if self.encode(text) != self.encode(text, (0, len(text))):
                raise ValueError("it holds a control token of the model")
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without special tokens."""
        with _named("the tokenizer cannot write its tokens as text"):
            return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def _known_words(self) -> str:
        special = {
            token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special
        }
        vocabulary = self._tokenizer.get_vocab()
        words = sorted((w for w in vocabulary if w not in special), key=vocabulary.__getitem__)
        return f"; known words: {' '.join(words)}" if len(words) <= _LISTED_WORDS else ""
