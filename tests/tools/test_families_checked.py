"""tools/bench/families_checked.py: a row a family, every exception with its reason, what differs in bold."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from published import SOURCES

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "results" / "published.md"

OWN = (
    "llava_next_video", "ovis2", "video_llama_3", "perception_lm", "ONNX llava", "ONNX qwen2.5-vl",
    "ONNX qwen3-vl",
)  # fmt: skip


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "tools" / "bench"))
    import families_checked

    return families_checked


def said(tool: Any, **changes: dict[str, Any]) -> dict[str, Any]:
    rows = [
        {"what": name, "equal": True, "detail": "8 tokens", "difference": None} | changes.get(name, {})
        for name in tool.COLUMNS
    ]
    return {"rows": rows, "equal": all(row["equal"] for row in rows)}


def test_a_family_is_a_row_with_what_is_equal_and_what_is_not(tool: Any) -> None:
    changed = said(
        tool,
        prompt={"equal": False, "detail": "number 3 of 9 ids is 1, the script has 2"},
        logits={"difference": 2e-6},
        pixels={"equal": None},
    )
    line = tool.Family("smolvlm", changed).line()
    cells = [part.strip() for part in line.strip("|").split("|")]
    assert cells[:4] == ["smolvlm", "yes", "**number 3 of 9 ids is 1, the script has 2**", "-"]
    assert cells[4:9] == ["=", "=", "=", "= (2e-06)", "= (8)"]
    assert cells[9] == tool.INTRO
    refused = tool.Family("mine", {"error": "no config.json"}).line()
    assert "no: no config.json" in refused and line.count("|") == refused.count("|")


def test_what_a_folder_keeps_is_not_done_again(tool: Any, tmp_path: Path) -> None:
    names = [*SOURCES, *(name.replace(" ", "_") for name in OWN)]
    for name in names:
        (tmp_path / f"{name}.json").write_text(json.dumps(said(tool)))
    (tmp_path / "root").mkdir()
    found = list(tool.checks(tmp_path / "root", tmp_path, 8))
    assert [family.name.replace(" ", "_") for family in found] == names
    text = tool.page(found, 8)
    assert text.count("\n|") == 2 + len(names) and "8 greedy steps" in text


def test_the_committed_page_has_every_family_and_nothing_that_differs(tool: Any) -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|", text, re.M)[1:]
    assert [name for name, _ in rows] == [*SOURCES, *OWN]
    assert {loads for _, loads in rows} == {"yes"}
    assert "**" not in text
    assert set(tool.EXCEPTIONS) <= {name for name, _ in rows}
