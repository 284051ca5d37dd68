"""Checkpoints made to do harm: every fault is a ModelError that names it, no template runs without end."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mosaic_edge
from mosaic_edge import ModelError
from mosaic_edge.engine import Engine
from mosaic_edge.models import sandbox, tokenizer
from mosaic_edge.models.prompt import Prompt, prompt_from

FLOAT = Path(mosaic_edge.__file__).parent / "models" / "tiny" / "float"
VIDEO_FIRST = (
    "{% for m in messages %}{% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}{{ c.text }}"
    "{% endif %}{% endfor %}{% endfor %}"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(
        tokenizer, "limited", lambda *_: None
    )  # a child process a load; test_directory.py has it
    return Path(shutil.copytree(FLOAT, tmp_path / "model"))


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as error:
        Engine.load(folder, device="cpu")
    text = str(error.value)
    assert "\n" not in text
    return text


def change(folder: Path, name: str, edit: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((folder / name).read_text())
    edit(document)
    (folder / name).write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("text_config", "num_hidden_layers", 10**9, "a whole number from 1 to 4096"),
        ("text_config", "num_hidden_layers", 4000, "the weight files hold"),
        ("vision_config", "num_hidden_layers", 4096, "the weight files hold"),
        ("vision_config", "num_hidden_layers", 0, "a whole number from 1 to 4096"),
        ("text_config", "vocab_size", 50_000_000, "makes a tensor of 6400000000 numbers"),
        ("text_config", "intermediate_size", 4_000_000, "makes a tensor of"),
        ("vision_config", "image_size", 16_000, "makes a tensor of"),
        ("vision_config", "num_attention_heads", -1, "a whole number from 1"),
        (
            "text_config",
            "rope_parameters",
            {"rope_theta": float("nan")},
            "rope_theta=nan: expected a number over 0",
        ),
    ],
)
def test_sizes_are_checked_against_the_weights_before_anything_is_built(
    folder: Path, section: str, key: str, value: object, said: str
) -> None:
    change(folder, "config.json", lambda config: config[section].update({key: value}))
    text = refused(folder)
    assert text.startswith(f"{folder / 'config.json'}: {section}.{key}") and said in text


@pytest.mark.parametrize(
    ("section", "said", "lacking"),
    [
        ("vision_config", {"num_channels": 1_000_000}, "patch_embedding.weight"),
        ("text_config", {"num_attention_heads": 65536, "head_dim": 1024}, "q_proj.weight"),
    ],
)
def test_a_weight_that_the_files_lack_is_not_made_up_at_the_size_that_is_said(
    folder: Path, section: str, said: dict[str, int], lacking: str
) -> None:
    change(folder, "config.json", lambda config: config[section].update(said))
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.endswith(lacking)}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    text = refused(folder)
    assert text.startswith(f"{folder / 'config.json'}: makes a model of ") and lacking in text


@pytest.mark.parametrize("section", [None, "text_config", "vision_config"])
@pytest.mark.parametrize("key", ["patch_size", "image_size", "depth", "hidden_size", "vocab_size"])
@pytest.mark.parametrize("value", [0, "x", {}, [1, 2, 3]])
def test_a_size_is_a_size_in_whatever_section_it_stands(
    folder: Path, section: str | None, key: str, value: object
) -> None:
    change(
        folder, "config.json", lambda config: (config[section] if section else config).update({key: value})
    )
    place = f"{section}.{key}" if section else key
    assert refused(folder).startswith(f"{folder / 'config.json'}: {place}={value!r}: expected a whole number")


@pytest.mark.parametrize(
    "text", ["", '{"do_sample": tr', "\xff", "[1]", '{"eos_token_id": -1}', '{"temperature": "hot"}']
)
def test_a_generation_config_that_cannot_be_read_is_not_passed_over(folder: Path, text: str) -> None:
    (folder / "generation_config.json").write_text(text, encoding="latin-1")
    assert refused(folder).startswith(f"{folder / 'generation_config.json'}: ")


def test_attention_is_ours_whatever_the_config_says(folder: Path) -> None:
    evil = {"attn_implementation": "kernels-community/evil", "_attn_implementation": "evil/evil"}
    change(folder, "config.json", lambda config: (config.update(evil), config["text_config"].update(evil)))
    Engine.load(folder, device="cpu")  # a fetch would fail: there is no such kernel, and no package for it


@pytest.mark.parametrize(
    "name", ["../other/model.safetensors", "/etc/passwd", "fifo.safetensors", "out.safetensors"]
)
def test_shards_lie_in_the_directory_and_are_plain_files(folder: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(folder, tmp_path / "other")
    (folder / "model.safetensors").unlink()
    if name.startswith("fifo"):
        os.mkfifo(folder / name)
    if name.startswith("out"):
        (folder / name).symlink_to(tmp_path / "other" / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    text = refused(folder)
    assert "inside the model's directory" in text or "not a plain file" in text or "leads to" in text


@pytest.mark.parametrize("found", [[1], {"a": 1, "b": "x"}, "x", 3])
def test_an_index_of_shards_maps_names_to_names(folder: Path, found: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": found}))
    assert "weight_map=" in refused(folder)


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 100_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b"[1]",
        *(b'{"a": {"data_offsets": [0, %s]}}' % end for end in (b"Infinity", b"1e400", b"-1e400", b"NaN")),
    ],
)
def test_a_header_that_is_nested_too_deep_or_counts_to_no_number_is_refused(
    folder: Path, header: bytes
) -> None:
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert "header cannot be read" in refused(folder)


@pytest.mark.parametrize("kind", ["fifo", "folder", "dangling", "device"])
def test_weights_are_a_plain_file(folder: Path, kind: str) -> None:
    file = folder / "model.safetensors"
    file.unlink()
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to("/no/such/file" if kind == "dangling" else "/dev/zero")
    assert str(file) in refused(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_weights_that_are_not_finite_or_make_what_is_not_are_refused(folder: Path, value: float) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: np.full_like(w, value) for k, w in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    assert "NaN or infinity" in refused(folder)


def test_an_adapter_is_refused_instead_of_the_model_it_names(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "/elsewhere", "peft_type": "LORA"}'
    )
    assert "adapter_config.json: adapters are not loaded" in refused(folder)


def test_an_image_processor_that_does_not_fit_is_named_when_the_model_is_loaded(folder: Path) -> None:
    change(folder, "mosaic.json", lambda said: said.pop("image_size"))  # its processor is used then
    change(folder, "preprocessor_config.json", lambda said: said.update(size={"longest_edge": 28}))
    assert "its parts do not fit together" in refused(folder)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "takes too long"),
        ("{{ 'a' * (10 ** 7) }}", "expected at most 65536"),
        ("{{ 'a' | center(5000000000) }}", "chat template"),
        (VIDEO_FIRST + "ball " * 30_000, "expected at most 65536"),
    ],
    ids=["loops", "multiplies", "pads", "long"],
)
def test_a_template_without_end_is_refused(
    folder: Path, template: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "CPU_SECONDS", 2)
    monkeypatch.setattr(sandbox, "MEMORY_BYTES", 3 << 30)
    (folder / "mosaic.json").unlink()
    (folder / "chat_template.jinja").write_text(template)
    text = refused(folder)
    assert "its chat template" in text and said in text


@pytest.mark.parametrize("place", ["chat_template.jinja", "chat_template.json"])
def test_template_files_that_cannot_be_read_are_named(folder: Path, place: str) -> None:
    (folder / "mosaic.json").unlink()
    for data in (b"\xff\xfe\x00", b"[1]" if place.endswith("json") else b"\x80"):
        (folder / place).write_bytes(data)
        assert place in refused(folder)


MESSAGES = "{%- for m in messages[1:] %} A {{ m['content'][0]['text'] }}{% endfor %}"
ASKED = "{{ messages[0]['content'][-1]['text'] }}"
SHOWN = "{% for c in messages[0]['content'] if c['type'] == 'image' %}<image>, {% endfor %}"


def test_braces_of_a_template_stand_in_the_prompt_as_they_are() -> None:
    written = "SYS {{ '{json} {{x}}' }} " + SHOWN + ASKED + " {end}" + MESSAGES
    made = prompt_from(written, {}, "<image>", Prompt("", "{question}"))
    assert made.prefix == "SYS {json} {{x}} "
    assert made.between == ", "  # of two frames
    assert made.template.replace("{question}", "why?") == ", why? {end}"
    assert "{question}" in made.follow_up and "{{" not in made.follow_up


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ raise_exception('roles must alternate') }}", "cannot be rendered .roles must alternate"),
        (f"no video {ASKED}", "writes <image> 0 times"),
        (f"<image> {ASKED} <image> <image>", "writes <image> 3 times"),
        ("<image> <image> no question", "the question 0 times, expected 2 and 1"),
    ],
)
def test_a_template_that_cannot_be_used_is_named_in_a_warning(text: str, said: str) -> None:
    published = Prompt("before ", "{question}")
    with pytest.warns(UserWarning, match=f"chat template .*{said}.*published prompt"):
        assert prompt_from(text, {}, "<image>", published) == published
