"""Sizes are byte strings, errors name the knob, and the settings reach the core by its own names."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, get_type_hints

import numpy as np
import pytest

from mosaic_edge import Engine
from mosaic_edge.config import SessionConfig, SessionSettings, core_model, format_bytes, parse_bytes
from numpy_vlm import NumpyVlm


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64MiB", 64 << 20),
        ("1.5 GiB", 3 << 29),
        ("800KB", 800_000),
        (" 7kib ", 7 << 10),
        ("123", 123),
        (9, 9),
        ("5 b", 5),
    ],
)
def test_sizes_are_read_in_both_kinds_of_units(text: int | str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "MiB", "-1MiB", "0", 0, -5, "1e3", "12 parsecs", "64 MiB MiB", True, 1.5, None]
)
def test_what_is_no_size_is_refused_by_the_name_of_its_knob(text: object) -> None:
    with pytest.raises(ValueError, match=r"^disk="):
        parse_bytes(text, "disk")  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["99999999999999999999", "0KiB", str(1 << 50)])
def test_a_size_that_is_refused_is_shown_as_it_was_given(text: str) -> None:
    with pytest.raises(ValueError, match=f"memory='{text}': expected"):
        parse_bytes(text)


@pytest.mark.parametrize("count", [-1, 1 << 31, 10**20, True, 1.0, "7"])
def test_what_is_no_count_is_refused_with_the_counts_there_are(count: object) -> None:
    with pytest.raises(ValueError, match=r"^window_frames=.*: expected a whole number, 0 to 2147483647$"):
        SessionConfig(window_frames=count)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 << 19, "1.5 MiB"), (5 << 40, "5120.0 GiB")],
)
def test_bytes_are_shown_with_one_decimal(size: int, text: str) -> None:
    assert format_bytes(size) == text


def test_full_packs_nothing_unless_told_edge_packs_records_and_the_others_pack_to_int4() -> None:
    engine = Engine(NumpyVlm())

    def coldest(**settings: Any) -> str:
        return str(engine.plan(memory="4MiB", **settings)["tiers"][-1]["codec"])

    assert coldest(policy="full") == "fp16"
    assert coldest(policy="full", packed="int8") == "int8"
    assert coldest() == "k5v3"
    assert coldest(packed="k4v4") == "k4v4"
    assert coldest(policy_settings={"unit": "summaries"}) == "int4"
    assert all(
        coldest(policy=name) == "int4" for name in ("mosaic", "rekv", "mukv", "infinipot-v", "uniform")
    )


@pytest.mark.parametrize("unit", ["tokens", "summaries"])
def test_every_tier_of_a_plan_has_its_medium_the_disk_last(unit: str) -> None:
    tiers = Engine(NumpyVlm()).plan(memory="4MiB", disk="64MiB", policy_settings={"unit": unit})["tiers"]
    assert [tier["medium"] for tier in tiers] == ["device"] * (len(tiers) - 1) + ["disk"]


def test_no_disk_is_no_disk_and_a_quota_is_bytes() -> None:
    spec = NumpyVlm().spec
    assert SessionConfig().core_memory(spec, 0)["disk_bytes"] == 0
    assert SessionConfig(disk="2GiB").core_memory(spec, 3)["disk_bytes"] == 2 << 30
    assert SessionConfig(disk="2GiB").core_memory(spec, 3)["prefix_tokens"] == 3


def test_policy_settings_become_numbers() -> None:
    assert SessionConfig(policy_settings={"visual": True, "tau": 0.5}).core_settings() == {
        "visual": 1.0,
        "tau": 0.5,
    }


def test_what_a_card_chooses_yields_to_the_session_and_goes_with_its_unit() -> None:
    card: dict[str, dict[str, float | str]] = {"edge": {"unit": "tokens", "most_tokens": 64, "listen": 8}}
    spec = replace(NumpyVlm().spec, policy_settings=card)

    def chosen(**settings: float | str) -> dict[str, float | str]:
        return SessionConfig(policy_settings=settings).core_settings(spec)

    assert chosen() == {"unit": "tokens", "most_tokens": 64.0, "listen": 8.0}
    assert chosen(listen=4) == {"unit": "tokens", "most_tokens": 64.0, "listen": 4.0}
    assert chosen(unit="tokens", listen=4) == {"unit": "tokens", "most_tokens": 64.0, "listen": 4.0}
    assert chosen(unit="summaries") == {"unit": "summaries"}


def test_a_model_without_mrope_has_no_sections() -> None:
    model = core_model(NumpyVlm().spec)
    assert model["rope"]["sections"] == []
    assert (model["q_heads"], model["kv_heads"], model["frame_tokens"]) == (4, 2, 4)


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("window_frames", "3"),
        ("window_frames", 3.5),
        ("clusters", 1 << 31),
        ("kernel_threads", -1),
        ("prefetch", "no"),
        ("exact_share", "a"),
        ("summaries", None),
        ("policy_settings", None),
        ("policy_settings", {1: 1}),
        ("policy_settings", {"frames": None}),
        ("policy_settings", {"frames": 10**5000}),
        ("window_frames", 10**5000),
        ("skip_alike", 10**5000),
        ("summaries", np.array([True, False])),
        ("exact", "fp16\0"),
        ("policy", "\udcff"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isprintable() else type(value).__name__,
)
def test_a_field_of_the_wrong_kind_is_refused_by_name(knob: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{knob}"):
        SessionConfig(**{knob: value})  # type: ignore[arg-type]


def test_no_size_is_beyond_what_the_core_counts() -> None:
    for size in ("99999999999GiB", 10**5000):
        with pytest.raises(ValueError, match=r"memory=.*less than"):
            parse_bytes(size)


def test_the_keywords_an_editor_completes_are_the_fields_of_the_config() -> None:
    from mosaic_edge._core import Policy

    names = {"Policy": Policy}
    config = get_type_hints(SessionConfig, localns=names)
    assert get_type_hints(SessionSettings, localns=names) == config
    assert list(SessionSettings.__annotations__) == [field.name for field in fields(SessionConfig)]
    assert SessionSettings.__required_keys__ == frozenset()


@pytest.mark.parametrize(
    ("memory", "asked", "threads"),
    [("2MiB", 0, 1), ("31MiB", 0, 1), ("33MiB", 0, 2), ("64MiB", 0, 4), ("1GiB", 0, 6), ("2MiB", 5, 5)],
)
def test_a_small_cap_pays_for_few_kernel_threads(
    memory: str, asked: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    small, large = Engine(NumpyVlm()).spec, replace(Engine(NumpyVlm()).spec, layers=24, kv_heads=8)
    assert small.kv_bytes_per_token <= 4096 < large.kv_bytes_per_token
    config = SessionConfig(memory=memory, kernel_threads=asked)
    assert config.core_threads(large) == threads
    assert config.core_threads(small) == (asked or 1)


def test_threads_that_a_cap_cannot_hold_are_named_by_the_knob_of_the_memorys_kernels() -> None:
    with pytest.raises(MemoryError, match=r" kernel_threads= or branch_tokens="):
        Engine(NumpyVlm()).session(memory="300KiB", kernel_threads=16)
