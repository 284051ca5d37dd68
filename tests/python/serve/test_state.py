"""--state: what a service saw outlives its process, however that ended."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from http_service import PATIENCE, QUESTION, jpeg, serving, until
from mosaic_edge import SamplingParams, cli, stream_live
from mosaic_edge.engine import Engine, Session
from mosaic_edge.serve.state import SavedStream, StateFolder
from mosaic_edge.sources import Frame
from numpy_vlm import NumpyVlm, picture
from serve_process import process
from videos import MakeVideo

ONE = SamplingParams(max_tokens=1)
SETTINGS: dict[str, Any] = {"memory": "1MiB", "policy": "mosaic"}


class Frames:
    """Frames from `first` on, a second apart; then the process is told to stop."""

    def __init__(self, first: int, count: int, shift: float = 0.0) -> None:
        self.first, self.count, self.shift = first, count, shift

    def __iter__(self) -> Iterator[Frame]:
        for number in range(self.first, self.first + self.count):
            yield Frame(picture(number), number + self.shift, number)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        raise AssertionError("SIGTERM was not obeyed")

    def close(self) -> None:
        pass


def begun(engine: Engine, folder: StateFolder) -> Session:
    return folder.restore("live", lambda file: engine.restore(file, **SETTINGS)) or engine.session(**SETTINGS)


def test_a_stream_that_sigterm_ended_goes_on_where_it_was_when_it_is_started_anew(tmp_path: Path) -> None:
    engine, said = Engine(NumpyVlm()), list[str]()
    folder = StateFolder(tmp_path / "state", 3600, said.append)
    for first, shift in ((0, 0.0), (10, -10.0)):  # the second camera's clock begins at 0 again
        with begun(engine, folder) as session:
            ended = stream_live(session, Frames(first, 10, shift), state=SavedStream(folder, "live", session))
            assert (ended.frames, ended.error) == (10, None)
    assert said == [f"state: {folder.file('live')} was restored"]
    with begun(engine, folder) as again, engine.session(**SETTINGS) as whole:
        for number in range(20):
            whole.append(picture(number), float(number))
        assert again.memory()["frames"] == 20
        one, other = again.ask(QUESTION, sampling=ONE), whole.ask(QUESTION, sampling=ONE)
        assert one.logits.tobytes() == other.logits.tobytes()
        assert one.evidence == other.evidence


def test_a_stream_is_saved_as_often_as_it_is_told(tmp_path: Path) -> None:
    saved = []
    with Engine(NumpyVlm()).session(**SETTINGS) as session:
        often = StateFolder(tmp_path, 1e-9)
        state = SavedStream(often, "live", session)
        for number in range(3):
            session.append(picture(number))
            state.tick()
            saved.append(often.file("live").read_bytes())
        assert len(set(saved)) == 3
        seldom = StateFolder(tmp_path, 3600)
        state = SavedStream(seldom, "other", session)
        state.tick()
        assert not seldom.file("other").exists()


def test_files_that_are_refused_are_named_and_kept_aside_each_under_its_own_name(tmp_path: Path) -> None:
    engine, said = Engine(NumpyVlm()), list[str]()
    folder = StateFolder(tmp_path, 3600, said.append)
    for text in ("one", "two"):
        folder.file("live").write_text(text)
        with begun(engine, folder) as session:
            assert session.memory()["frames"] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["live.session.refused-1", "live.session.refused-2"]
    assert (tmp_path / "live.session.refused-2").read_text() == "two"
    assert said[1] == (
        f"state: {folder.file('live')} was not restored and is kept as live.session.refused-2: "
        "snapshot: the file is no saved session."
    )


def test_a_folder_that_cannot_be_written_costs_the_saving_and_not_the_stream(tmp_path: Path) -> None:
    said = list[str]()
    with Engine(NumpyVlm()).session(**SETTINGS) as session:
        folder = StateFolder(tmp_path / "state", 1e-9, said.append)
        folder.path.rmdir()
        state = SavedStream(folder, "live", session)
        session.append(picture(0))
        state.tick()
        assert len(said) == 1 and "was not saved: " in said[0]
        session.append(picture(1))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is no folder"):
        StateFolder(tmp_path / "file", 60)
    with pytest.raises(ValueError, match="state_every=0"):
        StateFolder(tmp_path, 0)


def test_sessions_of_clients_are_there_again_when_the_server_is_started_anew(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path, 3600)
    with serving(state=folder) as first:
        client = first.client
        kept, deleted = client.session(memory="1MiB"), client.session(memory="1MiB", policy="edge")
        for number in range(5):
            client.put(kept, number, float(number))
        answer = client.good("POST", f"{kept}/questions", {"question": QUESTION, "max_tokens": 3})
        before = client.good("GET", kept)
        client.call("DELETE", deleted)
        drawn = first.sessions.budget.drawn_bytes
    assert folder.names() == [kept.rpartition("/")[2]]
    with serving(state=folder) as again:
        client = again.client
        assert again.sessions.budget.drawn_bytes == drawn
        after = client.good("GET", kept)
        for name in ("created", "frames", "questions", "first_seconds", "last_seconds", "tokens"):
            assert after[name] == before[name], name
        asked = client.good("POST", f"{kept}/questions", {"question": QUESTION, "max_tokens": 3})
        assert (asked["answer"], asked["evidence"]) == (answer["answer"], answer["evidence"])
        client.put(kept, 5, 5.0)
        client.call("DELETE", kept)
    assert list(tmp_path.iterdir()) == []


def test_what_no_longer_fits_the_budget_is_kept_aside(tmp_path: Path) -> None:
    said = list[str]()
    folder = StateFolder(tmp_path, 3600, said.append)
    with serving(state=folder) as first:
        first.client.session(memory="3MiB")
    with serving("2MiB", state=folder) as again:
        assert again.sessions.all() == []
    assert "of the server's budget are left" in said[-1]
    assert [p.name.partition(".")[2] for p in tmp_path.iterdir()] == ["session.refused-1"]


def test_a_session_with_a_spill_file_draws_its_quota_again_and_is_kept_aside_where_there_is_none(
    tmp_path: Path,
) -> None:
    said = list[str]()
    folder = StateFolder(tmp_path, 3600, said.append)
    with serving(state=folder, disk="2MiB") as first:
        kept = first.client.session(policy="mosaic", memory="1MiB", disk="2MiB")
        first.client.put(kept, 0, 0.0)
    with serving(state=folder, disk="4MiB") as again:
        assert (
            again.client.good("GET", kept)["drawn_disk_bytes"] == again.sessions.disk.drawn_bytes == 2 << 20
        )
    with serving(state=folder) as without:
        assert without.sessions.all() == [] and without.sessions.budget.drawn_bytes == 0
    assert "of disk; 0 B (0 bytes) of the server's budget are left" in said[-1]


def test_the_server_saves_every_so_often_what_it_may_lose_to_a_power_cut(tmp_path: Path) -> None:
    with serving(state=StateFolder(tmp_path, 0.01)) as one:
        path = one.client.session()
        one.client.put(path, 1, 0.0)
        file = tmp_path / f"{path.rpartition('/')[2]}.session"
        until(file.exists)
        with Engine(NumpyVlm()).restore(file) as session:
            assert session.memory()["frames"] <= 1


def test_live_goes_on_from_its_state_and_begins_anew_where_its_settings_changed(
    make_video: MakeVideo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "state"
    words = [
        "live",
        "--source",
        str(make_video()),
        "--state",
        str(folder),
        "--fps",
        "5",
        "--json",
        "--memory",
    ]

    def run(memory: str) -> tuple[int, str]:
        capsys.readouterr()
        assert cli.main([*words, memory]) == 0
        out, err = capsys.readouterr()
        return json.loads(out)["memory"]["frames"], err

    frames, said = run("4MiB")
    assert (frames > 0, said) == (True, "")
    assert run("4MiB") == (2 * frames, f"mosaic-edge: state: {folder}/live.session was restored\n")
    again, said = run("8MiB")
    assert again == frames
    assert "live.session.refused-1: snapshot: memory is '4194304' in the file and '8388608'" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_serve_as_a_process_has_its_sessions_again_however_it_ended(
    number: signal.Signals, tmp_path: Path
) -> None:
    options = ["--state", str(tmp_path), "--state-every", "0.0005"]
    with process(*options) as (running, client, _):
        path = client.session(memory="1MiB")
        client.good("PUT", f"{path}/frames?pts=0", jpeg(1))
        file = tmp_path / f"{path.rpartition('/')[2]}.session"
        until(file.exists)
        saved = file.stat().st_mtime_ns
        until(lambda: file.stat().st_mtime_ns != saved)  # one that began after the frame
        saved = file.stat().st_mtime_ns
        until(lambda: file.stat().st_mtime_ns != saved)
        running.send_signal(number)
        running.wait(PATIENCE)
    with process(*options) as (_, client, _):
        assert client.good("GET", path)["frames"] == 1
        assert client.good("POST", f"{path}/questions", {"question": QUESTION})["answer"]
