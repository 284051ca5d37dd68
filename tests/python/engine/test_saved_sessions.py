"""A session that was saved and restored, or forked, goes on to the bit as one that was not."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mosaic_edge import Engine, Session, _core
from mosaic_edge.sampling import SamplingParams
from numpy_vlm import NumpyVlm, picture
from python_policies import Uniform

QUESTIONS = ["what colour was the ball ?", "was the red star in the kitchen ?"]
SHORT = SamplingParams(max_tokens=3)


class Remembering(Uniform):
    """Uniform, with its stride in snapshots."""

    def state(self) -> bytes:
        return str(self.stride).encode()

    def set_state(self, state: bytes) -> None:
        self.stride = int(state)


class PairsVlm(NumpyVlm):
    """Two frames make a picture."""

    def __init__(self) -> None:
        super().__init__(video_window=0)
        self._spec = replace(self._spec, temporal_patch_size=2)

    def encode(self, frame: Any, pts: float, elapsed: float, number: int) -> Any:
        return super().encode(frame.mean(axis=0).astype(np.uint8), pts, elapsed, number)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def go_on(session: Session, first: int, count: int) -> list[Any]:
    """Frames, questions and dialogue; all that was answered."""
    said: list[Any] = []
    for number in range(first, first + count):
        session.append(picture(number), 1.5 * number)
        if number % 4 == 3:
            reply = session.ask(
                QUESTIONS[number // 4 % 2],
                dialogue=number % 8 == 3,
                since=None if number % 3 else 1.5 * (number // 2),
                sampling=SHORT,
            )
            said.append(
                (reply.text, reply.logits.tobytes(), reply.moments, reply.evidence, reply.moments_lost)
            )
    return said


def account(session: Session) -> dict[str, Any]:
    """What memory() says, without what goes by the clock."""
    said = session.memory()
    del said["copies"], said["disk"]  # counted when the copy thread comes to it
    return said


@pytest.mark.parametrize("policy", _core.policies())
@pytest.mark.parametrize("disk", [None, "256KiB"])
def test_a_restored_session_answers_as_the_one_that_was_never_saved(
    policy: str, disk: str | None, tmp_path: Path
) -> None:
    engine = Engine(NumpyVlm())
    settings: dict[str, Any] = {"memory": "200KiB" if policy != "full" else "1MiB", "policy": policy}
    if disk is not None:
        settings |= {"disk": disk, "spill_dir": str(tmp_path)}
    whole, stopped = engine.session(**settings), engine.session(**settings)
    assert go_on(whole, 0, 41) == go_on(stopped, 0, 41)
    stopped.save(tmp_path / "saved")
    stopped.close()
    again = engine.restore(tmp_path / "saved", **({} if disk is None else {"spill_dir": str(tmp_path)}))
    assert account(again) == account(whole)
    assert go_on(again, 41, 40) == go_on(whole, 41, 40)
    assert account(again) == account(whole)
    again.check_invariants()


def test_a_held_frame_and_the_last_picture_of_skip_alike_are_restored(tmp_path: Path) -> None:
    engine = Engine(PairsVlm())
    whole = engine.session(memory="1MiB", skip_alike=0.999)
    for number in range(7):
        whole.append(picture(3 * number))
    assert whole.memory()["held_frames"] == 1
    whole.save(tmp_path / "saved")
    again = engine.restore(tmp_path / "saved")
    assert again.memory()["held_frames"] == 1
    for session in (whole, again):
        for number in (20, 15, 15, 15, 15, 16):
            session.append(picture(number))
    assert account(again) == account(whole)
    assert whole.memory()["duplicate_frames"] > 0
    assert whole.ask(QUESTIONS[0], sampling=SHORT).logits.tobytes() == (
        again.ask(QUESTIONS[0], sampling=SHORT).logits.tobytes()
    )


def test_times_far_from_0_go_on_where_they_were(tmp_path: Path) -> None:
    engine = Engine(NumpyVlm())
    session = engine.session(memory="1MiB")
    for number in range(8):
        session.append(picture(number), 1.7e9 + number)
    session.save(tmp_path / "saved")
    again = engine.restore(tmp_path / "saved")
    with pytest.raises(ValueError, match="before the last frame's"):
        again.append(picture(8), 1.7e9)
    again.append(picture(8))
    assert again.ask(QUESTIONS[0], since=1.7e9 + 8, sampling=SHORT).moments[0][0] == pytest.approx(1.7e9 + 8)


def test_a_policy_in_python_is_restored_by_its_hooks_and_refused_by_name_without(tmp_path: Path) -> None:
    engine = Engine(NumpyVlm())
    whole = engine.session(memory="120KiB", policy=Remembering())
    stopped = engine.session(memory="120KiB", policy=Remembering())
    for session in (whole, stopped):
        go_on(session, 0, 60)
    stopped.save(tmp_path / "saved")
    with pytest.raises(ValueError, match="its policy is an object: give one of its class, policy="):
        engine.restore(tmp_path / "saved")
    again = engine.restore(tmp_path / "saved", policy=Remembering())
    assert go_on(again, 60, 40) == go_on(whole, 60, 40)
    assert account(again) == account(whole)
    assert again.config.policy.stride == whole.config.policy.stride > 1  # type: ignore[union-attr]

    plain = engine.session(memory="120KiB", policy=Uniform())
    plain.append(picture(0))
    with pytest.raises(ValueError, match=r"policy Uniform has no state\(\) and set_state\(\)"):
        plain.save(tmp_path / "plain")
    with pytest.raises(ValueError, match=r"policy Uniform has no state\(\) and set_state\(\)"):
        plain.fork(Uniform())
    assert not (tmp_path / "plain").exists()
    plain.append(picture(1))


def test_another_model_policy_setting_or_cap_is_refused_by_name(tmp_path: Path) -> None:
    engine, path = Engine(NumpyVlm()), tmp_path / "saved"
    session = engine.session(memory="1MiB", skip_alike=0.5)
    session.append(picture(0))
    session.save(path)

    def refused(other: Engine, **settings: Any) -> str:
        with pytest.raises(ValueError) as error:
            other.restore(path, **settings)
        assert "\n" not in str(error.value)
        return str(error.value)

    class Renamed(NumpyVlm):
        def __init__(self) -> None:
            super().__init__()
            self._spec = replace(self._spec, name="other")

    class Tuned(NumpyVlm):
        def __init__(self) -> None:
            super().__init__()
            self._words = self._words + np.float32(1)

    assert "model is 'numpy' in the file and 'other' here" in refused(Engine(Renamed()))
    assert "weights is" in refused(Engine(Tuned()))
    assert "video_window is '4' in the file and '5'" in refused(Engine(NumpyVlm(video_window=5)))
    assert "policy is 'edge' in the file and 'window' in this session" in refused(engine, policy="window")
    assert "memory is '1048576' in the file and '2097152'" in refused(engine, memory="2MiB")
    assert "skip_alike is 0.5 in the file and 0.25 here" in refused(engine, skip_alike=0.25)
    assert "packed is 'k5v3' in the file and 'k4v4'" in refused(engine, packed="k4v4")
    (tmp_path / "text").write_text("hello, this is no session at all")
    path = tmp_path / "text"
    assert "the file is no saved session" in refused(engine)


def test_nothing_is_saved_while_an_answer_is_streamed_and_the_answer_goes_on(tmp_path: Path) -> None:
    engine = Engine(NumpyVlm())
    session = engine.session(memory="1MiB")
    session.append(picture(0))
    stream = session.ask(QUESTIONS[0], stream=True, sampling=SamplingParams(max_tokens=4))
    next(iter(stream))
    with pytest.raises(ValueError, match="an answer is being streamed"):
        session.save(tmp_path / "saved")
    with pytest.raises(ValueError, match="an answer is being streamed"):
        session.fork()
    assert "".join(stream)
    session.save(tmp_path / "saved")


def test_the_file_before_stays_whole_where_saving_fails(tmp_path: Path) -> None:
    engine, path = Engine(NumpyVlm()), tmp_path / "saved"
    session = engine.session(memory="1MiB")
    go_on(session, 0, 5)
    with umask(0):
        session.save(path)
    before = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600  # it holds what a camera saw
    real = _core.SnapshotWriter
    try:
        _core.SnapshotWriter = lambda fd: _full(real, fd)
        with pytest.raises(OSError, match="No space left on device"):
            session.save(path)
    finally:
        _core.SnapshotWriter = real
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]
    go_on(session, 5, 5)
    engine.restore(path)


@contextmanager
def files_of_at_most(count: int) -> Iterator[None]:
    """The disk is full for a file longer than `count` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def disk_bytes(session: Session) -> tuple[int, int]:
    """Written to the spill file and read from it, when the copy thread is through."""
    session._blocks.memory.drain()
    disk = session.memory()["disk"]
    return disk["bytes_written"], disk["bytes_read"]


