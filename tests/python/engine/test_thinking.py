"""Models that think before they answer: what is recognised, what is answer, and how much room there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from tokenizers import AddedToken, Tokenizer, models

from mosaic_edge import Engine, MemoryCapError
from mosaic_edge.models.prompt import Prompt, prompt_from
from mosaic_edge.models.thinking import Thinking, thinking_of
from mosaic_edge.models.tokenizer import TextTokenizer
from mosaic_edge.models.vlm import VlmSpec
from mosaic_edge.reply import reply_document
from mosaic_edge.sampling import SamplingParams
from numpy_vlm import NumpyVlm, picture

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'video' %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% else %}KEPT{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\nOPEN{% endif %}"
)
PLAIN = CHAT.replace("KEPT", "{{ c.text }}")
STRIPS = CHAT.replace("KEPT", "{{ c.text.split('</think>')[-1] }}")
OPENS = STRIPS.replace("OPEN", "<think>\n")
CLOSES = STRIPS.replace("OPEN", "<think>\n\n</think>\n\n")


def question_of(template: str) -> str:
    mark = "<|vision_start|><|video_pad|><|vision_end|>"
    return prompt_from(template, {}, mark, Prompt("", "{question}")).template


@pytest.mark.parametrize(
    ("template", "vocabulary", "found"),
    [
        (OPENS, True, Thinking("<think>", "</think>", opened=True)),
        (OPENS, False, Thinking("<think>", "</think>", opened=True)),
        (STRIPS.replace("OPEN", ""), True, Thinking("<think>", "</think>")),
        (STRIPS.replace("OPEN", "").replace("</think>", "◁/think▷"), True, Thinking("◁think▷", "◁/think▷")),
        (PLAIN.replace("OPEN", ""), True, Thinking("<think>", "</think>", usual=False)),
        (CLOSES, True, Thinking("<think>", "</think>", usual=False)),
        (PLAIN.replace("OPEN", ""), False, None),
    ],
    ids=["opened", "no tokens", "strips", "Kimi", "vocabulary", "closed", "none"],
)
def test_a_model_that_thinks_is_known_by_its_template_and_vocabulary(
    template: str, vocabulary: bool, found: Thinking | None
) -> None:
    knows = ("<think>", "</think>", "◁think▷", "◁/think▷") if vocabulary else ()
    if found is not None and found.start != "<think>":
        knows = knows[2:]
    assert thinking_of(template, question_of(template), knows.__contains__) == found


class Thinker(NumpyVlm):
    """The n-th token answered is the n-th character of what it says, whatever was sampled."""

    def __init__(self, thinking: Thinking | None, says: str) -> None:
        super().__init__()
        self._spec: VlmSpec = replace(self._spec, thinking=thinking)
        self._says = says

    def detokenize(self, ids: Sequence[int]) -> str:
        return self._says[: len(ids)]


OPENED, FREE = Thinking("<think>", "</think>", opened=True), Thinking("<think>", "</think>", usual=False)


@pytest.mark.parametrize(
    ("thinking", "says", "thought", "text"),
    [
        (OPENED, "A ball?\nYes.\n</think>\n\nA <b> ball", "A ball?\nYes.", "A <b> ball"),
        (OPENED, "<think>It is</think>red", "It is", "red"),
        (OPENED, "It is a ball, or", "It is a ball, or", ""),
        (OPENED, "It is</think", "It is</think", ""),
        (FREE, "\n<think>\nIt is\n</think>\nred", "It is", "red"),
        (FREE, "<think>It is", "It is", ""),
        (FREE, "a red ball", "", "a red ball"),
        (FREE, "<thin", "", "<thin"),
        (FREE, "red </think> <think>", "", "red </think> <think>"),
        (None, "<think>It</think>red", "", "<think>It</think>red"),
    ],
)
def test_a_thought_is_no_part_of_the_answer_wherever_it_is_cut_off(
    thinking: Thinking | None, says: str, thought: str, text: str
) -> None:
    with Engine(Thinker(thinking, says)).session(memory="1MiB", branch_tokens=64) as session:
        session.append(picture(0), 0.0)
        stream = session.ask("what", stream=True, sampling=SamplingParams(max_tokens=len(says)))
        pieces = list(stream)
        reply = stream.reply
    assert "".join(pieces) == reply.text == text
    assert reply.thinking == thought
    assert (reply.finish, reply.tokens) == ("length", len(says))
    document = reply_document("what", reply)
    assert (document["answer"], document["thinking"], document["finish"]) == (text, thought, "length")


def test_an_answer_after_a_thought_has_room_as_far_as_cap_and_context_have_it() -> None:
    engine = Engine(Thinker(OPENED, "x" * 4000))
    plain = Engine(Thinker(FREE, "x" * 4000))
    assert SamplingParams.from_model(engine.spec).max_tokens == 2048
    assert SamplingParams.from_model(engine.spec, max_tokens=9).max_tokens == 9
    assert SamplingParams.from_model(plain.spec).max_tokens == 256
    assert [engine.plan(memory="16MiB")[name] for name in ("thinks", "max_tokens", "branch_tokens")] == [
        True,
        2048,
        2560,
    ]
    assert [plain.plan(memory="16MiB")[name] for name in ("thinks", "max_tokens")] == [False, 256]
    token = engine.spec.kv_bytes_per_token
    assert engine.plan(memory="1MiB")["branch_tokens"] == (1 << 20) // 4 // token
    assert engine.plan(memory="1MiB", exact="fp32")["branch_tokens"] == (1 << 20) // 8 // token
    assert engine.plan(memory="16MiB", branch_tokens=100)["max_tokens"] == 100
    short = Thinker(OPENED, "")
    short._spec = replace(short.spec, context=4096)
    assert Engine(short).plan(memory="16MiB")["branch_tokens"] == 512
    with engine.session(memory="16MiB") as session:
        session.append(picture(0), 0.0)
        assert session.ask("what").tokens == 2048


def test_room_to_think_refuses_no_cap_that_would_do_without(cap_step: int = 8) -> None:
    engine, plain = Engine(Thinker(OPENED, "")), Engine(Thinker(FREE, ""))

    def planned(of: Engine, kib: int) -> bool:
        try:
            of.plan(memory=kib << 10)
        except MemoryCapError:
            return False
        return True

    caps = range(8, 400, cap_step)
    found = [planned(engine, kib) for kib in caps]
    assert found == [planned(plain, kib) for kib in caps]
    assert True in found and False in found


def test_marks_of_thoughts_are_read_also_where_they_are_control_tokens() -> None:
    own = Tokenizer(models.WordLevel({"red": 0}, unk_token=None))
    marks = [AddedToken(mark, special=True) for mark in ("◁think▷", "◁/think▷", "<end>")]
    own.add_special_tokens(marks)
    tokenizer = TextTokenizer.of(own)
    ids = [own.token_to_id(token) for token in ("◁think▷", "red", "◁/think▷", "red", "<end>")]
    assert own.decode(ids) == "red red"
    assert "".join(tokenizer.decode(ids).split()) == "◁think▷red◁/think▷red"
    assert tokenizer.encode("◁think▷") == [ids[0]]
    assert tokenizer.has("◁/think▷") and not tokenizer.has("<think>")
