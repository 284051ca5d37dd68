"""A dialogue that is kept holds what the model's chat template writes of earlier turns: where that takes
thoughts out, none is left. The oracle is the template itself: the whole conversation as it renders it, read
at once by a session that has kept nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mosaic_edge import Engine
from mosaic_edge.models.chat_template import render
from mosaic_edge.models.prompt import Prompt, prompt_from
from mosaic_edge.models.thinking import thinking_of
from mosaic_edge.sampling import SamplingParams
from mosaic_edge.session import Session
from numpy_vlm import HIDDEN, NumpyVlm, picture

VIDEO = "<|video_pad|>"
PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'video' %}"
    "<|video_pad|>{% else %}TEXT{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\nOPEN{% endif %}"
)
STRIPS = PLAIN.replace("TEXT", "{{ c.text.split('</think>')[-1].lstrip('\n') }}")
MARKED = PLAIN.replace(
    "TEXT",
    "{% if m.role == 'assistant' %}{{ '<think></think>\n' + c.text.split('</think>')[-1].strip() }}"
    "{% else %}{{ c.text }}{% endif %}",
)
QWEN = (  # the shape of Qwen3's: thoughts of the turn in hand stay, those before the last question go
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% for c in m.content %}{% if c.type == 'video' %}<|video_pad|>{% else %}{% set text = c.text %}"
    "{% if m.role == 'assistant' and '</think>' in text and loop.index0 <= ns.last %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}{{ text }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
TEMPLATES = {
    "thinks when it likes": STRIPS.replace("OPEN", ""),
    "opens a thought": STRIPS.replace("OPEN", "<think>\n"),
    "closes it at once": STRIPS.replace("OPEN", "<think>\n\n</think>\n\n"),
    "leaves its marks": MARKED.replace("OPEN", ""),
    "the shape of Qwen3": QWEN,
}
PIECES = re.compile(r"<\|?/?\w+\|?>|\w|\W")
VOCABULARY = ["<end>"]
"""Grows as texts are read: an id is the same for every model here."""
FIRST, SECOND, THIRD = "what colour?", "and the star?", "where?"


class Chat(NumpyVlm):
    """Reads marks and characters, and says what it is told to, its real logits kept aside."""

    def __init__(self, template: str) -> None:
        super().__init__()
        prompt = prompt_from(template, {}, VIDEO, Prompt("", "{question}"))
        knows = ("<think>", "</think>").__contains__
        self._spec = replace(
            self._spec,
            vocab_size=128,
            eos_token_ids=(0,),
            prefix=prompt.prefix,
            template=prompt.template,
            follow_up=prompt.follow_up,
            answered=prompt.answered,
            thinking=thinking_of(template, prompt.template, knows),
        )
        self._words = np.random.default_rng(3).standard_normal((128, HIDDEN)).astype(np.float32)
        self.script: list[int] = []
        self.logits: list[np.ndarray] = []

    def tokenize(self, text: str, plain: tuple[int, int] | None = None) -> list[int]:
        begin, end = plain or (0, 0)
        parts = [*PIECES.findall(text[:begin]), *text[begin:end], *PIECES.findall(text[end:])]
        VOCABULARY.extend(part for part in dict.fromkeys(parts) if part not in VOCABULARY)
        return [VOCABULARY.index(part) for part in parts]

    def detokenize(self, ids: Sequence[int]) -> str:
        return "".join(VOCABULARY[i] for i in ids)

    def forward(self, embeds: Any, attend: Any, want_logits: bool = True) -> Any:
        logits = super().forward(embeds, attend, want_logits)
        if logits is None:
            return None
        self.logits.append(logits)
        told = np.zeros(self._spec.vocab_size, np.float32)
        told[self.script.pop(0) if self.script else 0] = 1.0
        return told

    def will_say(self, text: str) -> None:
        self.script = self.tokenize(text)


def opened(model: Chat) -> Session:
    session = Engine(model).session(
        memory="2MiB", policy="full", packed="fp32", exact="fp32", kernel_threads=1, branch_tokens=400
    )
    for number in range(5):
        session.append(picture(9 * number), float(number))
    return session


def asked(model: Chat, session: Session, question: str, says: str, most: int = 200, **more: Any) -> str:
    model.will_say(says)
    reply = session.ask(question, dialogue=True, sampling=SamplingParams(max_tokens=most), **more)
    return reply.text


def behind_the_video(template: str, *texts: str) -> str:
    """A conversation of question, answer, question ... as the template writes it."""
    messages: list[dict[str, Any]] = []
    for number, text in enumerate(texts):
        content = [{"type": "text", "text": text}]
        messages.append({"role": "assistant" if number % 2 else "user", "content": content})
    messages[0]["content"].insert(0, {"type": "video"})
    return render(template, messages, {}).partition(VIDEO)[2]


def read_at_once(template: str, *texts: str) -> np.ndarray:
    """What the model would say behind it: logits."""
    model = Chat(template)
    model._spec = replace(model._spec, template="{question}", follow_up="", thinking=None, answered=None)
    with opened(model) as session:
        session.ask(
            behind_the_video(template, *texts),
            special_tokens=True,
            sampling=SamplingParams(max_tokens=1),
        )
    return model.logits[0]


def same(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return bool(np.abs(ours - theirs).max() < 1e-5)


@pytest.fixture(params=TEMPLATES)
def template(request: pytest.FixtureRequest) -> Iterator[str]:
    return TEMPLATES[request.param]


def thought(template: str, text: str) -> str:
    """As the model goes on where the prompt ends: inside a thought, behind one, or before it."""
    if template.endswith("</think>\n\n{% endif %}"):
        return ""
    opening = "" if template.endswith("<think>\n{% endif %}") else "<think>\n"
    return f"{opening}{text}\n</think>\n\n"


def test_later_questions_read_earlier_answers_as_the_template_writes_them(template: str) -> None:
    model = Chat(template)
    first, second = thought(template, "Is it a ball?"), thought(template, "It was red, now")
    with opened(model) as session:
        assert asked(model, session, FIRST, f"{first}red") == "red"
        del model.logits[:]
        assert asked(model, session, SECOND, f"{second}a blue one") == "a blue one"
        after_one = model.logits[0]
        del model.logits[:]
        session.ask(THIRD, sampling=SamplingParams(max_tokens=1))
        after_two = model.logits[0]
        session.check_invariants()
    opening = "<think>\n" if template.endswith("<think>\n{% endif %}") else ""
    said = [f"{opening}{first}red", f"{opening}{second}a blue one"]
    assert same(after_one, read_at_once(template, FIRST, said[0], SECOND))
    assert same(after_two, read_at_once(template, FIRST, said[0], SECOND, said[1], THIRD))
    assert not same(after_two, after_one)


@pytest.mark.parametrize(
    ("says", "most", "kept"),
    [("Is it a ball?\n</think>\n\nred, and", 9, ""), ("Is it</think>red, and blue", 12, "red, a")],
    ids=["in its thought", "in its answer"],
)
@pytest.mark.parametrize("stopped", [False, True], ids=["by its length", "by who reads it"])
def test_a_turn_that_ends_early_keeps_what_it_had_of_an_answer(
    says: str, most: int, kept: str, stopped: bool
) -> None:
    template = TEMPLATES["opens a thought"]
    model = Chat(template)
    with opened(model) as session:
        if stopped:
            model.will_say(says)
            stream = session.ask(
                FIRST, dialogue=True, stream=True, sampling=SamplingParams(max_tokens=most + 5)
            )
            for number, _ in enumerate(stream, 1):
                if number == most:
                    break
            stream.close()
        else:
            assert asked(model, session, FIRST, says, most) == kept
        del model.logits[:]
        session.ask(SECOND, sampling=SamplingParams(max_tokens=1))
    assert same(model.logits[0], read_at_once(template, FIRST, kept, SECOND))


def test_an_answer_that_reads_like_a_control_token_is_kept_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    model, mark = Chat(TEMPLATES["opens a thought"]), "<|im_end|>"
    assert len(model.tokenize(mark)) == 1
    spelt = model.tokenize(mark, (0, len(mark)))
    with opened(model) as session:
        read: list[list[int]] = []
        monkeypatch.setattr(session._blocks, "read", read.append)
        model.script = [*model.tokenize("no</think>"), *spelt]
        reply = session.ask(FIRST, dialogue=True, sampling=SamplingParams(max_tokens=20))
    assert (reply.text, read) == (mark, [spelt])


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_turn_that_cannot_be_kept_leaves_none_and_the_session_works(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = TEMPLATES["opens a thought"]
    model = Chat(template)
    with opened(model) as session:
        assert asked(model, session, FIRST, "a ball</think>red") == "red"

        def broken(_: list[int]) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(session._blocks, "read", broken)
            with pytest.raises(type(error)):
                asked(model, session, SECOND, "a star</think>blue")
        session.check_invariants()
        del model.logits[:]
        session.ask(THIRD, sampling=SamplingParams(max_tokens=1))
    assert same(model.logits[0], read_at_once(template, FIRST, "<think>\na ball</think>red", THIRD))


def test_a_template_that_leaves_thoughts_leaves_them_in_the_dialogue_too() -> None:
    template = PLAIN.replace("TEXT", "{{ c.text }}").replace("OPEN", "")
    model = Chat(template)
    assert model.spec.answered is None and model.spec.thinking is not None
    with opened(model) as session:
        assert asked(model, session, FIRST, "<think>a ball</think>red") == "red"
        del model.logits[:]
        session.ask(SECOND, sampling=SamplingParams(max_tokens=1))
    assert same(model.logits[0], read_at_once(template, FIRST, "<think>a ball</think>red", SECOND))


def test_the_template_says_what_stands_before_an_earlier_answer() -> None:
    behind = "<|im_end|>\n<|im_start|>assistant\n"
    found = {name: Chat(template).spec.answered for name, template in TEMPLATES.items()}
    assert found == {**dict.fromkeys(TEMPLATES, behind), "leaves its marks": f"{behind}<think></think>\n"}
