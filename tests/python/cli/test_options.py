"""Options of the model reach Engine.load in every command, as typed or as a profile has them."""

from __future__ import annotations

import inspect
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from mosaic_edge import _core, cli
from mosaic_edge.cli.options import ModelOptions, SessionOptions
from mosaic_edge.config import SessionConfig
from mosaic_edge.engine import Engine
from mosaic_edge.models import load_model
from videos import MakeVideo

TYPED = {
    "device": "cuda", "threads": 3, "variant": "q4", "dtype": "bf16", "quantization": "int8",
    "tokens_per_frame": 77, "system": "Be brief.",
}  # fmt: skip
PROFILE = 'title = "a board"\nboard_memory = "8GiB"\n[session]\nmemory = "2MiB"\n'
COMMANDS: dict[str, list[str]] = {
    "check": [],
    "demo": ["--seconds", "20"],
    "eval": ["--quick", "--out", "{folder}/eval"],
    "live": ["--source", "{video}"],
    "plan": [],
    "run": ["--source", "{video}", "--ask", "what colour was the ball ?"],
    "serve": [],
    "stress": ["--frames", "16", "--out", "{folder}/stress"],
}


def test_every_command_that_takes_a_model_is_tried_here() -> None:
    taking = set()
    for info in cli.app.registered_commands:
        assert info.callback is not None
        if "model" in inspect.signature(info.callback).parameters:
            taking.add(info.name)
    assert taking - {"doctor"} == set(COMMANDS), "doctor looks whether a model fits and loads none"


@pytest.fixture
def loaded(
    monkeypatch: pytest.MonkeyPatch, make_video: MakeVideo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Any:
    """What a command gives Engine.load, which then refuses."""
    seen: list[tuple[str, dict[str, Any]]] = []

    def load(model: str, **keywords: Any) -> Engine:
        seen.append((model, keywords))
        raise ValueError("that will do")

    def call(command: str, *options: str) -> tuple[str, dict[str, Any]]:
        places = {"folder": str(tmp_path), "video": str(video)}
        words = [word.format(**places) for word in COMMANDS[command]]
        del seen[:]
        assert cli.main([command, *words, *options]) == 2
        assert capsys.readouterr().err == "mosaic-edge: that will do\n"
        ((model, keywords),) = seen
        return model, {name: value for name, value in keywords.items() if name in TYPED}

    video = make_video()
    monkeypatch.setattr(Engine, "load", load)
    return call


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_typed_reaches_the_model(loaded: Any, command: str) -> None:
    words = [w for name, value in TYPED.items() for w in (f"--{name.replace('_', '-')}", str(value))]
    assert loaded(command, "--model", "there", *words) == ("there", TYPED)
    model, keywords = loaded(command)
    assert model == "mosaic-tiny"
    assert keywords == ({"threads": 1} if command == "eval" else {}), "the model's own defaults"


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_profile_says_of_the_model_reaches_it_and_what_is_typed_wins(
    loaded: Any, command: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    lines = (f"{name} = {json.dumps(value)}\n" for name, value in TYPED.items())
    path.write_text(PROFILE + "[model]\n" + "".join(lines))
    assert loaded(command, "--profile", str(path)) == ("mosaic-tiny", TYPED)
    _, keywords = loaded(command, "--profile", str(path), "--device", "cpu", "--tokens-per-frame", "5")
    assert keywords == {**TYPED, "device": "cpu", "tokens_per_frame": 5}


def test_options_profile_keys_and_keywords_of_the_engine_are_the_same_words() -> None:
    keywords = [
        name
        for name, parameter in inspect.signature(Engine.load).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    assert keywords == [name for name in inspect.signature(load_model).parameters if name != "model"]
    session = {field.name for field in fields(SessionConfig)}
    assert not session & set(keywords), "a word is of the model or of its memory"
    options = {field.name for field in fields(ModelOptions)}
    assert options == {"model", *keywords} - {"allow_pickle"}
    assert {field.name for field in fields(SessionOptions)} - {"more"} <= session


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[SessionConfig]:
    """The configs that sessions are opened with."""
    configs: list[SessionConfig] = []
    session = Engine.session

    def note(self: Engine, config: SessionConfig | None = None, **settings: Any) -> Any:
        made = session(self, config, **settings)
        configs.append(made.config)
        return made

    monkeypatch.setattr(Engine, "session", note)
    return configs


@pytest.mark.parametrize("command", ["demo", "live", "run", "stress"])
def test_what_a_profile_says_of_the_session_reaches_it_though_it_has_no_option(
    opened: list[SessionConfig], command: str, tmp_path: Path, make_video: MakeVideo
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(PROFILE + 'policy = "uniform"\nwindow_frames = 5\n')
    places = {"folder": str(tmp_path), "video": str(make_video(times=[i / 2 for i in range(40)]))}
    words = [word.format(**places) for word in COMMANDS[command]]
    assert cli.main([command, *words, "--json", "--profile", str(path), "--memory", "3MiB"]) == 0
    for config in opened:
        assert (config.memory, config.window_frames) == ("3MiB", 5)
    assert opened[0].policy == "uniform"


def test_an_evaluation_shares_what_a_profile_says_of_sessions_but_measures_caps_and_policies(
    opened: list[SessionConfig], tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(PROFILE + 'policy = "uniform"\ndisk = "1MiB"\nwindow_frames = 5\n')
    words = ["--policies", "window", "--caps", "400%", "--lengths", "40", "--seeds", "7", "--questions", "4"]
    words += ["--difficulty", "plain", "--out", str(tmp_path / "eval"), "--profile", str(path), "--json"]
    assert cli.main(["eval", *words]) == 0
    measured = opened[-1]
    assert (measured.policy, measured.disk, measured.window_frames) == ("window", None, 5)
    assert measured.memory != "2MiB"


def test_a_backend_that_is_not_there_is_refused_by_every_command(
    tmp_path: Path, make_video: MakeVideo, capsys: pytest.CaptureFixture[str]
) -> None:
    if any(row["name"] == "cuda" and row["available"] for row in _core.backends()):
        pytest.skip("there is a GPU")
    places = {"folder": str(tmp_path), "video": str(make_video())}
    for command in COMMANDS.keys() - {"check"}:  # it compares on the CPU alone
        words = [word.format(**places) for word in COMMANDS[command]]
        code = cli.main([command, *words, "--backend", "cuda"])
        said = capsys.readouterr().err
        assert (command, code) == (command, 1), said
        assert "cuda" in said


def test_check_asks_for_a_model_where_none_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check"]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("mosaic-edge: model=mosaic-tiny: ") and said.endswith("give --model")
    assert "\n" not in said
