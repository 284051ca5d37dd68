"""Files written for a user are opened first, appear whole, and cost nothing else at their path."""

from __future__ import annotations

import csv
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from mosaic_edge import stream_live
from mosaic_edge.engine import Engine
from mosaic_edge.output_file import OutputFile, regular
from mosaic_edge.serve import account as account_module
from mosaic_edge.serve.account import COLUMNS
from mosaic_edge.sources import Frame
from numpy_vlm import NumpyVlm, picture

QUESTION = "what colour was the ball ?"


class Frames:
    def __init__(self, count: int, at: Any = lambda i: None) -> None:
        self.count, self.at = count, at

    def __iter__(self) -> Any:
        for i in range(self.count):
            self.at(i)
            yield Frame(picture(i), float(i), i)

    def close(self) -> None:
        pass


def session(**settings: Any) -> Any:
    return Engine(NumpyVlm()).session(memory="1MiB", policy="window", kernel_threads=1, **settings)


def place(folder: Path, kind: str) -> str:
    path = folder / "out"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind.startswith("link to a "):
        path.symlink_to("/dev/full" if kind == "link to a device" else "/dev/null")
    else:
        return {
            "device": "/dev/full",
            "a device that takes all": "/dev/null",
            "no folder": str(folder / "no" / "x"),
            "proc": "/proc/x",
            "nothing": "",
            "nul": "a\0b",
        }[kind]
    return str(path)


NO_PLACES = ["folder", "fifo", "no folder", "proc", "nothing", "nul", "device", "link to a device"]
DEVICES = ["a device that takes all", "link to a device that takes all"]


@pytest.mark.parametrize(
    ("knob", "kind"),
    [(knob, kind) for knob in ("trace", "account") for kind in NO_PLACES]
    + [("account", kind) for kind in DEVICES],
)
def test_a_path_that_can_hold_no_file_is_refused_before_anything_starts(
    tmp_path: Path, knob: str, kind: str
) -> None:
    path = place(tmp_path, kind)
    with pytest.raises((ValueError, OSError)) as error:
        if knob == "trace":
            session(trace=path)
        else:
            with session() as opened:
                stream_live(opened, Frames(3, lambda i: pytest.fail("it started")), account=path)
    assert knob in str(error.value) or isinstance(error.value, OSError)
    assert ".part" not in str(error.value)
    if isinstance(error.value, OSError):
        assert os.fspath(error.value.filename) == path
    with session(trace=str(tmp_path / "good.json")):  # the trace of the process is free again
        pass
    assert not list(tmp_path.glob("*.part"))


def test_a_path_in_a_current_folder_that_is_gone_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ValueError, match=r"trace='t\.json': No such file or directory"):
        session(trace="t.json")


def test_a_trace_replaces_a_file_when_it_is_whole_and_a_full_disk_costs_the_trace_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trace.json"
    path.write_text("before")
    with session(trace=str(path)) as opened:
        opened.append(picture(0), 0.0)
        assert path.read_text() == "before"
    assert json.loads(path.read_text())["traceEvents"]

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    path.write_text("before")
    opened = session(trace=str(path))
    opened.append(picture(0), 0.0)
    answer = opened.ask(QUESTION)
    monkeypatch.setattr(Path, "replace", full)
    with pytest.warns(UserWarning, match="trace=.*not written .No space left"):
        opened.close()
    assert answer.tokens and path.read_text() == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["trace.json"]


def test_a_file_that_the_command_itself_reads_or_writes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    stdin = os.dup(0)
    try:
        with path.open("w") as file:
            os.dup2(file.fileno(), 0)
        for name in (str(path), "/dev/stdin"):
            with pytest.raises(ValueError, match=r"^trace=.*is this command's stdin"):
                OutputFile(name, "trace")
    finally:
        os.dup2(stdin, 0)
        os.close(stdin)
    OutputFile(path, "trace").discard()


@pytest.mark.parametrize("kind", DEVICES)
def test_a_trace_is_written_to_a_device_as_it_is(tmp_path: Path, kind: str) -> None:
    opened = session(trace=place(tmp_path, kind))
    opened.append(picture(0), 0.0)
    opened.close()
    assert Path("/dev/null").is_char_device()
    assert not list(tmp_path.glob("*.part")) and not list(Path("/dev").glob(".*.part"))


def test_a_device_that_was_given_up_is_not_written_to(tmp_path: Path) -> None:
    file = OutputFile("/dev/null", "trace")
    file.discard()
    with (tmp_path / "of others").open("w") as other:  # it may have the number now
        with pytest.raises(ValueError, match="/dev/null: it was closed"):
            file.write("text")
        other.flush()
    assert (tmp_path / "of others").read_text() == ""
    file.discard()


