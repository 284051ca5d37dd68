"""What ends a command - Ctrl-C, SIGTERM, SIGHUP - is one line, an exit code, and nothing that is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from videos import MakeVideo

SAID = {
    signal.SIGINT: ("interrupted", 130, 130),
    signal.SIGTERM: ("terminated", 143, -signal.SIGTERM),
    signal.SIGHUP: ("hung up", 129, -signal.SIGHUP),
}
"""What it says, the exit code that it names, and how the process ended."""

AT_ITS_FIRST_FRAME = """
import os, sys
from mosaic_edge import __main__
from mosaic_edge.sources import VideoSource
from mosaic_edge.world import World

pipe = int(sys.argv.pop(1))

def watched(kind, name):
    method = getattr(kind, name)
    def first(*given):
        setattr(kind, name, method)
        os.close(pipe)
        return method(*given)
    setattr(kind, name, first)

watched(World, "render")
watched(VideoSource, "__iter__")
__main__.program()
"""
"""A command that closes a pipe when it gets to its frames."""


def started(arguments: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """A command that is at its first frame, with an empty folder for what is temporary."""
    (folder / "temporary").mkdir()
    frames, theirs = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", AT_ITS_FIRST_FRAME, str(theirs), *arguments, "--json"],
        cwd=folder,
        env=os.environ | {"TMPDIR": str(folder / "temporary")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[theirs],
        start_new_session=True,
    )
    os.close(theirs)
    with os.fdopen(frames, "rb") as pipe:
        pipe.read()
    assert process.poll() is None, process.communicate()
    return process


def ended(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """It says by what it was ended, and nobody whom it began is left for long."""
    said, code, status = SAID[number]
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err.decode()) == (status, f"mosaic-edge: {said}\n")
    assert json.loads(out) == {"error": said, "exit_code": code}
    assert not psutil.wait_procs(in_session(process.pid), timeout=60)[1]


def in_session(session: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError):
            if os.getsid(process.pid) == session:
                found.append(process)
    return found


@pytest.mark.parametrize(
    ("command", "number"),
    [
        ("demo", signal.SIGINT),
        ("stress", signal.SIGINT),
        ("stress", signal.SIGTERM),
        ("eval", signal.SIGINT),
        ("eval", signal.SIGTERM),
        ("run", signal.SIGINT),
        ("run", signal.SIGTERM),
        ("run", signal.SIGHUP),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_what_ends_a_command_is_in_its_document_and_leaves_nothing_of_it(
    command: str, number: signal.Signals, tmp_path: Path, make_video: MakeVideo
) -> None:
    video = make_video("a.mp4", [i / 10 for i in range(3000)])
    arguments = {
        "demo": ["--seconds", "100000", "--out", "out"],
        "stress": ["--frames", "1000000", "--trace", "trace.json", "--out", "out"],
        "eval": ["--lengths", "2048", "--out", "out"],
        "run": ["--source", video.name, "--fps", "1000", "--ask", "what ?", "--trace", "trace.json"],
    }[command]
    process = started([command, *arguments], tmp_path)
    try:
        process.send_signal(number)
        ended(process, number)
    finally:
        process.kill()  # one that heard nothing would go on for hours
    of_the_user = {"temporary", video.name, "out", "trace.json"}
    assert {path.name for path in tmp_path.iterdir()} <= of_the_user
    assert not list((tmp_path / "temporary").iterdir()) and not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["the program", "all"])
def test_what_ends_an_evaluation_ends_its_processes(send: Callable[[int, int], None], tmp_path: Path) -> None:
    words = ["eval", "--lengths", "2048", "--jobs", "2", "--out", str(tmp_path / "out"), "--json"]
    process = start(words, stdout=subprocess.PIPE, start_new_session=True)
    try:
        parent = psutil.Process(process.pid)
        while sum("spawn_main" in str(child.cmdline()) for child in parent.children()) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        send(process.pid, signal.SIGTERM)
        ended(process, signal.SIGTERM)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def start(arguments: list[str], **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mosaic_edge", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, **options)


STUB = """
import os, signal, time
try:
    os.kill(os.getpid(), int(os.environ.get("SENT", signal.SIGINT)))
    time.sleep(60)
except BaseException:
    raise ImportError("not now") from None
