"""Sessions over transformers models: several at once, prompts, sizes of frames, duplicates, scripts that go
on."""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import mosaic_edge.hf
from fixtures_hf import OUTER_TAGS, keeps_outer_tags, picture, tokenizer, write_checkpoint
from mosaic_edge import ModelError
from mosaic_edge.engine import Engine, Session
from mosaic_edge.models import TINY
from mosaic_edge.models.hf.attention import NAME
from mosaic_edge.models.newline import NEWLINE
from mosaic_edge.sampling import SamplingParams
from mosaic_edge.world import World

SHORT = SamplingParams(max_tokens=6)
FLOAT = Path(mosaic_edge.hf.__file__).parent / "models" / "tiny" / "float"

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}"
    "{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{think}{% endif %}"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    kinds = ("qwen2_5_vl", "qwen3_vl", "internvl", "llava_onevision")
    return {kind: write_checkpoint(kind, tmp_path_factory.mktemp(kind)) for kind in kinds}


@cache
def load(folder: Path, **options: Any) -> Engine:
    """Once for all tests: not to be changed."""
    return Engine.load(folder, device="cpu", **options)


def play(engine: Engine, frames: int = 20, **settings: Any) -> np.ndarray:
    with engine.session(
        **{"memory": "1MiB", "kernel_threads": 1, "branch_tokens": 96, **settings}
    ) as session:
        for i in range(frames):
            session.append(picture(i), float(i))
        return session.ask("and now?", sampling=SHORT).logits