@pytest.mark.parametrize("how", ["close", "forgotten"])
def test_a_device_is_held_from_the_beginning_and_given_back(how: str) -> None:
    def held() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = held()
    file = OutputFile("/dev/null", "trace")
    assert held() == before + 1
    if how == "close":
        file.discard()
    del file
    assert held() == before


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_pipe_or_socket_of_the_process_is_no_place_either(kind: str) -> None:
    ends = os.pipe() if kind == "pipe" else [end.detach() for end in socket.socketpair()]
    try:
        with pytest.raises(ValueError, match="there is something else than a regular file"):
            OutputFile(f"/dev/fd/{ends[1]}", "trace")
    finally:
        for end in ends:
            os.close(end)


def test_a_name_as_long_as_a_file_system_has_it_is_one(tmp_path: Path) -> None:
    path = tmp_path / ("\u753b" * 80 + ".json")
    with session(trace=str(path)) as opened:
        stream_live(opened, Frames(1), account=path.with_suffix(".csv"))
    assert path.is_file() and path.with_suffix(".csv").is_file()


def test_a_trace_to_a_terminal_is_read_at_its_other_end() -> None:
    ours, terminal = os.openpty()
    try:
        file = OutputFile(os.ttyname(terminal), "trace")
        file.write('{"traceEvents": []}')
        file.discard()
        assert os.read(ours, 100) == b'{"traceEvents": []}'
    finally:
        os.close(ours)
        os.close(terminal)


def test_a_session_that_is_forgotten_leaves_no_file(tmp_path: Path) -> None:
    opened = session(trace=str(tmp_path / "trace.json"))
    del opened
    assert not list(tmp_path.iterdir())


def test_a_link_is_followed_and_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    file = OutputFile(tmp_path / "link", "trace")
    file.write("text")
    file.discard()
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "text"
    assert regular(tmp_path / "link", "trace") == tmp_path / "real"


def test_nothing_but_an_account_is_moved_aside_by_an_account(tmp_path: Path) -> None:
    path, older = tmp_path / "account.csv", tmp_path / "account.csv.1"
    path.write_text("my thesis")
    with (
        session() as opened,
        pytest.raises(ValueError, match=r"account=.*is there already, and is no account"),
    ):
        stream_live(opened, Frames(1), account=path)
    assert path.read_text() == "my thesis"
    path.unlink()
    older.write_text("my other thesis")
    with session() as opened, pytest.raises(ValueError, match=r"account\.csv\.1.*is no account"):
        stream_live(opened, Frames(1), account=path)
    assert older.read_text() == "my other thesis" and not path.exists()
    older.unlink()
    for _ in range(3):
        with session() as opened:
            stream_live(opened, Frames(2), account=path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["account.csv", "account.csv.1"]
    assert [len(list(csv.DictReader(p.open()))) for p in (path, older)] == [2, 2]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_disk_that_fills_up_costs_rows_and_not_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "account.csv"
    real, full = account_module.Account._write, []

    def write(self: Any, pts: float, frames: int) -> None:
        if full:
            raise OSError(28, "No space left on device")
        real(self, pts, frames)

    monkeypatch.setattr(account_module.Account, "_write", write)
    with session() as opened, pytest.warns(UserWarning, match="5 rows were not written .No space left"):
        source = Frames(9, lambda i: full.append(1) if i == 3 else full.clear() if i == 8 else None)
        ended = stream_live(opened, source, account=path, every=1e-9)
    assert (ended.frames, ended.error) == (9, None)
    assert [int(row["frames"]) for row in csv.DictReader(path.open())] == [1, 2, 3, 9]


def test_an_account_starts_anew_before_it_fills_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account_module, "ACCOUNT_ROWS", 3)
    path = tmp_path / "account.csv"
    with session() as opened:
        stream_live(opened, Frames(8), account=path, every=1e-9)
    for name, frames in (("account.csv", ["7", "8"]), ("account.csv.1", ["4", "5", "6"])):
        rows = list(csv.DictReader((tmp_path / name).open()))
        assert [row["frames"] for row in rows] == frames and tuple(rows[0]) == COLUMNS


@pytest.mark.parametrize("every", [float("nan"), float("inf"), 0, -1, "x", None])
def test_the_time_between_rows_is_a_number_of_seconds(every: Any) -> None:
    with session() as opened, pytest.raises(ValueError, match="every="):
        stream_live(opened, Frames(1), every=every)
