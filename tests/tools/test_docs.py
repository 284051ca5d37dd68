"""What README and docs name exists: files, headings, modules, commands, options; and the first lines run."""

from __future__ import annotations

import ast
import builtins
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from mosaic_edge import cli
from mosaic_edge.session import Session
from videos import MakeVideo

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    {
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "jetson").rglob("*.md"),
        *(ROOT / "python").rglob("*.md"),
        *(ROOT / "tools").rglob("*.md"),
        ROOT / "cpp" / "DESIGN.md",
    }
)
WRITTEN = [page for page in PAGES if "results" not in page.parts]
"""Pages that are written by hand for this state of the code; tables of results name what they ran."""
NAMED = [str(page.relative_to(ROOT)) for page in PAGES]


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)


def anchors(page: Path) -> set[str]:
    """Of headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", read(page), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", read(page), re.S)


def broken_links(page: Path) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(read(page))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=NAMED)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    assert list(broken_links(page)) == []


def test_a_link_or_an_anchor_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Here and there\n[a](page.md) [b](#here-and-there) [c](gone.md) [d](#nowhere) [e](https://x.y/z)\n"
        "`[not](a/link.md)` ![f](gone.png)\n"
    )
    assert list(broken_links(page)) == ["gone.md", "#nowhere", "gone.png"]


@pytest.mark.parametrize("page", PAGES, ids=NAMED)
def test_every_python_block_parses_and_imports_what_there_is(page: Path) -> None:
    for block in blocks(page):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name == "mosaic_edge.hf":
                        pytest.importorskip("transformers")
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                assert [a.name for a in node.names if not hasattr(module, a.name)] == []


def commands() -> dict[str, set[str]]:
    """Options of every command of the command line."""
    group: Any = typer.main.get_command(cli.app)
    return {
        name: {option for parameter in command.params for option in parameter.opts} | {"--help"}
        for name, command in group.commands.items()
    }


def named_commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Command and options of every `mosaic-edge ...` in code spans, blocks and indented lines."""
    spans = re.findall(r"`([^`]*)`", re.sub(r"```.*?```", "", text, flags=re.S))
    lines = [line for line in text.splitlines() if line.startswith("    ")]
    for code in (" ".join(span.split()) for span in [*spans, *lines]):
        code = re.sub(r"'[^']*'|\"[^\"]*\"", "''", code).split(" #")[0]  # what is asked is no option
        for name, rest in re.findall(r"\bmosaic-edge ([a-z]+)\b([^|;&]*)", code):
            yield name, re.findall(r"(?<!\S)--[a-z-]+", rest)


@pytest.mark.parametrize("page", WRITTEN, ids=[str(page.relative_to(ROOT)) for page in WRITTEN])
def test_every_command_that_is_named_has_the_options_it_is_named_with(page: Path) -> None:
    known = commands()
    for name, options in named_commands(read(page)):
        assert name in known, name
        assert [option for option in options if option not in known[name]] == [], name


def test_commands_are_found_in_spans_over_lines_and_in_indented_lines() -> None:
    text = (
        "a `mosaic-edge eval\n  --caps 5% --gone` b\n\n    mosaic-edge run --ask 'is it --this ?'  # --not\n"
    )
    assert list(named_commands(text)) == [("eval", ["--caps", "--gone"]), ("run", ["--ask"])]


@pytest.mark.parametrize("page", WRITTEN, ids=[str(page.relative_to(ROOT)) for page in WRITTEN])
def test_every_file_of_the_project_that_is_named_in_code_exists(page: Path) -> None:
    spans = re.findall(r"`([^`]*)`", re.sub(r"```.*?```", "", read(page), flags=re.S))
    lines = [line for line in read(page).splitlines() if line.startswith("    ")]
    code = " ".join([*spans, *lines])
    named = set(re.findall(r"(?<![\w/.-])(?:tools|jetson|cpp|python/mosaic_edge|\.ci)/[\w./-]*\w", code))
    drafts = {  # CONTRIBUTING's
        "python/mosaic_edge/cli/schemes.py",
        "python/mosaic_edge/sources/folders.py",
        "cpp/codec/bf16.h",
        "cpp/policy/every_other.cc",
    }
    assert sorted(name for name in named - drafts if not (ROOT / name).exists()) == []


ABOUT_CODE = [ROOT / "cpp" / "DESIGN.md", ROOT / "CONTRIBUTING.md"]
SOURCES = [
    path.relative_to(ROOT).as_posix()
    for top in ("cpp", "python", "tests", "tools")
    for path in (ROOT / top).rglob("*.*")
    if path.suffix in {".h", ".cc", ".cu", ".def", ".py"}
]
ELSEWHERE = {"bf16.h", "every_other.cc", "doctest.h"}  # drafts of CONTRIBUTING, a package


def sources_named(name: str) -> list[str]:
    return [path for path in SOURCES if f"/{path}".endswith(f"/{name}")]


def files_and_names_that_are_not_there(text: str) -> list[str]:
    """Of code spans: source files by the end of their path, and `name` of every `file`: `name`, `name`."""
    spans = " ".join(re.findall(r"`([^`\n]*)`", text))
    files = set(re.findall(r"(?<![\w/.*-])[\w/.-]*\w\.(?:h|cc|cu|def|py)\b", spans))
    missing = {name for name in files if name.rpartition("/")[2] not in ELSEWHERE and not sources_named(name)}
    for file, names in re.findall(r"`([\w/]+\.(?:h|cc|py))`: (`\w+`(?:, `\w+`)*)", text):
        code = "".join(read(ROOT / path) for path in sources_named(file))
        missing |= {
            f"{file}: {name}" for name in re.findall(r"\w+", names) if not re.search(rf"\b{name}\b", code)
        }
    return sorted(missing)


@pytest.mark.parametrize("page", ABOUT_CODE, ids=[page.name for page in ABOUT_CODE])
def test_every_source_file_and_name_in_it_that_a_page_about_the_code_gives_is_there(page: Path) -> None:
    assert files_and_names_that_are_not_there(read(page)) == []


def test_a_file_or_a_name_in_it_that_is_gone_is_found() -> None:
    text = (
        '`runtime/plan.cc`: `make_plan`, `nobody` in `gone/plan.cc`, (`#include "store/gone.h"`), `*_gone.cc`'
    )
    assert files_and_names_that_are_not_there(text) == [
        "gone/plan.cc",
        "runtime/plan.cc: nobody",
        "store/gone.h",
    ]


def test_the_first_lines_of_the_readme_run(monkeypatch: Any, make_video: MakeVideo, capsys: Any) -> None:
    """With a file for the camera and a question at hand; the last block to run is the session's."""
    pytest.importorskip("onnxruntime")
    video = make_video(name="video.mp4", times=[i / 2 for i in range(40)])
    monkeypatch.chdir(video.parent)
    asked = iter(["what colour was the ball ?"])
    monkeypatch.setattr(builtins, "input", lambda prompt="": next(asked, ""))
    camera, session = blocks(ROOT / "README.md")[:2]
    assert "/dev/video0" in camera and len(camera.splitlines()) <= 14
    frames, close = [], Session.close
    monkeypatch.setattr(Session, "close", lambda self: (frames.append(self.memory()["frames"]), close(self)))
    exec(compile(camera.replace("/dev/video0", str(video)), "README.md", "exec"), {})
    assert frames == [20]
    monkeypatch.setattr(Session, "close", close)
    exec(compile(session, "README.md", "exec"), {})
    assert "seen" in capsys.readouterr().out
