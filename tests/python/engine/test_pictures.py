"""Frames as programs hold them, and videos one after the other, are what NumPy would have given."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from mosaic_edge.engine import Engine, Session
from mosaic_edge.pictures import as_rgb
from mosaic_edge.sources import Frame, SourceError, frames_from_arrays
from numpy_vlm import NumpyVlm, picture
from videos import MakeVideo

IMAGE = np.random.default_rng(3).integers(0, 256, (13, 7, 3), dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    held = io.BytesIO()
    Image.fromarray(image).save(held, "PNG")
    return held.getvalue()


SAME: dict[str, Callable[[], Any]] = {
    "array": lambda: IMAGE,
    "nested lists of NumPy's": lambda: [list(row) for row in IMAGE],
    "a view": lambda: np.repeat(IMAGE, 2, axis=1)[:, ::2],
    "PIL": lambda: Image.fromarray(IMAGE),
    "PIL with alpha": lambda: Image.fromarray(IMAGE).convert("RGBA"),
    "torch CHW": lambda: torch.from_numpy(IMAGE).permute(2, 0, 1),
    "torch HWC": lambda: torch.from_numpy(IMAGE),
    "torch with a gradient": lambda: torch.from_numpy(IMAGE).permute(2, 0, 1).contiguous(),
    "PyAV": lambda: av.VideoFrame.from_ndarray(IMAGE, format="rgb24"),
    "bytes": lambda: png(IMAGE),
    "memoryview": lambda: memoryview(png(IMAGE)),
    "a file": lambda: io.BytesIO(png(IMAGE)),
}


@pytest.mark.parametrize("kind", SAME)
def test_a_picture_is_the_same_whatever_holds_it(kind: str) -> None:
    image = as_rgb(SAME[kind]())
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, IMAGE)


def test_a_grey_pil_image_has_three_channels_and_exif_turns_it() -> None:
    grey = Image.fromarray(IMAGE[:, :, 0])
    np.testing.assert_array_equal(as_rgb(grey), np.repeat(IMAGE[:, :, :1], 3, axis=2))
    exif = Image.Exif()
    exif[0x112] = 6
    held = io.BytesIO()
    Image.fromarray(IMAGE).save(held, "PNG", exif=exif)
    held.seek(0)
    np.testing.assert_array_equal(as_rgb(Image.open(held)), np.rot90(IMAGE, -1))


@pytest.mark.parametrize(
    "wrong",
    [
        torch.rand(3, 9, 9),
        torch.zeros(1, 3, 9, 9, dtype=torch.uint8),
        b"",
        b"no picture",
        io.BytesIO(b"no picture"),
        IMAGE.astype(np.float32),
        IMAGE[:0],
        np.broadcast_to(np.uint8(1), (1 << 31, 1, 3)),
        np.broadcast_to(np.uint8(1), (1, 1 << 31, 3)),
        np.broadcast_to(np.uint8(1), (1 << 20, 1 << 20, 3)),
        "text",
        None,
        object(),
    ],
)
def test_what_is_no_picture_is_refused_by_name(wrong: Any) -> None:
    with pytest.raises(ValueError, match="frame: "):
        as_rgb(wrong)


@pytest.fixture
def session() -> Any:
    with Engine(NumpyVlm()).session(memory="1MiB", policy="window", kernel_threads=1) as opened:
        yield opened


@pytest.mark.parametrize(
    "second",
    [
        Fraction(7, 2),
        timedelta(seconds=3.5),
        np.float32(3.5),
        3.5,
        np.array(3.5),
        np.array(3.5, ">f8"),
        np.timedelta64(3500, "ms"),
        np.timedelta64(3_500_000_000, "ns"),
        np.array(3_500_000_000_000, "m8[ps]"),
    ],
)
def test_a_time_is_seconds_in_whatever_holds_them(session: Session, second: Any) -> None:
    session.append(picture(0), 3.0)
    session.append(picture(1), second)
    moments = session.ask("what colour was the ball ?").moments
    assert sorted(moment for moment, _, _ in moments) == [3.0, 3.5]


def append_all(session: Session, videos: list[Any], **settings: float) -> list[float]:
    times: list[float] = []
    for video in videos:
        session.append_video(video, progress=lambda pts, _: times.append(round(pts, 2)), **settings)
    return times


def test_files_one_after_the_other_are_one_stream(session: Session, make_video: MakeVideo) -> None:
    first = make_video("a.mp4", times=[i / 10 for i in range(20)])
    second = make_video("b.mkv", times=[0.5 + i / 10 for i in range(15)])
    times = append_all(session, [first, second, first.read_bytes(), io.BytesIO(second.read_bytes())], fps=2)
    assert times == [i / 2 for i in range(14)]


def test_a_file_whose_times_lie_behind_keeps_them(session: Session, make_video: MakeVideo) -> None:
    late = make_video("late.mkv", times=[100 + i / 10 for i in range(10)])
    assert append_all(session, [make_video(), late], fps=1) == [0.0, 1.0, 100.0]
    assert append_all(session, [late], fps=1) == [pytest.approx(101, abs=60)]


def test_two_stretches_of_a_file_keep_their_times(session: Session, make_video: MakeVideo) -> None:
    path = make_video(times=[i / 10 for i in range(80)])
    session.append_video(path, fps=1, end=2.0)
    times: list[float] = []
    session.append_video(path, fps=1, start=5.0, progress=lambda pts, _: times.append(pts))
    assert times == pytest.approx([5.0, 6.0, 7.0])


def test_frames_of_a_source_are_appended_and_it_is_closed(session: Session) -> None:
    source = frames_from_arrays([picture(i) for i in range(5)], fps=2.0)
    assert session.append_frames(source) == 5
    assert list(source) == []
    assert session.append_frames(frames_from_arrays([picture(i) for i in range(3)], fps=2.0)) == 3
    assert session.memory()["frames"] == 8


@pytest.mark.parametrize("clocks", [(0.0, 1.79e9), (60.0, 1.79e9, 5.0), (1.79e9, 0.0, 3.5e9)])
def test_sources_of_two_clocks_are_one_stream_however_far_they_are_from_each_other(
    session: Session, clocks: tuple[float, ...]
) -> None:
    times: list[float] = []
    for clock in clocks:
        source = (Frame(picture(i), clock + i, i) for i in range(3))
        session.append_frames(source, lambda pts, _: times.append(pts))
    assert np.allclose(np.diff(times), 1.0) and times[0] == clocks[0]
    assert len(times) == 3 * len(clocks)


@pytest.mark.parametrize("source", [None, 3, "a.mp4", [picture(1)], picture(1), iter([picture(1)])])
def test_what_gives_no_frames_is_refused_by_name(session: Session, source: Any) -> None:
    with pytest.raises(ValueError, match=r"source=.*: expected a FrameSource"):
        session.append_frames(source)
    with pytest.raises(ValueError, match=r"source: gave .*; expected a Frame"):
        session.append_frames(x for x in [source])  # type: ignore[misc]
    assert session.memory()["frames"] == 0


def test_a_second_file_that_is_none_leaves_the_session_as_it_was(
    session: Session, make_video: MakeVideo, tmp_path: Path
) -> None:
    session.append_video(make_video(), fps=2)
    for wrong in (tmp_path / "none.mp4", b"nothing", io.BytesIO(b"nothing")):
        with pytest.raises(SourceError):
            session.append_video(wrong)
    assert session.memory()["frames"] == 4
    session.check_invariants()
