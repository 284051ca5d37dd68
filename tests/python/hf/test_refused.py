"""What a config says that the memory has no part for, or that cannot be read here: refused by it alone."""

from __future__ import annotations

from typing import Any

import pytest

from mosaic_edge import ModelError
from mosaic_edge.cli.doctor import examine
from mosaic_edge.models.hf.families import family_of
from mosaic_edge.models.hf.quantised import FORMATS, check_quantised, what_lacks
from mosaic_edge.models.hf.refused import HAS, check_layers

LAYERS = 4


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"layer_types": ["sliding_attention", "full_attention"] * 2}, "sliding-window layers"),  # Gemma 3
        ({"sliding_window": 512, "sliding_window_pattern": 6}, "sliding-window layers"),  # its older configs
        ({"sliding_window": 4096}, "sliding-window layers"),  # Mistral 7B 0.1
        ({"layer_types": ["linear_attention"] * 3 + ["full_attention"]}, "of type linear_attention"),
        ({"full_attention_interval": 4, "linear_num_key_heads": 16}, "linear-attention layers"),  # Qwen3-Next
        ({"layer_types": ["conv", "conv", "full_attention", "conv"]}, "of type conv"),  # LFM2
        ({"full_attn_idxs": [2]}, "convolution layers (full_attn_idxs)"),  # its older configs
        ({"layers_block_type": ["mamba", "attention"] * 2}, "a state (layers_block_type)"),
        ({"hybrid_override_pattern": "M-M*"}, "a state (hybrid_override_pattern)"),
        ({"attn_layer_indices": [1, 3]}, "do not attend (attn_layer_indices)"),
        ({"attention_chunk_size": 8192}, "in chunks"),  # Llama 4
        ({"cross_attention_layers": [3]}, "cross-attention layers"),  # Llama 3.2 Vision
        ({"num_kv_shared_layers": 2}, "share keys and values"),  # Gemma 3n
        ({"kv_lora_rank": 512}, "compressed form"),  # DeepSeek
        ({"use_bidirectional_attention": True}, "both directions"),  # PaliGemma
        ({"attn_logit_softcapping": 50.0}, "soft caps"),  # Gemma 2
        ({"no_rope_layers": [1, 1, 1, 0]}, "without rotation (no_rope_layers)"),  # SmolLM3
        ({"no_rope_layer_interval": 4}, "without rotation (no_rope_layer_interval)"),
    ],
)
def test_layers_that_the_memory_has_no_part_for_are_named(said: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError) as error:
        check_layers("mine", {"num_hidden_layers": LAYERS, **said})
    assert str(error.value).startswith("mine: its decoder has ")
    assert named in str(error.value)


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"layer_types": ["full_attention"] * LAYERS, "sliding_window": 32768, "max_window_layers": 2},
        {"sliding_window": 32768, "use_sliding_window": False, "max_window_layers": 21},  # Qwen2.5
        {"sliding_window": None},
        {"full_attn_idxs": [0, 1, 2, 3]},
        {"no_rope_layers": [1, 1, 1, 1], "no_rope_layer_interval": 5},
        {"layers_block_type": ["attention"] * LAYERS},
        {"attn_logit_softcapping": None, "attention_chunk_size": None, "use_bidirectional_attention": False},
    ],
)
def test_layers_that_attend_to_everything_pass(said: dict[str, Any]) -> None:
    check_layers("mine", {"num_hidden_layers": LAYERS, **said})


@pytest.mark.parametrize("kind", HAS)
def test_families_that_users_try_are_refused_by_what_they_have(kind: str) -> None:
    with pytest.raises(ModelError, match=f"model_type='{kind}' has .*, which the memory cannot stand in for"):
        family_of(kind, "mine")


def lacking(monkeypatch: pytest.MonkeyPatch, *installed: str) -> None:
    monkeypatch.setattr(
        "mosaic_edge.models.hf.quantised.find_spec", lambda module: True if module in installed else None
    )


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"quant_method": "awq", "bits": 4}, "gptqmodel, accelerate: pip install gptqmodel accelerate"),
        ({"quant_method": "gptq", "bits": 4}, "gptqmodel, optimum: pip install gptqmodel optimum"),
        ({"quant_method": "bitsandbytes"}, "bitsandbytes, accelerate: pip install 'mosaic_edge[quantized]'"),
        ({"load_in_4bit": True}, "quantised (bitsandbytes), which needs bitsandbytes"),
        ({"quant_method": "fp8"}, "accelerate: pip install 'mosaic_edge[quantized]'"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors: pip install 'mosaic_edge[quantized]'"),
        ({"quant_method": "fbgemm_fp8"}, "a GPU: there is no way to run it on a CPU"),
        ({"quant_method": "vptq"}, "a GPU: there is no way"),
        ({"quant_method": "mine"}, "a format that is not known here; known are awq, gptq"),
        ({"bits": 4}, "quantised (no quant_method), which needs a format that is not known"),
    ],
)
def test_quantised_weights_name_what_they_need(
    said: dict[str, Any], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking(monkeypatch)
    with pytest.raises(ModelError) as error:
        check_quantised("mine", said, gpu=False)
    assert str(error.value).startswith("mine: its weights are quantised (")
    assert named in str(error.value) and "\n" not in str(error.value)


def test_only_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lacking(monkeypatch, "accelerate")
    assert what_lacks("bitsandbytes", False) == "bitsandbytes: pip install 'mosaic_edge[quantized]'"
    assert what_lacks("awq", True) == "gptqmodel: pip install gptqmodel"
    assert what_lacks("fp8", False) is None
    lacking(monkeypatch, "fbgemm_gpu", "accelerate")
    assert what_lacks("fbgemm_fp8", True) is None
    check_quantised("mine", {}, gpu=False)


UNPACKED = "unpacked to the type it was made of"


def test_doctor_says_of_every_format_whether_it_can_be_read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking(monkeypatch, "compressed_tensors", "accelerate")
    found = {one["name"]: one for one in examine()["quantised"]}
    assert found.keys() == FORMATS.keys()
    assert found["compressed-tensors"] == {"name": "compressed-tensors", "ok": True, "detail": UNPACKED}
    assert found["gptq"]["detail"] == "needs gptqmodel, optimum: pip install gptqmodel optimum"
    assert found["fp8"]["ok"]
