"""The command line: exit codes, one line for an error, one JSON document and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mosaic_edge
from mosaic_edge import cli
from videos import MakeVideo

TINY = Path(mosaic_edge.__file__).parent / "models" / "tiny"
ASK = ["--ask", "what colour was the ball ?"]


class Ran:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def json(self) -> dict[str, Any]:
        document = json.loads(self.out)  # fails on anything beside one document
        assert isinstance(document, dict)
        return document

    def one_error_line(self) -> str:
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("mosaic-edge: ")
        assert "Traceback" not in self.err
        return self.err


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: object) -> Ran:
        capfd.readouterr()
        code = cli.main([str(a) for a in arguments])
        return Ran(code, *capfd.readouterr())

    return call


def test_help_is_asked_for_and_shown(run: Any) -> None:
    assert run("--help").code == 0
    for command in ("demo", "run", "plan", "doctor", "eval", "stress"):
        shown = run(command, "--help")
        assert shown.code == 0
        assert "--json" in shown.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "--nonsense"],
        ["nonsense"],
        ["run"],
        ["run", "--source", "a.mp4"],
        ["run", "--source", "/no/such/file.mp4", *ASK],
        ["demo", "--seconds", "ten"],
        ["demo", "--difficulty", "hard"],
        ["eval", "--caps", "10"],
        ["eval", "--seeds", "seven"],
        ["eval", "--policies", "nope"],
        ["eval", "--lengths", "3"],
        ["eval", "--difficulty", "hard"],
        ["plan", "--model", "/no/such/model"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("json_wanted", [False, True], ids=["text", "json"])
def test_bad_usage_ends_with_2_and_one_line(run: Any, arguments: list[str], json_wanted: bool) -> None:
    ran = run(*arguments, *(["--json"] if json_wanted else []))
    assert ran.code == 2
    ran.one_error_line()
    if json_wanted:
        assert ran.json()["exit_code"] == 2
    else:
        assert ran.out == ""


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["plan", "--memory", "lots"], "memory="),
        (["plan", "--policy", "nope"], "policy="),
        (["plan", "--disk", "0"], "disk="),
        (["demo", "--seconds", "2"], "seconds="),
        (["demo", "--seconds", "20", "--seed", "-1"], "seed=-1: expected 0 to"),
        (["demo", "--seconds", "20", "--seed", "9" * 30], "seed=999"),
        (["eval", "--seeds", "7,-1"], "seeds=-1: expected 0 to"),
        (["eval", "--seeds", "9" * 3000], "seeds=999"),
        (["stress", "--seed", "-1"], "seed=-1: expected 0 to"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_a_bad_value_ends_with_2_and_names_its_knob(run: Any, arguments: list[str], named: str) -> None:
    ran = run(*arguments)
    assert ran.code == 2
    assert named in ran.one_error_line()


@pytest.mark.parametrize("command", [["plan"], ["demo", "--seconds", "20"]], ids=lambda c: c[0])
def test_an_impossible_cap_ends_with_3_and_names_the_knob(run: Any, command: list[str]) -> None:
    for more in ([], ["--json"]):
        ran = run(*command, "--memory", "1KiB", *more)
        assert ran.code == 3
        assert "memory=" in ran.one_error_line()


def test_a_plan_adds_up(run: Any) -> None:
    for policy, tiers in (("edge", ["device", "disk"]), ("mosaic", ["device", "device", "disk"])):
        plan = run("plan", "--policy", policy, "--memory", "2MiB", "--disk", "16MiB", "--json").json()
        parts = sum(part["bytes"] for part in plan["parts"])
        assert parts == plan["total_bytes"] <= plan["cap_bytes"] == 2 << 20
        assert [tier["medium"] for tier in plan["tiers"]] == tiers
    shown = run("plan", "--memory", "2MiB")
    assert shown.code == 0
    assert "mosaic-tiny, policy" in shown.out
    assert "window and question" in shown.out
    assert "k5v3" in shown.out
    assert " 0 B" not in shown.out


def test_doctor_names_backends_and_always_ends_with_0(run: Any, tmp_path: Path) -> None:
    found = run("doctor", "--json").json()
    assert found["core"]["ok"]
    assert {"cpu", "cuda"} <= {backend["name"] for backend in found["core"]["backends"]}
    assert all(backend["detail"] for backend in found["core"]["backends"])
    assert "mosaic" in found["core"]["policies"]
    assert found["spill"]["ok"]
    missing = run("doctor", "--spill-dir", tmp_path / "missing")
    assert missing.code == 0
    assert "not writable" in missing.out


def test_without_onnxruntime_doctor_works_and_the_extra_is_named(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnx.vlm", "onnx.decoder"):
        monkeypatch.delitem(sys.modules, f"mosaic_edge.models.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = run("doctor", "--json")
    assert found.code == 0
    assert not found.json()["providers"]["ok"]
    assert "mosaic_edge[cpu]" in found.json()["providers"]["detail"]
    planned = run("plan")
    assert planned.code == 1
    assert "mosaic_edge[cpu]" in planned.one_error_line()


def test_run_streams_a_file_and_answers(run: Any, make_video: MakeVideo) -> None:
    video = make_video(times=[i / 10 for i in range(60)])
    arguments = [
        "run",
        "--source",
        video,
        *ASK,
        "--ask",
        "what is seen now ?",
        "--memory",
        "2MiB",
        "--fps",
        "2",
    ]
    ran = run(*arguments, "--json")
    result = ran.json()
    assert ran.code == 0
    assert ran.err == ""
    assert result["frames"] == 12
    assert result["error"] is None
    assert [a["question"] for a in result["answers"]] == [ASK[1], "what is seen now ?"]
    assert result["memory"]["taken_bytes"] <= result["memory"]["cap_bytes"] == 2 << 20
    shown = run(*arguments, "--since", "1")
    assert shown.code == 0
    assert "what is seen now ?" in shown.out
    assert "12 frames" in shown.out


def test_run_answers_from_what_a_truncated_file_gave_and_ends_with_1(
    run: Any, make_video: MakeVideo, tmp_path: Path
) -> None:
    whole = make_video("whole.mkv", times=[i / 10 for i in range(60)])
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    ran = run("run", "--source", cut, *ASK, "--memory", "2MiB", "--json")
    assert ran.code == 1
    assert str(cut) in ran.one_error_line()
    assert "read up to" in ran.err
    result = ran.json()
    assert result["error"]
    assert result["frames"] > 0
    assert len(result["answers"]) == 1


def test_run_refuses_an_empty_file_and_an_unknown_word(
    run: Any, make_video: MakeVideo, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.mp4"
    empty.touch()
    ran = run("run", "--source", empty, *ASK)
    assert ran.code == 1
    assert "empty" in ran.one_error_line()
    ran = run("run", "--source", make_video(), "--ask", "how is the weather ?")
    assert ran.code == 2
    assert "weather" in ran.one_error_line()
    assert "known words" in ran.err


def test_demo_prints_everything_as_one_document_and_keeps_the_video(run: Any, tmp_path: Path) -> None:
    ran = run("demo", "--seconds", "40", "--questions", "5", "--memory", "1MiB", "--out", tmp_path, "--json")
    result = ran.json()
    assert ran.code == 0
    assert Path(result["video"]).parent == tmp_path
    assert Path(result["video"]).stat().st_size > 1000
    assert [r["policy"] for r in result["runs"]] == [mosaic_edge.DEFAULT_POLICY, "window"]
    for one in result["runs"]:
        assert one["frames"] == 40
        assert one["asked"] == len(one["answers"]) > 0
        assert one["right"] == sum(a["right"] for a in one["answers"])
        assert one["taken_bytes"] <= one["cap_bytes"] == 1 << 20
        assert one["memory"]["tokens"]["seen"] > 0
    assert result["runs"][0]["answers"][0]["truth"] == result["runs"][1]["answers"][0]["truth"]
    assert mosaic_edge.DEFAULT_POLICY in result["summary"]


def test_demo_shows_a_table_in_a_pipe_without_control_characters(run: Any) -> None:
    ran = run("demo", "--seconds", "20", "--questions", "3")
    assert ran.code == 0
    assert "memory flat at" in ran.out
    assert "\x1b" not in ran.out + ran.err
    assert ran.err == ""


def test_the_module_runs_as_a_program() -> None:
    code = "import sys; from mosaic_edge.cli import main; sys.exit(main(['plan', '--nonsense']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("raised", [True, False])
def test_an_interruption_is_said_in_one_line(
    raised: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(**_: Any) -> int:
        if raised:
            raise KeyboardInterrupt
        return 130

    monkeypatch.setattr(cli, "app", stopped)
    assert cli.main(["plan"]) == 130
    assert capsys.readouterr().err == "mosaic-edge: interrupted\n"


def test_no_command_loads_the_core_a_model_or_a_decoder_of_video_before_it_is_run() -> None:
    heavy = ("mosaic_edge._core", "onnxruntime", "torch", "transformers", "av", "matplotlib")
    code = f"import sys, mosaic_edge.cli; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