@pytest.mark.parametrize("policy", ["edge", "rekv"])
def test_wherever_in_the_file_the_disk_is_full_the_one_before_and_the_session_stay_as_they_were(
    policy: str, tmp_path: Path
) -> None:
    engine, path, spill = Engine(NumpyVlm()), tmp_path / "saved", tmp_path / "spill"
    spill.mkdir()
    settings: dict[str, Any] = {"policy": policy, "disk": "256KiB", "spill_dir": str(spill)}
    session, twin = (engine.session(memory="150KiB", **settings) for _ in range(2))
    assert go_on(session, 0, 60) == go_on(twin, 0, 60)
    session.save(path)
    before, memory = path.read_bytes(), account(session)
    for room in [0, 1, 15, 16, 17, *range(100, len(before), len(before) // 25), len(before) - 1]:
        with files_of_at_most(room), pytest.raises(OSError, match="File too large"):
            session.save(path)
        assert path.read_bytes() == before
        assert sorted(p.name for p in tmp_path.iterdir()) == ["saved", "spill"]
    assert account(session) == memory
    assert go_on(session, 60, 20) == go_on(twin, 60, 20)
    assert disk_bytes(session) == disk_bytes(twin) != (0, 0)
    restored = engine.restore(path, spill_dir=str(spill))
    assert restored.memory()["frames"] == 60
    restored.check_invariants()


def _full(writer: Any, _: int) -> Any:
    return writer(os.open("/dev/full", os.O_WRONLY))


def test_a_part_that_a_killed_process_left_is_taken_over_and_one_in_use_is_not(tmp_path: Path) -> None:
    session = Engine(NumpyVlm()).session(memory="1MiB")
    left = tmp_path / ".saved.part"
    left.write_bytes(b"x" * 5_000_000)
    session.save(tmp_path / "saved")
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]
    with left.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another session is being saved there"):
            session.save(tmp_path / "saved")
    for bad in (tmp_path, tmp_path / "none" / "saved", ""):
        with pytest.raises((ValueError, OSError)):
            session.save(bad)


def test_a_fork_is_the_same_and_then_they_go_apart(tmp_path: Path) -> None:
    engine = Engine(NumpyVlm())
    settings: dict[str, Any] = {
        "memory": "200KiB", "policy": "mosaic", "disk": "256KiB", "spill_dir": str(tmp_path),
    }  # fmt: skip
    one, untouched = engine.session(**settings), engine.session(**settings)
    go_on(one, 0, 30)
    go_on(untouched, 0, 30)
    with one.fork() as other:
        assert account(other) == account(one)
        assert other.memory()["taken_bytes"] == one.memory()["taken_bytes"]  # a cap of its own, as large
        for number in range(30, 60):
            other.append(picture(1000 + number), 1.5 * number)
        assert go_on(one, 30, 20) == go_on(untouched, 30, 20)
        assert other.memory()["frames"] == 60
        other.check_invariants()
    assert go_on(one, 50, 9) == go_on(untouched, 50, 9)


def test_a_fork_that_finds_no_memory_leaves_the_session_and_no_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = Engine(NumpyVlm()).session(memory="1MiB")
    go_on(session, 0, 5)
    real = _core.KvMemory

    def none_left(*_: Any) -> Any:
        raise _core.DeviceError("cpu: needs 1.0 MiB")

    monkeypatch.setattr(_core, "KvMemory", none_left)
    with pytest.raises(_core.DeviceError, match="needs"):
        session.fork()
    monkeypatch.setattr(_core, "KvMemory", real)
    assert not [thread for thread in threading.enumerate() if thread.name == "mosaic-fork"]
    go_on(session, 5, 5)


def _with_document(path: Path, change: Any) -> None:
    """Write the snapshot anew with another document, its checksums right."""
    with path.open("rb") as file:
        reader: Any = _core.SnapshotReader(file.fileno())
        document = json.loads(reader.take("SESS", 1 << 20))
    changed = change(document) or document
    with path.open("wb") as file:
        writer: Any = _core.SnapshotWriter(file.fileno())
        writer.add("SESS", changed if isinstance(changed, bytes) else json.dumps(changed).encode())
        writer.finish()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: b"[" * 100_000, "cannot be read"),
        (lambda d: b"{}", "does not say what session it is of"),
        (lambda d: d["config"].update(memory="900TiB"), "memory"),
        (lambda d: d["config"].update(memory=[1]), "memory"),
        (lambda d: d["config"].update(walls=3), "'walls', which this version does not know"),
        (lambda d: d["config"].update(spill_dir="/etc"), "'spill_dir', which"),
        (lambda d: d["config"].update(policy="no such"), "no such"),
        (lambda d: d["model"].update(weights=7), "weights is 7 in the file"),
    ],
)
def test_a_document_that_no_session_wrote_is_refused_with_one_line(
    change: Any, said: str, tmp_path: Path
) -> None:
    engine, path = Engine(NumpyVlm()), tmp_path / "saved"
    session = engine.session(memory="1MiB")
    session.append(picture(0))
    session.save(path)
    _with_document(path, change)
    with pytest.raises((ValueError, MemoryError)) as error:
        engine.restore(path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


HEADER = struct.Struct("<4sIII")
"""Of a part: tag, number, bytes, CRC32C of the three and of what follows."""


def _with_byte(saved: bytes, section: bytes, at: int, flipped: int) -> bytes:
    """The snapshot with bits of a byte of its (one) part of that section flipped, its checksum right."""
    start = 16
    while (head := HEADER.unpack_from(saved, start))[0] != section:
        start += HEADER.size + head[2]
    tag, number, size, _ = head
    payload = bytearray(saved[start + HEADER.size :][:size])
    payload[at] ^= flipped
    crc = _core.crc32c(struct.pack("<4sII", tag, number, size) + payload)
    return b"".join(
        [saved[:start], HEADER.pack(tag, number, size, crc), payload, saved[start + HEADER.size + size :]]
    )


def test_a_token_that_was_given_up_to_the_disk_and_never_came_is_refused(tmp_path: Path) -> None:
    engine, path = Engine(NumpyVlm()), tmp_path / "saved"
    given: dict[str, Any] = {"memory": "150KiB", "spill_dir": str(tmp_path)}
    session = engine.session(policy="edge", disk="64KiB", **given)
    for number in range(20):
        session.append(picture(number))
    memory = session.memory()
    assert memory["tokens"]["spilled"] == memory["tokens"]["dropped"] == 0, "nothing is given up so far"
    session.save(path)
    whole, refused = path.read_bytes(), []
    for at in range(1, 4000, 32):  # where each lane has 16 bits a page, one for each token that is on disk
        path.write_bytes(_with_byte(whole, b"ARCH", at, 0x80))
        try:
            engine.restore(path, **given).close()
        except ValueError as error:
            if "ARCH: this does not hold: a token that was given up is one that came" in str(error):
                refused.append(at)
    assert len(refused) >= 3 and refused == list(range(refused[0], refused[-1] + 1, 32))
