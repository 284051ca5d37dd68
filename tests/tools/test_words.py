"""The word check finds what it must, in trees that are wrong on purpose, and nothing in this one."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "check_words.py"

# Comments and strings use every word as English does; a name may only sound like one.
GOOD = {
    "cpp/backend/ops.h": "// It may reach a block, in place.\nconst uint16_t* places;\nfloat* block_k;\n",
    "cpp/store/window.h": 'const char* a = "first place";\nstd::optional<Scene> b(std::in_place);\n',
    "cpp/policy/full.cc": "#include <block/place.h>\nAdmitBatch batch;\nbool replaces, blocked;\n",
    "cpp/codec/int4.h": "const std::byte* panel;\n/* a block,\n   of old */\n",
    "python/mosaic_edge/evidence.py": "# where the moment has its place\nmoments: list[float] = []\n",
}

# What is wrong: a file, its text, and what begins the line that must name it.
BAD = [
    ("cpp/store/window.h", "\nint place(int frame);\n", ":2: 'place': place is row and column of a token"),
    ("cpp/store/window.h", "int firstPlaces_;\n", ":1: 'firstPlaces_': place is"),
    ("cpp/codec/int4.h", "/* a\n b */ std::byte* block;\n", ":2: 'block': block is the tokens of one"),
    ("cpp/policy/full.cc", "struct BlockView {};\n", ":1: 'BlockView': block is"),
    ("cpp/backend/ops.h", "float reach;\n", ":1: 'reach': reach is no thing"),
    ("cpp/backend/ops.h", "Moment m;\n", ":1: 'Moment': moment is a time of the stream"),
    ("cpp/store/account.h", "int64_t panel;\n", ":1: 'panel': panel is one head's keys"),
    ("cpp/store/account.h", "int64_t batch_radius;\n", ":1: 'batch_radius': batch is the frames"),
    ("cpp/store/account.h", "// tokens that were summarised\n", ":1: 'summarised' is gone; collapse"),
    ("cpp/DESIGN.md", "# Design\nThe policy relieves it.\n", ":2: 'relieves' is gone; evict"),
    ("python/mosaic_edge/session.py", "x = stats['summarised']\n", ":1: 'summarised' is gone; collapse"),
    ("python/mosaic_edge/session.py", "place = 3  # of the frame\n", ":1: 'place': place is row and column"),
    ("python/mosaic_edge/models/vlm.py", "moment: int\n", ":1: 'moment': moment is a time"),
]


def check(root: Path) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOL.parent))  # the folder it imports from, as its process has it
        spec = importlib.util.spec_from_file_location("check_words", TOOL)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module.check(root)


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_the_words_of_this_repository_have_one_sense_each() -> None:
    assert check(ROOT) == []


def test_comments_strings_and_names_that_only_sound_like_a_word_are_no_fault(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    assert check(tmp_path) == []


@pytest.mark.parametrize(("file", "text", "said"), BAD)
def test_a_planted_word_is_found_where_it_stands(tmp_path: Path, file: str, text: str, said: str) -> None:
    write(tmp_path, GOOD | {file: text})
    faults = check(tmp_path)
    assert faults and all(fault.startswith(f"{file}:") for fault in faults)
    assert faults[0].startswith(file + said)


def test_the_process_prints_a_line_per_fault_and_fails(tmp_path: Path) -> None:
    write(tmp_path, {"cpp/store/window.h": "int place, block;\n"})
    done = subprocess.run([sys.executable, str(TOOL), str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, len(done.stdout.splitlines())) == (1, 2)
    done = subprocess.run([sys.executable, str(TOOL), str(tmp_path / "cpp")], capture_output=True, text=True)
    assert done.returncode == 1 and "expected the repository's root" in done.stderr


def test_every_word_of_the_check_stands_in_the_glossary() -> None:
    glossary = (ROOT / "cpp" / "DESIGN.md").read_text().split("## Words")[1]
    for word in ("place", "block", "batch", "panel", "radius", "moment"):
        assert f"\n| {word} | " in glossary
