"""`mosaic-edge check` of ONNX directories: against the uncut graph, and AutoProcessor where it can read
them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checked_models import TEMPLATE
from exported_models import VOCAB, Exporter
from mosaic_edge.engine import Engine
from mosaic_edge.evaluation.check import watched
from mosaic_edge.evaluation.check.clip import Clip, drawn
from mosaic_edge.evaluation.check.graphs import ROUNDED, check_graphs
from mosaic_edge.evaluation.check.row import NAMES, Row, passed

CLIP = replace(drawn(4, 57, 83), question="w11 w13 w90")
ANSWER = ("positions", "logits", "greedy tokens")
EXPORTS = {
    "llava": ("llava",),
    "qwen2.5-vl": ("qwen2.5-vl",),
    "qwen3-vl": ("qwen3-vl", "genai", "int4", "accuracy_level=1"),
}


def load(folder: Path, tokens_per_frame: int | None = None) -> Engine:
    """Without an end token, so that answers have one length."""
    engine = Engine.load(folder, tokens_per_frame=tokens_per_frame)
    model: Any = engine.model
    model._spec = replace(model.spec, eos_token_ids=(VOCAB,))
    return engine


def rows(engine: Engine, clip: Clip = CLIP) -> dict[str, Row]:
    found = {row.what: row for row in check_graphs(engine, clip, 12)}
    assert tuple(found) == NAMES
    return found


@pytest.mark.parametrize("kind", EXPORTS)
def test_a_cut_graph_stands_reads_and_says_what_the_uncut_one_does(exporter: Exporter, kind: str) -> None:
    found = rows(load(exporter(*EXPORTS[kind]), None if kind == "llava" else 12))
    assert [found[name].equal for name in ANSWER] == [True] * 3, found
    assert found["logits"].difference is not None and found["logits"].difference < 1e-4
    assert found["greedy tokens"].detail == "12 tokens"
    assert passed(found.values())
    # No AutoProcessor can be made of such a directory: it has no chat template.
    assert all(found[name].detail.startswith("not compared: ") for name in ("prompt", "pixels", "features"))


@pytest.mark.parametrize(
    ("export", "allowed"),
    [(("llava", "genai", "int4"), ROUNDED), (("llava", "transformers.js", "q4f16"), 0.05)],
)
def test_coarser_arithmetic_is_compared_to_its_own_rounding(
    exporter: Exporter, export: tuple[str, ...], allowed: float
) -> None:
    found = rows(load(exporter(*export)))
    assert [found[name].equal for name in ANSWER] == [True] * 3, found
    assert found["logits"].allowed == allowed


def other_scale(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = engine.model
    model._spec = replace(model.spec, scale=model.spec.scale * 1.05)


def other_places(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Contiguous positions, which lose the time that this family's pictures stand at."""
    before = watched.settings
    monkeypatch.setattr(watched, "settings", lambda *given: before(*given) | {"positions": "contiguous"})


def other_token(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third token's logits, one place on."""
    decoder, asked = engine.model._decoder, [0]  # type: ignore[attr-defined]
    run = decoder.run

    def turned(embeds: Any, attend: Any, want_logits: bool = True) -> Any:
        made = run(embeds, attend, want_logits)
        asked[0] += made is not None
        return np.roll(made, 1) if made is not None and asked[0] == 3 else made

    monkeypatch.setattr(decoder, "run", turned)


@pytest.mark.parametrize(
    ("column", "plant", "same"),
    [
        ("positions", other_places, ()),
        ("logits", other_scale, ("positions",)),
        ("greedy tokens", other_token, ("positions", "logits")),
    ],
)
def test_a_planted_change_is_red_in_its_column(
    exporter: Exporter,
    monkeypatch: pytest.MonkeyPatch,
    column: str,
    plant: Callable[[Engine, pytest.MonkeyPatch], None],
    same: tuple[str, ...],
) -> None:
    engine = load(exporter(*EXPORTS["qwen2.5-vl"]), 12)
    plant(engine, monkeypatch)
    found = rows(engine)
    assert found[column].equal is False, found
    assert all(found[name].equal for name in same), found
    assert not passed(found.values())


@pytest.fixture
def processed(exporter: Exporter, tmp_path: Path) -> Path:
    """An exported LLaVA with the files of its processor beside it."""
    import transformers.models.siglip.image_processing_pil_siglip as siglip
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import LlavaProcessor, PreTrainedTokenizerFast

    folder = Path(shutil.copytree(exporter(*EXPORTS["llava"]), tmp_path / "model"))
    words = ["<image>", "USER:", "ASSISTANT:", "what", "is", "it", "?"]  # config.json: <image> is 2
    table = {word: i for i, word in enumerate(words, 2)} | {"<unk>": VOCAB - 1}
    raw = Tokenizer(WordLevel(table, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.add_special_tokens(["<image>"])
    LlavaProcessor(
        siglip.SiglipImageProcessorPil(size={"height": 42, "width": 42}),
        PreTrainedTokenizerFast(tokenizer_object=raw), patch_size=14, vision_feature_select_strategy="full",
        num_additional_image_tokens=0, chat_template=TEMPLATE,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_where_autoprocessor_reads_a_directory_prompt_and_pixels_are_its_own(processed: Path) -> None:
    clip = replace(CLIP, question="what is it ?")
    engine = load(processed)
    found = rows(engine, clip)
    assert {name: row.equal for name, row in found.items()} == dict.fromkeys(NAMES, True) | {"features": None}
    # A line break is no word here: the four pictures stand side by side.
    assert found["prompt"].detail == "7 ids" and found["tokens a frame"].detail.endswith(": 36")


def test_another_prompt_size_or_brightness_is_red(processed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = replace(CLIP, question="what is it ?")
    engine = load(processed)
    model: Any = engine.model
    model._spec = replace(model.spec, prefix=f"{model.spec.prefix} what")
    found = rows(engine, clip)
    assert [found[name].equal for name in ("prompt", "pixels", "tokens a frame")] == [False, True, True]

    engine = load(processed)
    vision: Any = engine.model.vision  # type: ignore[attr-defined]
    encode = vision.encode
    monkeypatch.setattr(vision, "encode", lambda frame: (encode(frame)[0][:-3], encode(frame)[1]))
    found = rows(engine, clip)
    assert [found[name].equal for name in ("prompt", "tokens a frame")] == [True, False]

    engine = load(processed)
    vision = engine.model.vision  # type: ignore[attr-defined]
    monkeypatch.setattr(vision, "rules", replace(vision.rules, mean=(0.45, 0.45, 0.45)))
    found = rows(engine, clip)
    assert [found[name].equal for name in ("prompt", "pixels", "tokens a frame")] == [True, False, True]