"""
"""A module that is being imported when a signal comes, and makes of it what it likes."""


@pytest.mark.parametrize("module", ["typer", "onnxruntime", "torch"])
@pytest.mark.parametrize(
    ("json_wanted", "number"), [(True, signal.SIGINT), (False, signal.SIGINT), (True, signal.SIGTERM)]
)
def test_an_interruption_while_modules_are_imported_is_one_line(
    module: str, json_wanted: bool, number: signal.Signals, tmp_path: Path
) -> None:
    (tmp_path / f"{module}.py").write_text(STUB)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    words = ["plan", "--layout", "transformers" if module == "torch" else "onnx", "--model", "mosaic-tiny"]
    environment = os.environ | {"PYTHONPATH": path, "SENT": str(int(number))}
    process = start([*words, *["--json"] * json_wanted], stdout=subprocess.PIPE, env=environment)
    out, err = process.communicate(timeout=50)
    said, code, status = SAID[number]
    assert (process.returncode, err.decode()) == (status, f"mosaic-edge: {said}\n")
    assert out == b"" if not json_wanted else json.loads(out) == {"error": said, "exit_code": code}


def test_an_interruption_by_an_import_within_a_command_leaves_no_file_of_it(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(STUB)
    (tmp_path / "temporary").mkdir()
    code = """
import tempfile
from mosaic_edge import __main__, cli
from mosaic_edge.output_file import OutputFile

def halfway():
    trace = OutputFile("trace.json", "trace")
    with tempfile.TemporaryDirectory():
        import late

cli.main = halfway
__main__.program()
"""
    environment = os.environ | {"TMPDIR": str(tmp_path / "temporary"), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    words = [sys.executable, "-c", code]
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=50
    )
    assert (done.returncode, done.stderr) == (130, "mosaic-edge: interrupted\n")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["late.py", "temporary"]


def test_a_fork_that_is_interrupted_removes_nothing_of_the_command(tmp_path: Path) -> None:
    code = """
import os, tempfile
from mosaic_edge import __main__, cli

def forks():
    with tempfile.TemporaryDirectory(dir=".") as folder:
        child = os.fork()
        if not child:
            __main__._interrupted()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
        assert os.path.isdir(folder)
    return 0

cli.main = forks
__main__.program()
"""
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=50)
    assert (done.returncode, done.stderr) == (0, "mosaic-edge: interrupted\n")


def test_an_interruption_while_a_line_is_written_ends_the_command_as_any() -> None:
    code = """
import sys
from mosaic_edge import __main__

class Written:
    def write(self, text=""):
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")

    flush = write

sys.stderr = sys.stdout = Written()
sys.argv = ["mosaic-edge", "--json"]
__main__._interrupted()
"""
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_the_first_process_of_a_container_which_no_signal_kills_has_the_exit_code() -> None:
    code = "import os; from mosaic_edge import __main__; os.kill = print; __main__._end(143)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 143


AGAIN = """
import os, signal, tempfile, time, weakref
from mosaic_edge import __main__, cli
from mosaic_edge.output_file import OutputFile

class Thing:
    pass

def sent(*_):
    os.kill(os.getpid(), signal.SIGTERM)

def lost():
    thing = Thing()
    reference = weakref.ref(thing, sent)
    del thing

def within():
    try:
        sent()
        time.sleep(60)
    finally:
        sent()  # no other one yet
        time.sleep(0.2)
        sent()
        time.sleep(60)

def works():
    trace = OutputFile("trace.json", "trace")
    with tempfile.TemporaryDirectory(dir="."):
        {call}()
        time.sleep(60)

cli.app = lambda **_: works()
__main__.program()
"""
"""A command that is told to end where Python loses what its handler raises, or once more while it ends."""


@pytest.mark.parametrize("call", ["lost", "within"])
def test_a_command_that_does_not_hear_the_first_signal_or_hears_another_ends_at_once(
    call: str, tmp_path: Path
) -> None:
    words = [sys.executable, "-c", AGAIN.replace("{call}", call)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=50)
    assert (done.returncode, done.stderr) == (-signal.SIGTERM, "mosaic-edge: terminated\n")
    assert not list(tmp_path.iterdir())


def test_many_signals_leave_no_more_than_one(tmp_path: Path) -> None:
    """But that its line may be lost to the next one."""
    process = started(["stress", "--frames", "1000000", "--trace", "trace.json", "--out", "out"], tmp_path)
    for number in (signal.SIGTERM, *SAID) * 9:
        with suppress(ProcessLookupError):
            process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode in {status for _, _, status in SAID.values()}
    assert err.decode() in {"", *(f"mosaic-edge: {said}\n" for said, _, _ in SAID.values())}
    assert out.count(b"error") <= 1 and not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("end", ["atexit.register(interrupt)", "raise SystemExit(interrupt())"])
def test_an_interruption_of_a_command_that_has_said_everything_says_no_more(end: str) -> None:
    code = f"""
import atexit, os, signal, sys
from mosaic_edge import __main__, cli

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)

def said():
    print("all")
    {end}
    return 3

cli.main = said
__main__.program()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    expected = (3, "all\n", "") if "atexit" in end else (130, "all\n", "mosaic-edge: interrupted\n")
    assert (done.returncode, done.stdout, done.stderr) == expected
