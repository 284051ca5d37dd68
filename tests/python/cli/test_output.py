"""What is printed is data, whatever it looks like, and what cannot be printed is said on stderr."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import mosaic_edge
from mosaic_edge import cli
from mosaic_edge.cli import doctor
from mosaic_edge.cli.check import show_check
from mosaic_edge.cli.demo import show_demo
from mosaic_edge.cli.output import DataConsole, visible
from mosaic_edge.cli.run import show_run

TINY = Path(mosaic_edge.__file__).parent / "models" / "tiny"
MARKED = [
    "[/b]",
    "[red]",
    "[bold]x[/bold]",
    "a\x1b[2Jb",
    "a\x07\x9bb",
    "[link=http://x]y",
    ":smile:",
    "a\u202eb",
    "\udcff",
]


def printed(show: Any, *arguments: Any) -> str:
    console = DataConsole(width=160)
    console.file = io.StringIO()
    show(*arguments, console)
    text = console.file.getvalue()
    text.encode()
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("text", MARKED)
def test_questions_answers_and_names_are_printed_as_they_are(text: str) -> None:
    memory = {"taken_bytes": 1, "cap_bytes": 2}
    answer = {
        "question": text,
        "answer": text,
        "first_token_ms": 1.0,
        "tokens": 3,
        "finish": "end",
        "evidence": [],
        "truth": text,
        "right": True,
        "seen": (0.0, 1.0),
        "ago": 2.0,
    }
    run = {
        "answers": [answer],
        "memory": memory,
        "frames": 1,
        "reached_seconds": 1.0,
        "frames_per_second": 1.0,
    }
    shown = printed(show_run, run)
    assert shown.count(visible(text)) == 2
    assert not any(c in shown for c in "\x1b\x07\x9b\u202e")
    demo = {
        "video": text,
        "video_kept": True,
        "seconds": 9.0,
        "difficulty": "plain",
        "summary": text,
        "runs": [{"policy": text, "right": 1, "asked": 1, "answers": [answer]}],
    }
    assert printed(show_demo, demo).count(visible(text)) == 6


@pytest.mark.parametrize("text", MARKED)
def test_what_a_directory_says_of_itself_is_printed_as_it_is(text: str) -> None:
    checked = {
        "model": text,
        "layout": "onnx",
        "frames": [1, 2, 3],
        "rows": [{"what": text, "equal": None, "detail": text}],
        "left_out": text,
    }
    examined = doctor.examine() | {"weights": {"ok": False, "detail": f"{text}: no such model directory"}}
    for shown, times in ((printed(show_check, checked), 4), (printed(doctor.show_doctor, examined), 1)):
        assert shown.count(visible(text)) == times
        assert not any(c in shown for c in "\x1b\x07\x9b\u202e")


def test_what_can_be_seen_stays_and_what_acts_is_shown_as_its_escape() -> None:
    assert visible("café 世界 \U0001f600\n\tx") == "café 世界 \U0001f600\n\tx"
    assert visible("\x1b[2J\r\x00\u2028\udc80") == "\\x1b[2J\\r\\x00\\u2028\\udc80"


@pytest.fixture
def marked_model(tmp_path: Path) -> Path:
    """mosaic-tiny whose word for black is [/b], of that name."""
    folder = shutil.copytree(TINY, tmp_path / "model", ignore=shutil.ignore_patterns("float"))
    words = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(words.replace('"black"', '"[/b]"').replace('"red"', '"[red]"'))
    mosaic = json.loads((folder / "mosaic.json").read_text())
    (folder / "mosaic.json").write_text(json.dumps(mosaic | {"name": "[/b]"}))
    return folder


def test_markup_in_a_models_name_or_words_ends_no_command(
    marked_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", "--model", str(marked_model), "--memory", "1MiB"]) == 0
    assert "[/b], policy edge" in capfd.readouterr().out
    assert cli.main(["plan", "--model", str(marked_model / "[/x]")]) == 2
    assert "[/x]" in capfd.readouterr().err


def start(arguments: list[str], **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mosaic_edge", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, **options)


def one_line(process: subprocess.Popen[bytes]) -> str:
    _, err = process.communicate(timeout=120)
    text = err.decode()
    assert text.startswith("mosaic-edge: ") and text.count("\n") == 1, text
    return text


@pytest.mark.parametrize("arguments", [["plan", "--json"], ["plan"], ["--help"]], ids=" ".join)
def test_results_that_cannot_be_written_are_one_line_and_a_failure(arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        process = start(arguments, stdout=full)
        assert "No space left" in one_line(process) and process.returncode == 1
    reader, writer = os.pipe()
    os.close(reader)
    process = start(arguments, stdout=writer)
    os.close(writer)
    assert "stdout: Broken pipe" in one_line(process) and process.returncode == 1
    process = start(arguments, preexec_fn=lambda: os.close(1))
    assert "stdout is closed" in one_line(process) and process.returncode == 1


@pytest.mark.parametrize("kind", ["full", "broken", "for reading"])
def test_a_stdout_that_takes_nothing_is_found_before_the_stream(kind: str, tmp_path: Path) -> None:
    arguments = ["stress", "--frames", "1000000", "--out", str(tmp_path / "out")]
    if kind == "broken":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open("/dev/full", os.O_WRONLY if kind == "full" else os.O_RDONLY)
    process = start(arguments, stdout=writer)
    os.close(writer)
    try:
        line = one_line(process)
    finally:
        process.kill()
    why = {
        "full": "No space left on device",
        "broken": "Broken pipe",
        "for reading": "it is not open for writing",
    }[kind]
    expected = f"mosaic-edge: stdout: {why}: results cannot be written there; nothing was started\n"
    assert (process.returncode, line) == (1, expected)
    assert not list(tmp_path.iterdir())


def test_a_stdout_that_is_no_file_at_all_is_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    class Kept:
        text = ""

        def write(self, text: str) -> None:
            self.text += text

        def flush(self) -> None: ...

    kept = Kept()
    monkeypatch.setattr(sys, "stdout", kept)
    assert cli.main(["plan", "--memory", "1MiB", "--json"]) == 0
    assert json.loads(kept.text)


def test_a_closed_stderr_changes_no_code() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "mosaic_edge", "plan", "--memory", "1B", "--json"],
        stdout=subprocess.PIPE,
        preexec_fn=lambda: os.close(2),
    )
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 3 and json.loads(out)["exit_code"] == 3


def test_no_file_of_a_command_becomes_a_standard_file_that_was_closed(tmp_path: Path) -> None:
    pipe, account = tmp_path / "pipe", tmp_path / "account.csv"
    os.mkfifo(pipe)
    writer = os.open(pipe, os.O_RDWR)
    words = ["live", "--source", str(pipe), "--account", str(account)]
    process = subprocess.Popen(
        [sys.executable, "-m", "mosaic_edge", *words],
        stdout=subprocess.PIPE,
        preexec_fn=lambda: [os.close(number) for number in (0, 2)] and None,
    )
    try:
        while not account.exists():
            assert process.poll() is None
            time.sleep(0.01)
        links = [str(Path(f"/proc/{process.pid}/fd/{number}").readlink()) for number in (0, 2)]
    finally:
        process.terminate()
        process.communicate(timeout=60)
        os.close(writer)
    assert links == [os.devnull, os.devnull]


def test_what_the_package_logs_is_a_line_on_stderr_while_a_command_runs(
    capfd: pytest.CaptureFixture[str],
) -> None:
    log = logging.getLogger("mosaic_edge")
    log.info("before")
    with cli.log_lines():
        log.info("someone/some: %s fetched", "3.0 MiB")
        log.debug("not for a user")
    log.info("after")
    assert capfd.readouterr() == ("", "mosaic-edge: someone/some: 3.0 MiB fetched\n")
