"""Files that name other files: FFmpeg would follow one that comes back to itself until memory is gone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mosaic_edge.sources import SourceError, VideoSource, open_source
from numbered import number_of, write_numbered

OF_PLAYLISTS = "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{}\n"
RENDITION = '#EXTM3U\n#EXT-X-MEDIA:TYPE=VIDEO,GROUP-ID="a",NAME="b",URI="{}"\n'


def refused(path: Path | str) -> str:
    with pytest.raises(SourceError) as error:
        open_source(path, 1.0)
    return str(error.value)


@pytest.mark.parametrize("form", [OF_PLAYLISTS, RENDITION])
@pytest.mark.parametrize(
    "name", ["a.m3u8", "./a.m3u8", "none/../a.m3u8", "file:a.m3u8", "{folder}/a.m3u8", "b.m3u8", "a.mp4"]
)
def test_a_playlist_that_comes_back_to_a_playlist_of_playlists_is_refused(
    tmp_path: Path, form: str, name: str
) -> None:
    (tmp_path / "a.m3u8").write_text(form.format(name.format(folder=tmp_path)))
    (tmp_path / "b.m3u8").write_text(OF_PLAYLISTS.format("a.m3u8"))
    (tmp_path / "a.mp4").symlink_to("a.m3u8")
    assert "it is a playlist of playlists that names another" in refused(tmp_path / "a.m3u8")


def test_a_list_that_is_too_long_or_names_what_is_no_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.m3u8"
    path.write_text("#EXTM3U\n" + "".join(f"#EXT-X-STREAM-INF:BANDWIDTH=1\n{i}.m3u8\n" for i in range(1001)))
    assert "more than 1000 playlists" in refused(path)
    path.write_text(OF_PLAYLISTS.format("a.m3u8") + "#" * (1 << 20))
    assert "more than 1000 playlists" in refused(path)
    path.write_text(OF_PLAYLISTS.format("data:application/x-mpegurl;base64,I0VYVE0zVQo="))
    assert "expected files" in refused(path)


def test_a_list_of_files_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_text("ffconcat version 1.0\nfile 'a.mp4'\n")
    assert "it is a list of files (ffconcat), not a video" in refused(path)


@pytest.mark.parametrize("text", ["ffconcat version 1.0\nfile 'a.mp4'\n", OF_PLAYLISTS.format("a.mp4")])
@pytest.mark.parametrize("scheme", ["file://", "FILE://", "file:////"])
def test_a_url_of_a_file_is_looked_at_as_its_path_is(tmp_path: Path, text: str, scheme: str) -> None:
    path = tmp_path / "a.mp4"
    path.write_text(text)
    assert refused(path).replace(str(path), "") == refused(f"{scheme}{path}").replace(str(path), "")


@pytest.mark.parametrize(
    "held", [lambda path: path.read_bytes(), lambda path: path.open("rb")], ids=["bytes", "open"]
)
@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile 'whole.ts'\n",
        "ffconcat version 1.0\nfile 'a.mp4'\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\nwhole.ts\n#EXT-X-ENDLIST\n",
        OF_PLAYLISTS.format("whole.ts"),
    ],
    ids=["a list", "a list of itself", "a playlist", "a playlist of playlists"],
)
def test_what_is_in_hand_opens_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, held: Callable[[Path], Any]
) -> None:
    write_numbered(tmp_path / "whole.ts", [k / 25 for k in range(25)])
    path = tmp_path / "a.mp4"
    path.write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="not a readable video"):
        list(open_source(held(path), None))


@pytest.mark.parametrize("form", [None, OF_PLAYLISTS])
def test_a_playlist_of_a_recording_is_a_video_and_so_is_one_that_names_it(
    tmp_path: Path, form: str | None
) -> None:
    write_numbered(tmp_path / "whole.ts", [k / 25 for k in range(25)])
    path = tmp_path / "list.m3u8"
    path.write_text(
        "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\nwhole.ts\n#EXT-X-ENDLIST\n"
    )
    if form is not None:
        path = tmp_path / "several.m3u8"
        path.write_text(form.format("list.m3u8"))
    assert [number_of(frame.image) for frame in VideoSource(path)] == list(range(25))
