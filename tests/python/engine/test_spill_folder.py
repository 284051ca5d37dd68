"""A spill file goes to a disk, or it is said that it does not."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import pytest

from mosaic_edge import spill_folder as module
from mosaic_edge.cli.doctor import examine
from mosaic_edge.config import SessionConfig
from mosaic_edge.engine import Engine
from mosaic_edge.spill_folder import memory_kind, spill_folder
from numpy_vlm import NumpyVlm


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a disk at /, RAM at tmp_path/ram and tmp_path/ram/a b, a disk inside that RAM."""
    file = tmp_path / "mounts"
    ram = f"{tmp_path}/ram"
    file.write_text(
        "rootfs / rootfs rw 0 0\n/dev/sda / ext4 rw 0 0\n"
        f"tmpfs {ram} tmpfs rw 0 0\n/dev/sdb {ram}/disk ext4 rw 0 0\n"
        f"ramfs {ram}/a\\040b ramfs rw 0 0\nshort\n"
    )
    for name in ("ram", "ram/disk", "ram/a b", "rambo", "disk"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(module, "_MOUNTS", file)
    monkeypatch.setattr(tempfile, "tempdir", f"{tmp_path}/ram")
    monkeypatch.setenv("MOSAIC_CACHE_DIR", f"{tmp_path}/disk/cache")
    return tmp_path


def test_the_longest_mount_point_tells_and_links_are_followed(mounts: Path) -> None:
    (mounts / "link").symlink_to(mounts / "ram")
    expected = {
        "ram": "tmpfs",
        "ram/x/y": "tmpfs",
        "ram/disk/x": None,
        "ram/a b": "ramfs",
        "rambo": None,
        "": None,
        "link/x": "tmpfs",
    }
    assert {name: memory_kind(mounts / name) for name in expected} == expected


def test_where_no_mounts_can_be_read_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOUNTS", Path("/no/such/file"))
    assert memory_kind("/dev/shm") is None


def test_a_temporary_directory_in_ram_is_passed_over_for_the_cache_directory(mounts: Path) -> None:
    with pytest.warns(UserWarning, match=r"ram is in RAM .tmpfs.: the spill file goes to .*spill_dir="):
        assert spill_folder(None) == f"{mounts}/disk/cache/spill"
    assert (mounts / "disk" / "cache" / "spill").stat().st_mode & 0o777 == 0o700
    with pytest.warns(UserWarning, match="the spill file goes to"):
        session = Engine(NumpyVlm()).session(memory="1MiB", disk="4MiB", policy="rekv", kernel_threads=1)
    session.close()


def test_a_device_without_a_disk_is_told_and_one_without_spilling_is_not(
    mounts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOSAIC_CACHE_DIR", f"{mounts}/ram/cache")
    engine = Engine(NumpyVlm())
    for call in (engine.plan, engine.session):
        with pytest.raises(ValueError, match=r"are in RAM, where spilling saves none\. Set spill_dir="):
            call(memory="1MiB", disk="4MiB", policy="rekv")
    assert not (mounts / "ram" / "cache").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.session(memory="1MiB", policy="window", kernel_threads=1).close()
        engine.session(
            memory="1MiB", disk="4MiB", policy="rekv", kernel_threads=1, spill_dir=f"{mounts}/disk"
        ).close()


def test_a_cache_directory_that_holds_no_folder_is_an_error_that_names_the_knob(
    mounts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mounts / "disk" / "file").write_text("mine")
    monkeypatch.setenv("MOSAIC_CACHE_DIR", f"{mounts}/disk/file")
    with pytest.raises(ValueError, match=r"Set spill_dir= to a folder on a disk .*file"):
        Engine(NumpyVlm()).session(memory="1MiB", disk="4MiB", policy="rekv", kernel_threads=1)
    assert (mounts / "disk" / "file").read_text() == "mine"


def test_a_folder_in_ram_that_was_asked_for_is_taken_with_a_warning(mounts: Path) -> None:
    with pytest.warns(UserWarning, match=r"spill_dir=.*is in RAM .tmpfs."):
        assert spill_folder(f"{mounts}/ram") == f"{mounts}/ram"
    assert SessionConfig().spill_dir is None


def test_a_folder_whose_name_no_path_can_have_opens_no_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"spill_dir=.*: expected text without a zero byte"):
        Engine(NumpyVlm()).session(
            memory="1MiB", disk="4MiB", policy="rekv", kernel_threads=1, spill_dir=f"{tmp_path}\0/no"
        )


def test_doctor_says_where_a_spill_file_would_be_in_ram(mounts: Path) -> None:
    found = examine(f"{mounts}/ram")["spill"]
    assert found["ok"] is False and "in RAM (tmpfs)" in found["detail"] and "spill_dir=" in found["detail"]
    assert examine(f"{mounts}/disk")["spill"]["ok"] is True
    assert examine()["spill"]["folder"] == f"{mounts}/disk/cache/spill"
