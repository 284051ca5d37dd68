"""`mosaic-edge check`: equal where a session and the library's script agree, red in the column that was
changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from checked_models import write_llava, write_llava_next_video, write_ovis2
from mosaic_edge import cli
from mosaic_edge.engine import Engine
from mosaic_edge.evaluation.check import positions, script
from mosaic_edge.evaluation.check.checkpoint import check_checkpoint
from mosaic_edge.evaluation.check.clip import Clip, drawn, fitting
from mosaic_edge.evaluation.check.row import NAMES, Row, near, passed
from mosaic_edge.evaluation.check.watched import stream, watching
from mosaic_edge.models.hf.family import Family, Picture
from published import PROCESSORS, checked
from videos import MakeVideo

CLIP = drawn(5, 60, 92)
OLD = int(transformers.__version__.split(".")[0]) < 5
STEPS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield write_llava(tmp_path_factory.mktemp("llava"))
    torch.set_num_threads(before)


def rows(engine: Engine, clip: Clip = CLIP) -> dict[str, Row]:
    return {row.what: row for row in check_checkpoint(engine, clip, STEPS)}


def test_everything_is_as_in_the_script(folder: Path) -> None:
    found = rows(Engine.load(folder, device="cpu"))
    assert tuple(found) == NAMES
    assert {row.what: row.equal for row in found.values()} == dict.fromkeys(NAMES, True)
    assert found["tokens a frame"].detail.endswith("16, 16, 16, 16, 16")
    assert found["greedy tokens"].detail == f"{STEPS} tokens"


def test_what_a_tokenizer_gives_and_generate_refuses_is_left_out(folder: Path, tmp_path: Path) -> None:
    """Tokenizers without a class of their own do so up to transformers 4."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    said = json.loads((tmp_path / "tokenizer_config.json").read_text())
    said["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    given = transformers.AutoTokenizer.from_pretrained(tmp_path)("what ?")
    assert "token_type_ids" in given
    found = rows(Engine.load(tmp_path, device="cpu"))
    assert {row.what: row.equal for row in found.values()} == dict.fromkeys(NAMES, True)


def test_ovis2_reads_its_tags_as_its_tower_has_them(tmp_path: Path) -> None:
    engine = Engine.load(write_ovis2(tmp_path), device="cpu")
    assert {row.what: row.equal for row in rows(engine).values()} == dict.fromkeys(NAMES, True)
    model: Any = engine.model
    ids = model.family.config.visual_indicator_token_ids
    table = model.family.language.get_input_embeddings()(torch.tensor(ids)).detach().numpy()
    assert not np.isclose(model.embed_text(ids), table).any(axis=1).all()


def assert_all_equal(found: Any, tokens: str) -> None:
    """Every row is compared and equal; the row of tokens a frame ends with `tokens`."""
    assert {row["what"]: row["equal"] for row in found.said["rows"]} == dict.fromkeys(NAMES, True)
    assert found.row("tokens a frame")["detail"].endswith(tokens)
    assert found.code == 0


@pytest.mark.skipif(not PROCESSORS.is_dir(), reason="needs tools/setup published")
def test_llava_next_video_is_as_in_the_script(tmp_path: Path) -> None:
    folder = write_llava_next_video(tmp_path / "model")
    if OLD:  # its processor reads any tokenizer as Llama's, which published ones are
        said = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(
            json.dumps(said | {"tokenizer_class": "LlamaTokenizerFast"})
        )
    found = checked(folder, tmp_path, "--steps", "8")
    assert_all_equal(found, tokens=": 96")


@pytest.mark.skipif(not PROCESSORS.is_dir(), reason="needs tools/setup published")
@pytest.mark.skipif(OLD, reason="needs transformers 5: before, there is none")
def test_video_llama3_is_as_in_the_script_that_keeps_all_tokens(tmp_path: Path) -> None:
    found = checked(tmp_path / "model", tmp_path, "--write=video_llama3", "--steps", "8")
    assert_all_equal(found, tokens=": 45, 45, 45, 45, 45, 45")


@pytest.mark.skipif(not (PROCESSORS / "timm").is_dir(), reason="needs tools/setup published")
@pytest.mark.skipif(
    transformers.__version__.startswith(("4.", "5.2.")),
    reason="up to transformers 5.2 timm's towers have no SDPA",
)
def test_perception_lm_is_as_in_the_script(tmp_path: Path) -> None:
    found = checked(tmp_path / "model", tmp_path, "--write=perception_lm", "--steps", "8")
    assert_all_equal(found, tokens=": 96")


def other_prompt(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = engine.model
    model._spec = replace(model.spec, prefix=f"{model.spec.prefix} ")


def other_mean(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.model.family.videos = {"image_mean": [0.4, 0.4, 0.4]}  # type: ignore[attr-defined]


def change_picture(monkeypatch: pytest.MonkeyPatch, engine: Engine, change: Callable[..., Picture]) -> None:
    family: Family = engine.model.family  # type: ignore[attr-defined]
    encode = family.encode
    monkeypatch.setattr(family, "encode", lambda frame: change(encode(frame)))


def lost_row(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    change_picture(monkeypatch, engine, lambda made: Picture(made.features[:-4], made.columns))


def other_features(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    change_picture(monkeypatch, engine, lambda made: Picture(made.features * 1.01, made.columns))


def one_step_on(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script has the second frame and all behind it one position later than a session."""
    before = script.Answer.positions.fget  # type: ignore[attr-defined]

    def later(answer: script.Answer) -> Any:
        at = before(answer).copy()
        at[:, 30:] += 1
        return at

    monkeypatch.setattr(script.Answer, "positions", property(later))


def other_scale(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = engine.model
    model._spec = replace(model.spec, scale=model.spec.scale * 1.05)


def other_token(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third token's logits, one place on."""
    head, asked = engine.model._head, [0]  # type: ignore[attr-defined]

    def turned(rows: torch.Tensor) -> torch.Tensor:
        asked[0] += 1
        return head(rows).roll(1, -1) if asked[0] == 3 else head(rows)

    monkeypatch.setattr(engine.model, "_head", turned)


INPUTS = ("prompt", "pixels", "tokens a frame", "features")


@pytest.mark.parametrize(
    ("column", "plant", "same"),
    [
        ("prompt", other_prompt, ("pixels", "tokens a frame")),
        ("pixels", other_mean, ("prompt", "tokens a frame", "positions")),
        ("tokens a frame", lost_row, ("prompt", "pixels")),
        ("features", other_features, ("prompt", "pixels", "tokens a frame", "positions")),
        ("positions", one_step_on, (*INPUTS, "logits", "greedy tokens")),
        ("logits", other_scale, (*INPUTS, "positions")),
        ("greedy tokens", other_token, (*INPUTS, "positions", "logits")),
    ],
)
def test_a_planted_change_is_red_in_its_column(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    column: str,
    plant: Callable[[Engine, pytest.MonkeyPatch], None],
    same: tuple[str, ...],
) -> None:
    engine = Engine.load(folder, device="cpu")
    plant(engine, monkeypatch)
    found = rows(engine)
    assert found[column].equal is False, found
    assert all(found[name].equal for name in same), found
    assert not passed(found.values())


def test_the_command_ends_with_0_or_1_and_names_what_differs(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ["check", "--device", "cpu", "--frames", "2", "--steps", "3", "--json", "--model"]
    assert cli.main([*options, str(folder)]) == 0
    said = json.loads(capfd.readouterr().out)
    assert said["equal"] and said["error"] is None
    assert [row["what"] for row in said["rows"]] == list(NAMES)
    changed = shutil.copytree(folder, tmp_path / "changed")
    (changed / "mosaic.json").write_text(
        json.dumps({"prefix": "HUMAN: ", "template": "{question} ASSISTANT:"})
    )
    assert cli.main([*options, str(changed)]) == 1
    read = capfd.readouterr()
    assert not json.loads(read.out)["equal"]
    assert "prompt" in read.err and "not as in the script" in read.err and read.err.count("\n") == 1


def test_frames_of_a_file_are_shown_to_both(
    folder: Path, make_video: MakeVideo, capfd: pytest.CaptureFixture[str]
) -> None:
    options = [
        "check",
        "--device",
        "cpu",
        "--steps",
        "3",
        "--fps",
        "5",
        "--frames",
        "3",
        "--model",
        str(folder),
    ]
    assert cli.main([*options, "--json", "--video", str(make_video())]) == 0
    said = json.loads(capfd.readouterr().out)
    assert said["frames"] == [3, 64, 96] and said["equal"]
    assert cli.main([*options, "--video", str(make_video()), "--ask", "what is it?"]) == 0
    shown = capfd.readouterr().out
    assert "3 frames of 64 x 96" in shown and shown.count(" equal ") == len(NAMES)
    assert cli.main([*options, "--video", "no such file"]) == 1
    assert "no such file" in capfd.readouterr().err
    assert cli.main([*options, "--ask", " "]) == 2
    assert "ask: expected a question" in capfd.readouterr().err


def test_a_processor_that_cannot_be_loaded_leaves_every_row_uncompared(folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "chat_template.jinja").unlink()
    found = rows(Engine.load(broken, device="cpu"))
    assert {row.equal for row in found.values()} == {None}
    assert all("AutoProcessor cannot be used" in row.detail for row in found.values())
    assert not passed(found.values())


def test_what_autoprocessor_lacks_is_named_with_how_to_get_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(*given: object) -> None:
        raise ImportError(
            "\nQwen2VLVideoProcessor requires the Torchvision library but it was not found here"
        )

    monkeypatch.setattr("mosaic_edge.evaluation.check.checkpoint.inputs_of", lacking)
    found = rows(Engine.load(folder, device="cpu"))
    why = "not compared: AutoProcessor cannot be used (it needs torchvision: pip install torchvision)"
    assert {row.detail for row in found.values()} == {why}


def test_positions_are_told_apart_by_a_single_frame_that_stands_one_on(folder: Path) -> None:
    engine = Engine.load(folder, device="cpu")
    with watching(engine.model) as seen:
        stream(engine, CLIP, 1)
    at = np.tile(np.arange(len(seen.prompt)), (3, 1))
    assert positions.difference(engine, seen.pictures, CLIP, at) < positions.ALLOWED / 10
    at[:, 40:56] += 1
    assert positions.difference(engine, seen.pictures, CLIP, at) > 4 * positions.ALLOWED
    assert positions.difference(engine, seen.pictures, CLIP, at[:, 1:]) == np.inf


def test_a_clip_is_cut_to_what_a_model_has_positions_for_and_shrunk_to_its_tokens(folder: Path) -> None:
    spec = replace(Engine.load(folder, device="cpu").spec, context=200, tokens_per_frame=20)
    assert len(fitting(CLIP, spec, 100).frames) == 4
    wide = replace(spec, grid=(1, 64), native_tokens_per_frame=4096, context=0)
    shrunk = fitting(drawn(2, 1080, 1920), wide, 100).frames
    height, width = shrunk.shape[1:3]
    assert height * width <= 0.75 * 64 * 28 * 28 and abs(width / height - 16 / 9) < 0.02
    assert fitting(CLIP, wide, 100).frames.shape == CLIP.frames.shape


def test_a_difference_that_is_no_number_is_none_that_is_allowed() -> None:
    assert near("logits", float("nan"), 1e-3, "their spread").equal is False
    assert near("logits", 1e-3, 1e-3, "their spread").equal is True