def test_engines_and_threads_at_once_answer_as_one_after_the_other(folders: dict[str, Path]) -> None:
    engines = [load(folders[kind], tokens_per_frame=6) for kind in ("qwen2_5_vl", "qwen3_vl")]
    plans = [(engine, frames) for engine in engines for frames in (11, 17, 23)]
    expected = [play(engine, frames) for engine, frames in plans]
    got: dict[int, np.ndarray] = {}

    def work(i: int) -> None:
        got[i] = play(*plans[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(plans))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, logits in enumerate(expected):
        assert np.array_equal(got[i], logits)


def test_sessions_leave_nothing_on_the_model(folders: dict[str, Path]) -> None:
    model = transformers.AutoModelForImageTextToText.from_pretrained(folders["qwen2_5_vl"]).eval()
    ids = torch.arange(20, 60)[None]
    before = model(input_ids=ids).logits
    model.model.rope_deltas = None  # older versions leave it behind after a run of their own
    state = {key: value for key, value in vars(model.model).items() if not key.startswith("_")}
    images = transformers.AutoImageProcessor.from_pretrained(folders["qwen2_5_vl"])
    processor = type(
        "Processor", (), dict(image_processor=images, tokenizer=tokenizer(), chat_template=None)
    )()
    frames = np.stack([picture(i) for i in range(7)])
    reply = mosaic_edge.hf.generate(
        model,
        processor,
        video=frames,
        question="what?",
        memory="4MiB",
        tokens_per_frame=6,
        max_new_tokens=5,
        kernel_threads=1,
    )
    assert reply.tokens == 5
    assert model.model.rope_deltas is None
    assert {key: value for key, value in vars(model.model).items() if not key.startswith("_")} == state
    assert model.model.language_model.config._attn_implementation == "sdpa"
    kept, other = (mosaic_edge.hf.wrap(model, processor, 6) for _ in range(2))
    other.release()
    assert model.model.language_model.config._attn_implementation == NAME
    # Outside of a session the same attention is the library's: with a mask, with a cache, by generate().
    assert torch.allclose(model(input_ids=ids).logits, before, atol=1e-5)
    assert model.generate(input_ids=ids, max_new_tokens=3, do_sample=False).shape == (1, 43)
    kept.release()
    assert model.model.language_model.config._attn_implementation == "sdpa"


def test_generate_answers_as_a_session_on_the_checkpoint(folders: dict[str, Path]) -> None:
    folder = folders["internvl"]
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    images = transformers.AutoImageProcessor.from_pretrained(folder)
    processor = type(
        "Processor", (), dict(image_processor=images, tokenizer=tokenizer(), chat_template=None)
    )()
    reply = mosaic_edge.hf.generate(
        model, processor, video=(picture(i) for i in range(20)), question="and now?", memory="1MiB",
        max_new_tokens=6, kernel_threads=1, branch_tokens=96,
    )  # fmt: skip
    assert np.array_equal(reply.logits, play(load(folder)))


def test_generate_refuses_a_processor_that_lacks_a_part(folders: dict[str, Path]) -> None:
    model = transformers.AutoModelForImageTextToText.from_pretrained(folders["internvl"])
    with pytest.raises(ModelError, match="needs an image_processor and a fast tokenizer"):
        mosaic_edge.hf.generate(model, tokenizer(), video=[picture(0)], question="?")
    with pytest.raises(ModelError, match="model_type='qwen2' is not supported"):
        mosaic_edge.hf.generate(model.model.language_model, tokenizer(), video=[picture(0)], question="?")


def test_the_prompt_comes_from_the_chat_template_and_else_is_the_published_one(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    published = load(folders["qwen2_5_vl"]).spec
    assert published.prefix.endswith("<|im_start|>user\n<|vision_start|>")
    assert published.template == "<|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
    own = load(write_checkpoint("qwen2_5_vl", tmp_path / "own", CHATML)).spec
    assert own.prefix == "<|im_start|>user\n<|vision_start|>"
    assert own.template == "<|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n{think}"
    assert (
        own.follow_up == "<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{think}"
    )
    stamped = load(write_checkpoint("qwen3_vl", tmp_path / "stamped", CHATML)).spec
    start, end = OUTER_TAGS if keeps_outer_tags() else ("", "")
    assert stamped.prefix == f"<|im_start|>user\n{start}"
    assert stamped.template.startswith(f"{end}{{question}}")
    broken = load(write_checkpoint("qwen3_vl", tmp_path / "broken", "{{ raise_exception('no') }}")).spec
    assert broken.prefix == load(folders["qwen3_vl"]).spec.prefix


def test_the_newline_that_ends_a_video_is_an_embedding_of_its_own(folders: dict[str, Path]) -> None:
    model = load(folders["llava_onevision"]).model
    assert model.spec.template.startswith(NEWLINE)
    first, *others = model.tokenize(NEWLINE + "\n?")
    plain = transformers.AutoModelForImageTextToText.from_pretrained(folders["llava_onevision"])
    rows = model.embed_text([first, *others])
    assert np.array_equal(rows[0], plain.model.image_newline.detach().numpy())
    assert np.array_equal(rows[1:], plain.get_input_embeddings()(torch.tensor(others)).detach().numpy())
    with pytest.raises(ValueError, match="outside the vocabulary"):
        model.embed_text([first + 1])


@pytest.mark.parametrize("limit", [1, 5, 6, 13, 196])
@pytest.mark.parametrize("size", [(60, 92), (92, 60), (5, 7), (300, 1000), (1, 1), (28, 140)])
def test_frames_of_any_size_stay_within_the_limit(
    folders: dict[str, Path], limit: int, size: tuple[int, int]
) -> None:
    engine = load(folders["qwen2_5_vl"], tokens_per_frame=limit)
    model: Any = engine.model
    if max(size) // min(size) > limit:
        with pytest.raises(ValueError, match="is too long for"):
            model.encode(picture(0, *size), 0.0, 0.0, 0)
        return
    made = model.encode(picture(0, *size), 3.0, 2.0, 4)
    assert 1 <= len(made.tokens) <= limit
    assert len(made.tokens) % made.columns == 0
    assert made.t_position == 4


def test_a_stream_may_change_the_size_of_its_frames(folders: dict[str, Path]) -> None:
    with load(folders["qwen3_vl"], tokens_per_frame=12).session(memory="2MiB", kernel_threads=1) as session:
        for i, size in enumerate([(60, 92), (92, 60), (200, 64), (33, 33)] * 6):
            session.append(picture(i, *size), float(i))
        session.check_invariants()
        assert np.isfinite(session.ask("what?", sampling=SHORT).logits).all()


def same_frames(session: Session) -> None:
    for i in range(24):
        session.append(picture(i // 4), float(i))


def test_duplicate_frames_are_left_out_when_asked_and_counted(folders: dict[str, Path]) -> None:
    engine = load(folders["qwen3_vl"], tokens_per_frame=6)
    settings: dict[str, Any] = dict(memory="2MiB", kernel_threads=1)
    with engine.session(**settings) as session:
        same_frames(session)
        assert (session.memory()["frames"], session.memory()["duplicate_frames"]) == (24, 0)
    with engine.session(**settings, skip_alike=0.999) as session:
        same_frames(session)
        assert (session.memory()["frames"], session.memory()["duplicate_frames"]) == (12, 12)
        kept = session.ask("what?", sampling=SHORT).logits
        with pytest.raises(ValueError, match="pts must not fall"):
            session.append(picture(9), 3.0)
    with engine.session(**settings) as session:
        for i in range(0, 24, 4):  # of four alike two are a picture, which the other two are too
            session.append(picture(i // 4), float(i))
            session.append(picture(i // 4), float(i + 1))
        alone = session.ask("what?", sampling=SHORT).logits
    assert np.array_equal(kept, alone)
    with pytest.raises(ValueError, match="skip_alike"):
        engine.session(**settings, skip_alike=2.0)


# Those that make use of a disk, each with a cap at which its pages spill.
@pytest.mark.parametrize(("policy", "cap"), [("edge", 1024), ("mosaic", 1024), ("mukv", 1024), ("rekv", 640)])
@pytest.mark.parametrize("quota", [4 << 10, 96 << 10])
def test_a_video_longer_than_the_disk_quota_goes_on_within_it(
    folders: dict[str, Path], policy: str, cap: int, quota: int
) -> None:
    settings: dict[str, Any] = dict(
        memory=cap << 10, disk=quota, policy=policy, kernel_threads=1, branch_tokens=96,
        policy_settings={"unit": "summaries"} if policy == "edge" else {},
    )  # fmt: skip
    with load(folders["internvl"]).session(**settings) as session:
        for i in range(160):
            session.append(picture(i), float(i))
        assert np.isfinite(session.ask("what?", sampling=SHORT).logits).all()
        session.check_invariants()
        memory = session.memory()
    (disk,) = (tier for tier in memory["tiers"] if tier["medium"] == "disk")
    assert 0 < disk["used_bytes"] <= disk["peak_bytes"] <= disk["capacity_bytes"] <= quota
    assert memory["taken_bytes"] <= memory["cap_bytes"] == cap << 10
    tokens = memory["tokens"]
    assert tokens["spilled"] > 0
    assert tokens["collapsed"] + tokens["dropped"] > tokens["spilled"]  # what the quota had no room for
    assert sum(count for place, count in tokens.items() if place != "seen") == tokens["seen"]


def test_the_float_checkpoint_of_mosaic_tiny_answers_as_its_int4_onnx_form() -> None:
    torch.set_num_threads(1)
    floats, rounded = load(FLOAT), Engine.load(TINY, threads=1)
    right, total = {"float": 0, "int4": 0}, 0
    same = 0
    for difficulty in ("plain", "lively"):
        world = World(5, 128, difficulty)  # type: ignore[arg-type]
        questions = world.questions(127.0, np.random.default_rng(3), 40)
        answers: dict[str, list[str]] = {}
        for name, engine in (("float", floats), ("int4", rounded)):
            with engine.session(memory="8MiB", policy="full", kernel_threads=1) as session:
                for second in range(128):
                    session.append(world.render(second), float(second))
                answers[name] = [session.ask(q.text).text.strip() for q in questions]
            right[name] += sum(a == q.answer for a, q in zip(answers[name], questions, strict=True))
        total += len(questions)
        same += sum(a == b for a, b in zip(answers["float"], answers["int4"], strict=True))
    assert total >= 50
    assert right["float"] > 0.8 * total
    assert same >= 0.97 * total
    assert abs(right["float"] - right["int4"]) <= 0.01 * total + 1
