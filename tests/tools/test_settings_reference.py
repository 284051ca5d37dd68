"""docs/settings.md says what the code says."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from mosaic_edge import SessionConfig, _core

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import settings_reference

    return settings_reference


def test_the_page_is_what_the_script_makes_of_the_code(reference: Any) -> None:
    assert reference.PAGE.read_text(encoding="utf-8") == reference.page(), (
        "run python tools/settings_reference.py"
    )


def test_every_field_and_every_policy_with_settings_is_on_the_page(reference: Any) -> None:
    page = reference.PAGE.read_text(encoding="utf-8")
    for field in fields(SessionConfig):
        assert f"| `{field.name}` |" in page
    for policy in _core.policies():
        assert (f"### {policy}\n" in page) == bool(reference.names_of(policy, {})), policy


def test_what_the_page_says_a_setting_takes_the_core_takes_and_refuses_beyond(reference: Any) -> None:
    for policy, chosen, said in reference.LISTS:
        for name in said:
            shown = reference.values_of(policy, chosen, name)
            if words := re.findall(r"`(.*?)`", shown):
                taken, beyond = words, ["none of these"]
            else:
                low, high = (float(n.replace(",", "")) for n in re.findall(r"[\d.,]*\d", shown))
                taken, beyond = [low, high], [low - 1, high + 1]
            # The least and most of a number may need another cap: refused by name is what counts.
            assert not any(f"{name}=" in reference.refusal(policy, {**chosen, name: v}) for v in taken)
            assert all(f"{name}=" in reference.refusal(policy, {**chosen, name: v}) for v in beyond)


def test_defaults_that_the_page_names_stand_in_the_policies(reference: Any) -> None:
    """Of numbers and flags whose member is called as the setting is."""
    files = sorted((ROOT / "cpp" / "policy").glob("*.[ch]*"))
    sources = "\n".join(file.read_text(encoding="utf-8") for file in files)
    values = {"true": "1", "false": "0"}
    seen = 0
    for _, _, said in reference.LISTS:
        for name, (default, _) in said.items():
            found = re.findall(
                rf"(?:^  (?:int|float|double|bool) |\.){name} = (true|false|[\d.]+)f?[;,}}]", sources, re.M
            )
            if found and re.fullmatch(r"[\d.]+", default):
                assert float(default) in {float(values.get(value, value)) for value in found}, name
                seen += 1
    assert seen >= 15


def test_a_policy_whose_settings_are_not_explained_is_an_error(reference: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(reference, "LISTS", reference.LISTS[:-1])
    with pytest.raises(ValueError, match="do not have: mukv"):
        reference.page()


def test_a_setting_of_which_nothing_is_said_is_an_error(reference: Any) -> None:
    with pytest.raises(ValueError, match="the core has score, frames"):
        list(reference.policy_rows("rekv", {}, {"score": reference.Said("dot", "how")}))


def test_a_field_of_which_nothing_is_said_is_an_error(reference: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(reference, "docs_of", lambda kind, module: {"memory": "the cap"})
    with pytest.raises(ValueError, match=r"SessionConfig.policy: no docstring"):
        list(reference.field_rows(SessionConfig, reference.config))
