"""SamplingParams.stop: an answer ends before the first of those texts. The oracle is what is said, cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from mosaic_edge import Engine
from mosaic_edge.models.thinking import Thinking
from mosaic_edge.sampling import SamplingParams
from numpy_vlm import NumpyVlm, picture

SAYS = "A red ball, a blue ball; then\nnone. Zürich"


class Speaker(NumpyVlm):
    """The n-th token answered is the n-th byte of what it says."""

    def __init__(self, says: str = SAYS, thinking: Thinking | None = None) -> None:
        super().__init__()
        self._says = says.encode()
        self._spec = replace(self._spec, thinking=thinking)

    def detokenize(self, ids: Sequence[int]) -> str:
        return self._says[: len(ids)].decode(errors="replace")


def asked(model: NumpyVlm, stop: Sequence[str], most: int = len(SAYS.encode()), **more: Any) -> Any:
    with Engine(model).session(memory="1MiB", branch_tokens=128) as session:
        session.append(picture(0), 0.0)
        stream = session.ask(
            "what", stream=True, sampling=SamplingParams(max_tokens=most, stop=tuple(stop)), **more
        )
        pieces = list(stream)
        whole = session.ask("what", sampling=SamplingParams(max_tokens=most, stop=tuple(stop)))
        assert (whole.text, whole.tokens, whole.finish) == (
            stream.reply.text,
            stream.reply.tokens,
            stream.reply.finish,
        )
    assert "".join(pieces) == whole.text
    return whole


@pytest.mark.parametrize(
    "stop", ["A", " ", "red", "ball", "ball;", "\n", "n\nn", ". Z", "ü", "h", "ll, a blue b"]
)
def test_an_answer_ends_before_what_stops_it(stop: str) -> None:
    reply = asked(Speaker(), [stop])
    before, found, _ = SAYS.partition(stop)
    assert found
    assert (reply.text, reply.finish) == (before, "end")
    assert reply.tokens == len((before + stop).encode())


@pytest.mark.parametrize("stop", [[], ["green"], ["balls", "Zürich!"], ["ball;;", "\n\n"]])
def test_what_only_begins_like_a_stop_is_given_out_whole(stop: list[str]) -> None:
    reply = asked(Speaker(), stop)
    assert (reply.text, reply.finish, reply.tokens) == (SAYS, "length", len(SAYS.encode()))


def test_the_first_of_several_ends_it_and_a_thought_is_not_ended_by_them() -> None:
    assert asked(Speaker(), ["blue", ", ", "none"]).text == "A red ball"
    model = Speaker("<think>a ball, red</think>red, blue", Thinking("<think>", "</think>"))
    reply = asked(model, [", "], 40)
    assert (reply.thinking, reply.text) == ("a ball, red", "red")


@pytest.mark.parametrize("stop", ["ball", ("",), (1,), None, ("a", b"b")])
def test_what_is_no_stop_is_refused(stop: Any) -> None:
    with pytest.raises(ValueError, match=r"^stop="):
        SamplingParams(stop=stop)
