"""Sources by scheme: what opens what, what is refused, and a source of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mosaic_edge.engine import Engine
from mosaic_edge.sources import (
    Frame,
    FrameSource,
    SourceError,
    VideoSource,
    frames_from_arrays,
    open_source,
    registry,
)
from mosaic_edge.sources.cameras import NetworkCamera, V4l2Camera
from mosaic_edge.sources.gstreamer import GStreamerSource
from numpy_vlm import NumpyVlm, picture
from videos import MakeVideo


@pytest.mark.parametrize(
    ("where", "opener"),
    [
        ("clip.mp4", VideoSource),
        ("C:\\clips\\clip.mp4", VideoSource),
        ("HTTP://host/clip.mp4", VideoSource),
        ("tcp://127.0.0.1:5000", VideoSource),
        ("/dev/video7", V4l2Camera),
        ("rtsp://camera/stream", NetworkCamera),
        ("gst:v4l2src device=/dev/video0 ! videorate", GStreamerSource),
    ],
)
def test_a_path_or_url_says_which_source_it_is(where: str, opener: type) -> None:
    assert registry.known_schemes()[registry.scheme_of(where)] is opener


def test_a_scheme_that_nobody_opens_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"source='gopher://a/b': expected a path or one of file, .*rtsp"):
        open_source("gopher://a/b")


def test_a_camera_that_is_not_there_is_named() -> None:
    with pytest.raises(SourceError, match="/dev/video97: no frame could be read: no such file"):
        open_source("/dev/video97")


def test_files_generators_and_arrays_are_frame_sources(make_video: MakeVideo) -> None:
    opened = open_source(make_video(), fps=5.0)
    arrays = frames_from_arrays([picture(0), picture(1)], fps=2.0)
    for source in (opened, arrays):
        assert isinstance(source, FrameSource)
    assert [frame.pts for frame in arrays] == [0.0, 0.5]
    assert len(list(opened)) == 10


def test_a_source_that_is_closed_gives_no_more_frames(make_video: MakeVideo) -> None:
    source = open_source(make_video(times=[i / 10 for i in range(20)]))
    seen = []
    for frame in source:
        seen.append(frame.index)
        if frame.index == 3:
            source.close()
            source.close()
    assert seen == [0, 1, 2, 3]


class Counter:
    """A source of one's own: "counter://N" is N pictures."""

    def __init__(self, path: Any, fps: float | None, start: float, end: float | None) -> None:
        self.count, self.fps, self.closed = int(str(path).rpartition("/")[2]), fps or 1.0, False

    def __iter__(self) -> Iterator[Frame]:
        yield from (Frame(picture(i), i / self.fps, i) for i in range(self.count))

    def close(self) -> None:
        self.closed = True


def test_a_class_that_is_marked_with_a_scheme_is_opened_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_OPENERS", dict(registry.known_schemes()))
    registry.scheme("counter")(Counter)
    with Engine(NumpyVlm()).session(memory="1MiB", policy="window", kernel_threads=1) as session:
        assert session.append_video("counter://7", fps=2.0) == 7
        assert session.memory()["frames"] == 7
        assert np.isfinite(session.ask("what colour was the ball ?").logits).all()


def test_every_file_of_the_folder_is_looked_into_for_schemes() -> None:
    import mosaic_edge.sources as folder

    modules = {Path(opener.__module__.replace(".", "/")).name for opener in registry.known_schemes().values()}  # type: ignore[attr-defined]
    files = {path.stem for path in Path(folder.__path__[0]).glob("*.py")}
    assert {"files", "cameras"} <= modules <= files
