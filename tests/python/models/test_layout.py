"""Which of the files of a directory or a hub repository are taken, and what is fetched for them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch

import mosaic_edge
from fixtures_hf import write_checkpoint
from fixtures_models import write_model
from mosaic_edge import Engine, ModelError
from mosaic_edge.cli import doctor
from mosaic_edge.models import TINY
from mosaic_edge.models.hub import fetch, is_hub_id
from mosaic_edge.models.layout import layout_of
from mosaic_edge.models.onnx.files import names_of_parts
from mosaic_edge.models.weights import Weights, weights_of

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

        info = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])
        monkeypatch.setattr(huggingface_hub, "model_info", lambda model, **_: info)
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


def test_what_was_fetched_is_said_in_one_line_with_its_size_and_place(
    hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = hub(tmp_path, ["config.json", "model.safetensors"])
    listed = huggingface_hub.snapshot_download

    def download(model: str, **options: Any) -> str:
        (tmp_path / "model.safetensors").write_bytes(bytes(3 << 20))
        return str(listed(model, **options))

    (tmp_path / "config.json").write_text("{}")
    os.utime(tmp_path / "config.json", (1e9, 1e9))  # there before
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with caplog.at_level("INFO", "mosaic_edge"):
        assert fetch("someone/some", None, lambda names: names) == (tmp_path, "transformers")
    assert len(asked) == 1
    (line,) = caplog.messages
    assert line.startswith("someone/some: 3.0 MiB fetched in ") and line.endswith(f"it lies in {tmp_path}")


def test_what_lies_in_the_cache_is_said_to_be_it_where_the_hub_cannot_be_asked(
    hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub(tmp_path, [])
    (tmp_path / "config.json").write_text("{}")

    def unreachable(model: str, **_: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "model_info", unreachable)
    with caplog.at_level("INFO", "mosaic_edge"):
        assert fetch("someone/some", None, lambda names: names)[0] == tmp_path
    assert caplog.messages == [
        f"someone/some: the hub cannot be asked; what its cache has is taken: {tmp_path}"
    ]


SIZES = {
    "config.json": 9, "model-1.safetensors": 100, "model-2.safetensors": 50, "._model-2.safetensors": 7,
    "onnx/decoder_model_merged_q4.onnx": 10, "onnx/decoder_model_merged_q4.onnx_data": 20,
    "onnx/decoder_model_merged.onnx": 80, "onnx/vision_encoder.onnx": 30, "onnx/embed_tokens.onnx": 40,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "layout", "expected"),
    [
        ({}, None, Weights("transformers", 150, 150)),
        ({"torch_dtype": "bfloat16"}, None, Weights("transformers", 150, 150)),
        ({"text_config": {"dtype": "float16"}}, None, Weights("transformers", 150, 300)),
        ({"quantization_config": {"quant_method": "fp8"}}, None, Weights("transformers", 150, 300)),
        (
            {
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "config_groups": {"group_0": {"weights": {"num_bits": 4}}},
                }
            },
            None,
            Weights("transformers", 150, 600),
        ),
        ({}, "onnx", Weights("onnx", 100, 100)),
    ],
)
def test_weights_are_counted_by_the_sizes_of_the_files_that_would_be_opened(
    config: dict[str, Any], layout: str | None, expected: Weights
) -> None:
    def graphs(names: list[str]) -> list[str]:
        return names_of_parts(names, None, "cpu")

    assert weights_of(SIZES, config, layout, graphs) == expected


def test_doctor_says_whether_weights_fit_and_reads_none(
    both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(both, tmp_path / "copy"))
    size = (copy / "model.safetensors").stat().st_size
    (copy / "model.safetensors").write_bytes(bytes(size))  # no header: it could not be read
    found = doctor.examine(model=str(copy))["weights"]
    assert found["ok"] and found["stored_bytes"] == size and "they fit" in found["detail"]
    monkeypatch.setattr(doctor, "_memory", lambda: {"available_bytes": size - 1})
    found = doctor.examine(model=str(copy))["weights"]
    assert not found["ok"] and "too large" in found["detail"]
    assert "no such model directory" in doctor.examine(model="not/a/folder")["weights"]["detail"]
    assert "weights" not in doctor.examine()


def test_a_directory_that_cannot_be_listed_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(_: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(ModelError, match=r": its files cannot be listed \(Permission denied\)$"):
        Engine.load(tmp_path)
    found = doctor.examine(model=str(tmp_path))["weights"]
    assert not found["ok"] and "Permission denied" in found["detail"]
