"""Which of the files of a directory or a hub repository are taken, and what is fetched for them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

import mosaic_edge
from fixtures_hf import write_checkpoint
from fixtures_models import write_model
from mosaic_edge import Engine, ModelError
from mosaic_edge.models import TINY
from mosaic_edge.models.hub import is_hub_id
from mosaic_edge.models.layout import layout_of
from mosaic_edge.models.onnx.files import names_of_parts

TINY_FILES = Path(mosaic_edge.__file__).parent / "models" / "tiny"
GRAPHS = ["onnx/decoder_model_merged_q4.onnx", "onnx/vision_encoder.onnx", "onnx/embed_tokens.onnx"]


@pytest.mark.parametrize(
    ("names", "layout"),
    [
        (["config.json", "model.safetensors", *GRAPHS], "transformers"),
        (["config.json", "model.safetensors.index.json", *GRAPHS], "transformers"),
        (["config.json", "pytorch_model.bin"], "transformers"),
        (["config.json", "tokenizer.json", *GRAPHS], "onnx"),
        (["config.json", "model.onnx"], "onnx"),
        (["config.json"], "transformers"),
        (["genai_config.json", "config.json", "model.onnx", "model.safetensors"], "onnx"),
        (["tokenizer.json"], "onnx"),
        (["config.json", "other/deep/model.onnx"], "transformers"),
        ([], "onnx"),
    ],
)
def test_a_layout_is_told_by_the_names_of_files(names: list[str], layout: str) -> None:
    assert layout_of(names) == layout


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As hub repositories are: safetensors, and graphs of the same model in onnx/."""
    torch.set_num_threads(1)
    folder = write_checkpoint("internvl", tmp_path_factory.mktemp("both"))
    shutil.copytree(write_model(tmp_path_factory.mktemp("graphs")) / "onnx", folder / "onnx")
    return folder


def test_safetensors_go_before_graphs_unless_graphs_are_asked_for(both: Path) -> None:
    assert Engine.load(both, device="cpu").spec.layout == "transformers"
    assert Engine.load(both, device="cpu", layout="transformers").spec.kv_heads == 2
    with pytest.raises(ModelError):  # its graphs are another model's, and are what is looked at
        Engine.load(both, layout="onnx")
    with pytest.raises(ValueError, match="layout='safetensors': expected 'onnx' or 'transformers'"):
        Engine.load(both, layout="safetensors")


def test_an_empty_folder_of_graphs_is_no_layout(tmp_path: Path) -> None:
    folder = write_checkpoint("internvl", tmp_path)
    (folder / "onnx").mkdir()
    assert Engine.load(folder, device="cpu").spec.layout == "transformers"


def test_mosaic_tiny_is_of_graphs() -> None:
    assert Engine.load(TINY).spec.layout == "onnx"


REPOSITORY = [
    "README.md", "config.json", "tokenizer.json", "preprocessor_config.json",
    *(f"onnx/{part}{v}.onnx{data}" for part in ("decoder_model_merged", "vision_encoder", "embed_tokens")
      for v in ("", "_fp16", "_q4") for data in ("", "_data", "_data_1")),
]  # fmt: skip


def test_of_many_variants_only_those_that_would_be_opened_are_fetched() -> None:
    def graphs(variant: str | None) -> list[str]:
        return sorted(name for name in names_of_parts(REPOSITORY, variant, "cpu") if name.endswith(".onnx"))

    assert graphs(None) == sorted(GRAPHS)
    assert graphs("fp16") == [
        "onnx/decoder_model_merged_fp16.onnx", "onnx/embed_tokens_fp16.onnx", "onnx/vision_encoder_fp16.onnx",
    ]  # fmt: skip
    assert len(names_of_parts(REPOSITORY, None, "cpu")) == 9  # external data with each
    whole = ["genai_config.json", "model.onnx", "model.onnx.data", "vision.onnx", "a/deep/other.onnx"]
    assert names_of_parts(whole, None, "cpu") == ["model.onnx", "model.onnx.data", "vision.onnx"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, list[str]], list[Any]]:
    """hub(folder, names): a hub whose one repository has such files and lies in the folder; what it was asked
    for."""

    def make(folder: Path, names: list[str]) -> list[Any]:
        asked: list[Any] = []

        def download(model: str, allow_patterns: list[str] | None = None, **_: Any) -> str:
            asked.append(allow_patterns)
            return str(folder)

        monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda model: names)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        return asked

    return make


def test_a_hub_id_of_graphs_alone_is_fetched_and_opened(hub: Any) -> None:
    names = [
        path.relative_to(TINY_FILES).as_posix() for path in TINY_FILES.rglob("*") if "float" not in path.parts
    ]
    asked = hub(TINY_FILES, names)
    assert Engine.load("someone/tiny-onnx").spec.layout == "onnx"
    (patterns,) = asked
    assert "*.json" in patterns and "*.safetensors" not in patterns
    assert any(name.endswith(".onnx") for name in patterns)


def test_a_hub_id_with_both_is_fetched_without_its_graphs(hub: Any, both: Path) -> None:
    asked = hub(both, ["config.json", "model.safetensors", *GRAPHS])
    assert Engine.load("someone/both", device="cpu").spec.layout == "transformers"
    assert "*.safetensors" in asked[0] and not any(".onnx" in pattern for pattern in asked[0])


def test_what_is_no_hub_id_is_a_missing_directory() -> None:
    assert is_hub_id("Qwen/Qwen2.5-VL-3B-Instruct") and not is_hub_id("a/b/c") and not is_hub_id("../x")
    with pytest.raises(ModelError, match="no such model directory"):
        Engine.load("not/a/folder")
