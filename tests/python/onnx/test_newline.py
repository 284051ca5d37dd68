"""The embedding that ends a video (LLaVA-OneVision) is in no graph: it is read out of the weights beside
them, or said to be left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fixtures_models import HIDDEN, MOSAIC, VOCAB, write_model
from mosaic_edge import Engine
from mosaic_edge.cli import app
from mosaic_edge.evaluation.check.clip import Clip
from mosaic_edge.evaluation.check.graphs import check_graphs
from mosaic_edge.models.newline import NEWLINE
from mosaic_edge.models.tensor_file import vector_of
from mosaic_edge.models.vlm import ModelError

TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'video' %}the <video>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} ?{% endif %}"
)


@pytest.fixture
def graphs(tmp_path: Path) -> Path:
    folder = write_model(tmp_path / "model")
    kept = ("image_size", "image_mean", "image_std", "fps", "eos_token_id")
    (folder / "mosaic.json").write_text(json.dumps({name: MOSAIC[name] for name in kept}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llava_onevision"}))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def newline(kind: torch.dtype) -> torch.Tensor:
    return torch.randn(HIDDEN, generator=torch.Generator().manual_seed(3)).to(kind)


def beside(folder: Path, row: torch.Tensor, name: str = "model.image_newline") -> None:
    first, second = {"a.weight": torch.ones(3)}, {"b.weight": torch.ones(5, 7, dtype=row.dtype), name: row}
    save_file(first, folder / "model-00001-of-00002.safetensors")
    save_file(second, folder / "model-00002-of-00002.safetensors")


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["image_newline", "model.image_newline"])
def test_a_video_ends_with_the_newline_of_the_weights_beside_the_graphs(
    graphs: Path, kind: torch.dtype, name: str
) -> None:
    beside(graphs, newline(kind), name)
    engine = Engine.load(graphs, layout="onnx")
    model: Any = engine.model
    read: list[np.ndarray] = []
    forward = model.forward
    model.forward = lambda embeds, *rest: read.append(embeds) or forward(embeds, *rest)
    with engine.session(memory="4MiB", policy="full", branch_tokens=16, kernel_threads=1) as session:
        session.append(np.zeros((9, 11, 3), np.uint8), 0.0)
        session.ask("what colour")
    assert engine.spec.left_out == "" and engine.spec.template.startswith(NEWLINE)
    assert len(read[0]) == 1 and len(read[1]) == 1  # "the", and the picture's one pooled token
    np.testing.assert_array_equal(read[2][0], newline(kind).float().numpy())
    np.testing.assert_array_equal(read[2][1:4], model.embed_text(model.tokenize("what colour ?")))
    with pytest.raises(ValueError, match=f"token id {VOCAB + 1} is outside the vocabulary of {VOCAB}"):
        model.embed_text([VOCAB + 1])


def test_its_mark_in_a_question_is_no_newline(graphs: Path) -> None:
    beside(graphs, newline(torch.float32))
    model = Engine.load(graphs, layout="onnx").model
    assert model.tokenize(NEWLINE + "what") == [VOCAB, *model.tokenize("what")]
    with pytest.raises(ValueError, match="unknown word"):
        model.tokenize(NEWLINE + "what", (0, 5))


def test_the_decoder_as_it_was_exported_gives_the_same_logits_behind_it(graphs: Path) -> None:
    beside(graphs, newline(torch.float16))
    clip = Clip(np.random.default_rng(0).integers(0, 255, (3, 9, 11, 3), np.uint8), 1.0, "what colour")
    rows = {row.what: row.equal for row in check_graphs(Engine.load(graphs, layout="onnx"), clip, 4)}
    assert (rows["positions"], rows["logits"], rows["greedy tokens"]) == (True, True, True)


def test_what_is_left_out_is_said(graphs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--model", str(graphs), "--memory", "4MiB"]
    app([*arguments, "--json"], standalone_mode=False)
    said = json.loads(capsys.readouterr().out)["left_out"]
    assert said.startswith("the embedding that ends a video (image_newline), which is in no graph: ")
    assert said.endswith("has no *.safetensors with it; the model's own beside its graphs would do")
    app(arguments, standalone_mode=False)
    assert f"left out of the prompt: {said}" in capsys.readouterr().out
    assert not Engine.load(graphs).spec.template.startswith(NEWLINE)


@pytest.mark.parametrize("damage", ["pointer", "short", "wide", "nan", "type", "place"])
def test_weights_that_do_not_give_it_are_named_and_the_graphs_still_run(graphs: Path, damage: str) -> None:
    beside(graphs, newline(torch.float32))
    file = graphs / "model-00002-of-00002.safetensors"
    if damage == "pointer":
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 132\n")
    elif damage == "short":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "place":  # one that begins before the tensors do
        file.write_bytes(file.read_bytes().replace(b"[0,256]", b"[-4,99]").replace(b"[140,396]", b"[-1,396]"))
    else:
        row = {
            "wide": torch.ones(HIDDEN + 1),
            "nan": torch.full((HIDDEN,), torch.nan),
            "type": torch.ones(HIDDEN, dtype=torch.int8),
        }[damage]
        beside(graphs, row)
    engine = Engine.load(graphs, layout="onnx")
    assert str(file) in engine.spec.left_out and NEWLINE not in engine.spec.template
    assert "\n" not in engine.spec.left_out


def test_of_the_weights_nothing_else_is_read(tmp_path: Path) -> None:
    """A file of more bytes than this machine has memory, all but the last of them a hole."""
    row = np.arange(5, dtype=np.float32)
    hole = 1 << 40
    said = {
        "a.weight": {"dtype": "U8", "shape": [hole], "data_offsets": [0, hole]},
        "image_newline": {"dtype": "F32", "shape": [5], "data_offsets": [hole, hole + 20]},
    }
    header = json.dumps(said).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.seek(8 + len(header) + hole)
        file.write(row.tobytes())
    np.testing.assert_array_equal(vector_of(tmp_path, "image_newline", 5), row)
    with pytest.raises(ModelError, match=r"image_newline is F32 \[5\], expected 6 numbers"):
        vector_of(tmp_path, "image_newline", 6)
    assert vector_of(tmp_path, "newline", 5) is None
