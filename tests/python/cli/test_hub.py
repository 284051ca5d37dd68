"""`mosaic-edge run --model ORG/NAME`, against a hub on this machine: what a download shows and where it lies,
and what is said offline."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

import mosaic_edge
from fake_hub import COMMIT, fake_hub
from videos import MakeVideo

TINY = Path(mosaic_edge.__file__).parent / "models" / "tiny"
MODEL = "someone/tiny-onnx"
PARTS = sorted(
    path.relative_to(TINY).as_posix()
    for path in TINY.rglob("*")
    if path.is_file() and "float" not in path.parts and path.suffix != ".md"
)
"""What is fetched; beside it lie files that are not wanted."""
OTHERS = ["MODEL_CARD.md", "float/model.safetensors"]


def command(video: Path, cache: Path, endpoint: str, **environment: str) -> tuple[list[str], dict[str, str]]:
    told = {
        "HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1",
        "COLUMNS": "200",
    }  # fmt: skip
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    arguments = ["run", "--model", MODEL, "--source", str(video), "--ask", "what is seen now ?"]
    return [
        sys.executable,
        "-m",
        "mosaic_edge",
        *arguments,
        "--memory",
        "1MiB",
    ], kept | told | environment


def run(video: Path, cache: Path, endpoint: str, **environment: str) -> subprocess.CompletedProcess[str]:
    arguments, env = command(video, cache, endpoint, **environment)
    return subprocess.run(arguments, env=env, capture_output=True, text=True)


def on_a_terminal(video: Path, cache: Path, endpoint: str) -> tuple[int, str]:
    """The command with a terminal as its stderr: its code, and all that stood there."""
    arguments, env = command(video, cache, endpoint)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 200, 0, 0))
    with subprocess.Popen(arguments, env=env, stdout=subprocess.DEVNULL, stderr=theirs) as running:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 4096):
                shown += piece
        except OSError:  # the other end is closed
            pass
        code = running.wait()
    os.close(ours)
    return code, shown.decode()


@pytest.fixture
def video(make_video: MakeVideo) -> Path:
    return make_video(times=[0.0, 0.5, 1.0])


def test_a_download_is_shown_then_its_size_and_place_and_it_is_there_without_the_hub(
    video: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    snapshot = cache / "models--someone--tiny-onnx" / "snapshots" / COMMIT
    size = sum((TINY / name).stat().st_size for name in PARTS) / (1 << 20)
    with fake_hub(MODEL, TINY, [*PARTS, *OTHERS]) as (endpoint, fetched):
        code, shown = on_a_terminal(video, cache, endpoint)
        assert code == 0, shown
        assert sorted(fetched) == PARTS
        assert "100%" in shown and f"{len(PARTS)}/{len(PARTS)}" in shown, shown
        assert f"{MODEL}: {size:.1f} MiB fetched in " in shown and f"it lies in {snapshot}" in shown
        again = run(video, cache, endpoint)
        assert again.returncode == 0 and again.stderr == "" and len(fetched) == len(PARTS)
    for gone in (run(video, cache, endpoint), run(video, cache, endpoint, HF_HUB_OFFLINE="1")):
        assert gone.returncode == 0, gone.stderr
        said = f"mosaic-edge: {MODEL}: the hub cannot be asked; what its cache has is taken: {snapshot}"
        assert gone.stderr.splitlines() == [said]
        assert "what is seen now ?" in gone.stdout


def test_offline_a_model_that_was_never_fetched_is_one_line(video: Path, tmp_path: Path) -> None:
    for environment in ({"HF_HUB_OFFLINE": "1"}, {}):
        failed = run(video, tmp_path / "cache", "http://127.0.0.1:9", **environment)
        assert failed.returncode == 2 and failed.stdout == ""
        (line,) = failed.stderr.splitlines()
        assert f"{MODEL}: no such directory, not in the hub cache, and not to be had from the hub" in line


def test_a_model_that_the_hub_does_not_have_is_one_line(video: Path, tmp_path: Path) -> None:
    with fake_hub("someone/else", TINY, PARTS) as (endpoint, _):
        failed = run(video, tmp_path / "cache", endpoint)
    assert failed.returncode == 2
    (line,) = failed.stderr.splitlines()
    assert line.count(MODEL) >= 1 and "not to be had from the hub (RepositoryNotFoundError" in line
