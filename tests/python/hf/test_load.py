"""What a transformers checkpoint is loaded from, and what is refused by name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import mosaic_edge.hf
from fixtures_hf import picture, tokenizer, write_checkpoint
from mosaic_edge import ModelError
from mosaic_edge.engine import Engine
from mosaic_edge.models.hf.load import check_weights
from mosaic_edge.models.hf.rope import rope_of
from mosaic_edge.models.thinking import Thinking
from mosaic_edge.sampling import SamplingParams


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_checkpoint("qwen2_5_vl", tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def refused(folder: Path, **options: Any) -> str:
    with pytest.raises(ModelError) as error:
        Engine.load(folder, device="cpu", **options)
    text = str(error.value)
    assert "\n" not in text
    return text


def change_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def shard(folder: Path) -> list[Path]:
    """The same weights in several files."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="200KB")
    files = sorted(folder.glob("model-*.safetensors"))
    assert len(files) > 2
    return files


def test_an_unsupported_family_is_refused_with_those_that_are_supported(copy: Path) -> None:
    change_config(copy, lambda config: config.update(model_type="blip_2"))
    text = refused(copy)
    assert "model_type='blip_2' is not supported" in text
    for kind in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "smolvlm", "internvl"):
        assert kind in text


def test_a_missing_shard_is_named(copy: Path) -> None:
    files = shard(copy)
    Engine.load(copy, device="cpu")
    files[1].unlink()
    assert f"shard {files[1].name} is missing (1 of {len(files)} are)" in refused(copy)


@pytest.mark.parametrize("left", [-1, 4000, 11, 3, 0])
def test_truncated_safetensors_are_named_wherever_they_are_cut(copy: Path, left: int) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    assert str(file) in refused(copy)


