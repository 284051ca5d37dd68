"""Profiles: known by name, refused by file and key, and below whatever option is typed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mosaic_edge import Engine, cli
from mosaic_edge.config import parse_bytes
from mosaic_edge.profiles import known_profiles, read_profile

NAMES = ("agx-orin-64gb", "orin-nano-8gb", "orin-nx-16gb", "thor-128gb")


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def make(text: str, name: str = "mine.toml") -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return make


GOOD = 'title = "a board"\nboard_memory = "8GiB"\n[session]\nmemory = "2MiB"\n'


def test_the_four_boards_are_known_by_name() -> None:
    assert tuple(known_profiles()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_profile_makes_a_plan_that_fits_its_cap_and_leaves_half_the_board_alone(name: str) -> None:
    profile = read_profile(name)
    plan = Engine.load("mosaic-tiny").plan(**profile.session)
    cap = parse_bytes(profile.session["memory"])
    assert 0 < plan["total_bytes"] <= plan["cap_bytes"] == cap
    assert plan["window_frames"] == profile.session["window_frames"]
    assert cap <= profile.board_memory / 2
    assert profile.session["policy"] == "edge"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GOOD + "windows = 3\n", "session.windows: no such key"),
        (GOOD + "faults = 3\n", "session.faults: no such key"),
        ("fsp = 1.0\n" + GOOD, "fsp: no such key"),
        (GOOD + 'kernel_threads = "four"\n', "session.kernel_threads='four': expected int"),
        (GOOD + "kernel_threads = true\n", "session.kernel_threads=True: expected int"),
        (GOOD + "kernel_threads = 1.5\n", "session.kernel_threads=1.5: expected int"),
        (GOOD + "kernel_threads = -1\n", "session.kernel_threads=-1: expected a number from 0 on"),
        (GOOD + "exact_share = nan\n", "session.exact_share=nan: expected a number from 0 on"),
        (GOOD + "summaries = 1\n", "session.summaries=1: expected bool"),
        (GOOD + "policy = 1\n", "session.policy=1: expected str"),
        (GOOD + 'disk = "much"\n', "session.disk='much'"),
        (GOOD + "[session.policy_settings]\ntau = [1]\n", "session.policy_settings="),
        (GOOD.replace("2MiB", "8GiB"), "leaves nothing of board_memory"),
        (GOOD.replace('memory = "2MiB"', ""), "session.memory is missing"),
        (GOOD.replace('title = "a board"', ""), "title=None"),
        (GOOD.replace('"8GiB"', "true"), "board_memory=True"),
        ("fps = 0\n" + GOOD, "fps=0"),
        ('fps = "1"\n' + GOOD, "fps='1'"),
        ("session = 3\ntitle = 'a'\nboard_memory = '8GiB'\n", "session=3: expected a table"),
        ("title = \n", "not a TOML file"),
    ],
)
def test_what_a_profile_must_not_hold_is_refused_by_file_and_key(write: Any, text: str, says: str) -> None:
    path = write(text)
    with pytest.raises(ValueError) as refused:
        read_profile(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert says in str(refused.value)


def test_every_setting_of_a_session_may_stand_in_a_profile(write: Any) -> None:
    extra = 'policy = "mosaic"\nexact_share = 1\nsummaries = false\nclusters = 7\n'
    extra += "[session.policy_settings]\ntau = 0.5\n"
    profile = read_profile(write("fps = 2\n" + GOOD + extra))
    assert profile.fps == 2.0
    assert profile.session == {
        "memory": "2MiB", "policy": "mosaic", "exact_share": 1, "summaries": False, "clusters": 7,
        "policy_settings": {"tau": 0.5},
    }  # fmt: skip


def test_a_name_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"profile='orin'.*agx-orin-64gb, orin-nano-8gb"):
        read_profile("orin")
    with pytest.raises(ValueError, match="no/such"):
        read_profile("no/such.toml")


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    capfd.readouterr()
    code = cli.main([str(a) for a in (*arguments, "--json")])
    return code, json.loads(capfd.readouterr().out)


def test_a_profile_gives_defaults_and_a_typed_option_wins(write: Any, capfd: Any) -> None:
    path = write(GOOD + 'policy = "uniform"\nwindow_frames = 5\n')
    code, plan = run(capfd, "plan", "--profile", path)
    assert (code, plan["cap_bytes"], plan["policy"], plan["window_frames"]) == (0, 2 << 20, "uniform", 5)
    code, plan = run(capfd, "plan", "--profile", path, "--memory", "3MiB", "--policy", "window")
    assert (code, plan["cap_bytes"], plan["policy"], plan["window_frames"]) == (0, 3 << 20, "window", 5)
    # Typed, though it is what it would have been without a profile.
    code, plan = run(capfd, "plan", "--profile", path, "--memory", "64MiB")
    assert (code, plan["cap_bytes"]) == (0, 64 << 20)
    code, said = run(capfd, "plan", "--profile", "nope")
    assert code == 2
    assert "orin-nano-8gb" in said["error"]


def test_the_frame_rate_of_a_profile_is_sampled_unless_another_is_typed(
    write: Any, capfd: Any, make_video: Any
) -> None:
    video = make_video(times=[i / 10 for i in range(30)])
    path = write("fps = 2.0\n" + GOOD)
    for fps, frames in (((), 6), (("--fps", "5"), 15)):
        code, result = run(capfd, "run", "--source", video, "--ask", "what colour was the ball ?",
                           "--profile", path, *fps)  # fmt: skip
        assert (code, result["frames"]) == (0, frames)


def test_doctor_lists_the_profiles(capfd: Any) -> None:
    code, found = run(capfd, "doctor")
    assert code == 0
    assert set(found["profiles"]["titles"]) == set(NAMES)


@pytest.mark.parametrize("kind", ["deep", "deep enough", "fifo", "device", "huge", "number"])
def test_a_profile_that_is_no_file_or_no_sense_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mine.toml"
    texts = {
        "deep": "a=" + "[" * 20_000,
        "deep enough": "a=" + "[" * 5_000 + "]" * 5_000,
        "huge": "#" * (1 << 20) + GOOD,
        "number": "fps=" + "9" * 400 + "\n" + GOOD,
    }
    if kind in texts:
        path.write_text(texts[kind])
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(ValueError) as error:
        read_profile(str(path))
    assert len(str(error.value)) < 1000
