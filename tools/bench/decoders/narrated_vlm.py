"""A text decoder as a model of the product's protocol: a frame is a sentence, its picture is what it says.

The only file of this bench that knows the protocol (mosaic_edge/models/vlm.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from mosaic_edge.models.vlm import Attend, EncodedFrame, FloatArray, FrameArray, RopeSpec, VlmSpec

from .decoder import Decoder
from .streams import OPENING, SYSTEM, Question, Stream

Forward = Callable[[FloatArray, Attend, bool], FloatArray | None]
"""forward(embeds [T, hidden], attend, want_logits) -> logits [vocab] of the last token, or None."""


def picture_of(sentence: str) -> FrameArray:
    """The bytes of a sentence as pixels: uint8 [1, n, 3], filled up with zeros."""
    data = sentence.encode()
    return np.frombuffer(data + bytes(-len(data) % 3), np.uint8).reshape(1, -1, 3)


def sentence_of(picture: FrameArray) -> str:
    """What a picture says."""
    return picture.tobytes().rstrip(b"\0").decode()


class NarratedVlm:
    """Implements Vlm over a decoder, for one stream: `tokens_per_frame` is its longest sentence.

    A sentence is a picture of one row, not text around one: policies treat its tokens as they do a video's.
    frames_read: sentences a frame's tokens may see, counting their own; 0: all that the policy lets them.
    """

    def __init__(
        self, decoder: Decoder, stream: Stream, frames_read: int = 0, forward: Forward | None = None
    ) -> None:
        s = decoder.shape
        self._decoder = decoder
        self._forward = forward or self.alone
        prefix, template = prompt_of(decoder)
        longest = max(len(decoder.ids(sentence)) for sentence in set(stream.sentences))
        self._spec = VlmSpec(
            name=decoder.name, layers=s.layers, q_heads=s.q_heads, kv_heads=s.kv_heads, head_dim=s.head_dim,
            hidden=s.hidden, rope=RopeSpec(s.head_dim, s.theta), scale=s.head_dim**-0.5,
            tokens_per_frame=longest, grid=(1, longest), embedding_dim=s.hidden, image_size=(1, 1),
            image_mean=(0.0, 0.0, 0.0), image_std=(1.0, 1.0, 1.0), vocab_size=s.vocab, eos_token_ids=s.eos,
            video_window=frames_read, context=s.positions, template=template, prefix=prefix,
        )  # fmt: skip

    @property
    def spec(self) -> VlmSpec:
        """What the model is. Its template goes on with how the answer to `expects` begins."""
        return self._spec

    def expects(self, question: Question) -> None:
        """The question asked next; the end of the turn and the answer's beginning are no part of it."""
        template = prompt_of(self._decoder)[1] + _turn(self._decoder)[2] + question.opening
        self._spec = replace(self._spec, template=template)

    def encode(self, frame: FrameArray, pts: float, elapsed: float, number: int) -> EncodedFrame:
        """The tokens of the sentence, and their mean as the frame's embedding."""
        del pts, elapsed, number
        tokens = self.embed_text(self.tokenize(sentence_of(frame)))
        return EncodedFrame(tokens, tokens.mean(0), columns=len(tokens))

    def embed_text(self, ids: Sequence[int]) -> FloatArray:
        """[T, hidden]."""
        return self._decoder.embed(ids)

    def tokenize(self, text: str, plain: tuple[int, int] | None = None) -> list[int]:
        """Token ids, none added. What is asked here ends the turn itself: with special_tokens alone."""
        if plain is not None:
            raise ValueError("ask with special_tokens=True")
        return self._decoder.ids(text)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Text, without special tokens."""
        return str(self._decoder.tokenizer.decode(list(ids), skip_special_tokens=True))

    def forward(self, embeds: FloatArray, attend: Attend, want_logits: bool = True) -> FloatArray | None:
        """The decoder over a block."""
        return self._forward(embeds, attend, want_logits)

    def alone(self, embeds: FloatArray, attend: Attend, want_logits: bool) -> FloatArray | None:
        """One block, one pass."""
        logits = self._decoder.forward(embeds, attend, [len(embeds) - 1] if want_logits else [])
        return None if logits is None else logits[0]


def asked(decoder: Decoder, question: Question) -> str:
    """What is handed to Session.ask: the question, the end of the user's turn, how the answer begins."""
    return question.text + _turn(decoder)[2] + question.opening


def prompt_of(decoder: Decoder) -> tuple[str, str]:
    """Prefix and template: in one turn of the user first all that was seen, then the question."""
    before, between, _ = _turn(decoder)
    return before + OPENING, between + "{question}"


def _turn(decoder: Decoder) -> tuple[str, str, str]:
    """Text before what was seen, between it and the question, and between the question and the answer.

    As the model's own chat template has it; plain text where it has none.
    """
    if not decoder.tokenizer.chat_template:
        return SYSTEM + "\n", "\n", "\n"
    seen, asked = "<seen>", "<asked>"
    said = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"{seen}\n{asked}"}]
    text = decoder.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    before, _, rest = text.partition(seen)
    between, _, after = rest.partition(asked)
    return before, between, after