def test_a_weight_that_no_file_holds_is_named_instead_of_made_up(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    lost = next(name for name in sorted(weights) if name.endswith("layers.1.self_attn.k_proj.weight"))
    del weights[lost]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    text = refused(copy)
    assert "1 weights are not in it" in text
    assert "layers.1.self_attn.k_proj.weight first" in text
    assert transformers.__version__ in text


def test_a_header_that_is_no_json_is_refused(copy: Path) -> None:
    file = copy / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[8:40] = b"\xff" * 32
    file.write_bytes(bytes(data))
    assert "header cannot be read" in refused(copy)


def test_pickled_weights_are_refused_until_they_are_allowed(copy: Path) -> None:
    model = transformers.AutoModelForImageTextToText.from_pretrained(copy)
    torch.save(model.state_dict(), copy / "pytorch_model.bin")
    expected = Engine.load(copy, device="cpu").model.embed_text([5, 6])
    (copy / "model.safetensors").unlink()
    text = refused(copy)
    assert "pytorch_model.bin" in text
    assert "allow_pickle=True" in text
    allowed = Engine.load(copy, device="cpu", allow_pickle=True)
    assert np.array_equal(allowed.model.embed_text([5, 6]), expected)


def test_no_weights_at_all_are_named(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert refused(copy).endswith("no *.safetensors")


@pytest.mark.parametrize("at", ["the weights", "the first run"])
def test_a_model_for_which_there_is_no_memory_is_not_said_to_be_wrong(
    at: str, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    if at == "the weights":
        monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", none)
    else:
        monkeypatch.setattr(torch.nn.Linear, "forward", none)
    with pytest.raises(MemoryError, match=r"no memory is left for it .*Raise the limit of memory"):
        Engine.load(copy)


def test_a_missing_image_processor_is_named(copy: Path) -> None:
    (copy / "preprocessor_config.json").unlink()
    assert "no image processor: expected preprocessor_config.json" in refused(copy)


def test_a_missing_tokenizer_is_named(copy: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    assert "no tokenizer: expected tokenizer.json, vocab.json or tokenizer.model" in refused(copy)


def test_a_hub_id_that_is_not_cached_is_named_when_there_is_no_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ModelError, match=r"someone/some-model: no such directory, not in the hub cache, and not to"
    ):
        Engine.load("someone/some-model")


def test_a_scaled_rotary_embedding_that_is_not_known_is_refused_by_its_type(tmp_path: Path) -> None:
    folder = write_checkpoint("smolvlm", tmp_path)

    def scale(config: dict[str, Any]) -> None:
        text = config["text_config"]
        theta = (text.pop("rope_parameters", None) or text)["rope_theta"]
        text.update(rope_theta=theta, rope_scaling={"rope_type": "proportional", "factor": 2.0})

    change_config(folder, scale)
    assert "rope_type='proportional'" in refused(folder)


def test_frequencies_other_than_the_configs_are_refused_with_the_version(checkpoint: Path) -> None:
    model = transformers.AutoModelForImageTextToText.from_pretrained(checkpoint)
    language = model.model.language_model
    assert rope_of("a model", language, 3).theta == 1e6
    language.rotary_emb.inv_freq **= 0.75  # as if theta were 31623
    with pytest.raises(ModelError, match=r"not those of rope_theta=1e\+06 in config.json: transformers \d"):
        rope_of("a model", language, 3)


def test_sliding_window_layers_are_refused(tmp_path: Path) -> None:
    folder = write_checkpoint("internvl", tmp_path)

    def slide(config: dict[str, Any]) -> None:
        config["text_config"].update(
            use_sliding_window=True,
            sliding_window=64,
            layer_types=["sliding_attention"] * 3,
            max_window_layers=0,
        )

    change_config(folder, slide)
    assert "sliding-window layers" in refused(folder)


def test_a_limit_that_a_family_cannot_keep_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint("internvl", tmp_path)
    assert "tokens_per_frame=3, but every frame of this family is 4 tokens" in refused(
        folder, tokens_per_frame=3
    )
    Engine.load(folder, device="cpu", tokens_per_frame=4)


def test_the_familys_own_limit_of_tokens_can_be_asked_for_and_is_in_the_plan(copy: Path) -> None:
    said = json.loads((copy / "preprocessor_config.json").read_text())
    said["size"] = {"shortest_edge": 784, "longest_edge": 28 * 28 * 400}
    said = {key: value for key, value in said.items() if key not in ("min_pixels", "max_pixels")}
    (copy / "preprocessor_config.json").write_text(json.dumps(said))
    usual, native = (Engine.load(copy, device="cpu", **how) for how in ({}, {"tokens_per_frame": "native"}))
    assert usual.plan(memory="64MiB")["native_tokens_per_frame"] == native.spec.tokens_per_frame == 400
    assert usual.spec.tokens_per_frame == 196
    large = np.zeros((600, 900, 3), np.uint8)
    sizes = [len(engine.model.encode(large, 0.0, 0.0, 0).tokens) for engine in (usual, native)]
    assert 150 < sizes[0] <= 196 and 300 < sizes[1] <= 400


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(dtype="fp8"), "dtype='fp8': expected fp32, fp16 or bf16"),
        (dict(quantization="int2"), "quantization='int2': expected None, 'int4' or 'int8'"),
        (dict(tokens_per_frame=0), "tokens_per_frame=0: expected 1 or more"),
        (dict(variant="q4"), "variant='q4': .* has no variants"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_that_make_no_sense_are_refused(
    checkpoint: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Engine.load(checkpoint, device="cpu", **options)


def test_options_of_the_other_layout_are_refused() -> None:
    with pytest.raises(ValueError, match="dtype: mosaic-tiny is in the ONNX layout"):
        Engine.load("mosaic-tiny", dtype="fp16")


def test_without_torch_the_extra_is_named_and_the_package_still_imports(checkpoint: Path) -> None:
    script = f"""
import sys
sys.modules["torch"] = None
import mosaic_edge
try:
    mosaic_edge.Engine.load({str(checkpoint)!r})
except mosaic_edge.ModelError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("pip install 'mosaic_edge[hf]'")
    assert "torch" in done.stdout


def test_importing_the_package_and_a_session_on_onnx_bring_no_torch_along() -> None:
    script = """
import sys, mosaic_edge
mosaic_edge.Engine.load("mosaic-tiny").session(memory="1MiB").close()
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def answer(engine: Engine) -> np.ndarray:
    with engine.session(memory="8MiB", exact="fp32", policy="full", kernel_threads=1) as session:
        for i in range(5):
            session.append(picture(i), float(i))
        return session.ask("what?", sampling=SamplingParams(max_tokens=2)).logits


def closeness(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1])


@pytest.mark.parametrize(("how", "least"), [("int8", 0.999), ("int4", 0.8)])
def test_quantised_weights_answer_nearly_as_the_whole_ones(checkpoint: Path, how: str, least: float) -> None:
    whole = answer(Engine.load(checkpoint, device="cpu"))
    rounded = answer(Engine.load(checkpoint, device="cpu", quantization=how))
    assert least < closeness(whole, rounded) < 1 - 1e-7


@pytest.mark.parametrize(("dtype", "least"), [("bf16", 0.98), ("fp16", 0.999)])
def test_half_precision_answers_nearly_as_single(checkpoint: Path, dtype: str, least: float) -> None:
    half = Engine.load(checkpoint, device="cpu", dtype=dtype)
    assert least < closeness(answer(Engine.load(checkpoint, device="cpu")), answer(half)) < 1 - 1e-9


def test_a_shard_list_that_points_nowhere_else_is_read_whole(copy: Path) -> None:
    shard(copy)
    check_weights(copy, allow_pickle=False)


def test_an_adapter_alone_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    assert "adapters are not loaded; merge it (a LoRA) into its model" in refused(tmp_path)


def test_what_a_mac_lays_beside_the_weights_is_no_weight(copy: Path) -> None:
    (copy / "._model.safetensors").write_bytes(b"\0\5\x16\7Mac OS X")
    assert Engine.load(copy, device="cpu").spec.layers == 3


@pytest.mark.parametrize(("kind", "has"), [("gemma3", "sliding-window"), ("qwen3_5", "linear-attention")])
def test_families_are_refused_by_what_they_have_before_a_weight_is_read(
    copy: Path, kind: str, has: str
) -> None:
    change_config(copy, lambda config: config.update(model_type=kind))
    (copy / "model.safetensors").write_bytes(b"")
    assert f"model_type={kind!r} has {has} layers" in refused(copy)


def test_layers_of_another_kind_are_refused_before_a_weight_is_read(copy: Path) -> None:
    kinds = ["full_attention", "linear_attention", "conv"]
    change_config(copy, lambda config: config["text_config"].update(layer_types=kinds))
    (copy / "model.safetensors").write_bytes(b"")
    assert "its decoder has layers of type conv, linear_attention; the memory attends" in refused(copy)


@pytest.mark.parametrize("section", ["", "text_config"])
def test_a_quantised_checkpoint_names_the_package_that_reads_it_before_a_weight_is_read(
    copy: Path, section: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mosaic_edge.models.hf.quantised.find_spec", lambda module: None)
    said = {"quantization_config": {"quant_method": "compressed-tensors"}}
    change_config(copy, lambda config: (config[section] if section else config).update(said))
    (copy / "model.safetensors").write_bytes(b"")
    text = refused(copy)
    assert "quantised (compressed-tensors), which needs compressed-tensors: pip install" in text
    assert "mosaic_edge[quantized]" in text


def test_a_model_without_a_head_is_named(checkpoint: Path) -> None:
    whole = transformers.AutoModelForImageTextToText.from_pretrained(checkpoint)
    processor = type("Processor", (), {"image_processor": 1, "tokenizer": tokenizer()})()
    processor.image_processor = transformers.AutoImageProcessor.from_pretrained(checkpoint)
    with pytest.raises(ModelError, match="Qwen2_5_VLModel has no head: load it with AutoModelForImageText"):
        mosaic_edge.hf.wrap(whole.model, processor)


THINKING_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'video' %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def test_a_checkpoint_with_a_template_that_opens_a_thought_thinks(tmp_path: Path) -> None:
    folder = write_checkpoint("qwen3_vl", tmp_path, THINKING_CHAT)
    engine = Engine.load(folder, device="cpu", threads=1, tokens_per_frame=16)
    assert engine.spec.thinking == Thinking("<think>", "</think>", opened=True)
    assert engine.spec.template.endswith("<|im_start|>assistant\n<think>\n")
    with engine.session(memory="16MiB") as session:
        session.append(picture(0), 0.0)
        reply = session.ask("what?", sampling=SamplingParams(max_tokens=5))
    assert (reply.text, reply.finish) == ("", "length")  # of random weights, which close nothing
    assert reply.thinking
