"""What an engine makes of text: characters of several tokens, and other people's tokenizer settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from mosaic_edge.engine import Engine
from mosaic_edge.models.tokenizer import TextTokenizer
from mosaic_edge.models.vlm import ModelError
from mosaic_edge.sampling import SamplingParams
from numpy_vlm import NumpyVlm, picture

SENTENCE = "né日本😀 ok"


class ByteVlm(NumpyVlm):
    """Its tokens are bytes: the n-th answered is the n-th byte of SENTENCE, whatever was sampled."""

    def detokenize(self, ids: Sequence[int]) -> str:
        return SENTENCE.encode()[: len(ids)].decode("utf-8", "replace")


@pytest.mark.parametrize("tokens", range(1, len(SENTENCE.encode()) + 1))
def test_pieces_of_a_streamed_answer_join_to_the_answer_wherever_it_ends(tokens):
    with Engine(ByteVlm()).session(memory="1MiB", branch_tokens=64) as session:
        session.append(picture(0), 0.0)
        stream = session.ask("what", stream=True, sampling=SamplingParams(max_tokens=tokens))
        pieces = list(stream)
        assert "".join(pieces) == stream.reply.text == ByteVlm().detokenize(range(tokens))
        assert all("\ufffd" not in piece for piece in pieces[:-1])


def test_a_tokenizer_that_its_owner_set_to_pad_and_cut_is_copied_without_that():
    words = {word: i for i, word in enumerate(["[pad]", *(f"w{i}" for i in range(9))])}
    owned = Tokenizer(models.WordLevel(words, unk_token=None))
    owned.pre_tokenizer = pre_tokenizers.Whitespace()
    text = " ".join(f"w{i}" for i in range(9))
    whole = owned.encode(text).ids
    owned.enable_truncation(4)
    owned.enable_padding(length=20, pad_token="[pad]")
    ours = TextTokenizer.of(owned)
    assert ours.encode(text) == whole
    assert ours.encode("") == []
    assert len(owned.encode(text).ids) == 20  # the owner's is as it was
    assert owned.truncation["max_length"] == 4


def test_time_goes_on_while_frames_are_left_out_as_alike():
    def shown(skip: float) -> float:
        with Engine(NumpyVlm()).session(memory="1MiB", skip_alike=skip) as session:
            for _ in range(60):
                session.append(picture(0))
            with pytest.raises(ValueError, match="pts must not fall"):
                session.append(picture(0), 3.0)
            session.append(picture(7))
            assert session.memory()["duplicate_frames"] == (59 if skip else 0)
            return max(moment.end for moment in session.ask("what").evidence)

    assert shown(0.999) == pytest.approx(60 / NumpyVlm().spec.fps, abs=1.0)


@pytest.mark.parametrize("template", ["no place for it", "{question} twice {question}", None, 3])
def test_a_template_without_its_question_is_refused_when_the_model_is_made(template):
    with pytest.raises(ModelError, match=r"template=.*\{question\} in it, once"):
        replace(NumpyVlm().spec, template=template)
    with pytest.raises(ModelError, match="prefix=None"):
        replace(NumpyVlm().spec, prefix=None)
    assert np.isfinite(replace(NumpyVlm().spec, template='{"a": {question}}').scale)
