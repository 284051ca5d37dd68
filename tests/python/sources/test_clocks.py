"""Clocks of streams: whatever they do, times rise, no picture is lost, and one that is off moves nobody."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from mosaic_edge.sources import SourceError, VideoSource
from mosaic_edge.sources.timeline import Ticks, Timeline
from numbered import number_of, write_numbered

HOUR = 3600.0
EPOCH = 1_795_000_000.0
UPTIME = 47 * 86400.0


def placed(
    raw: Sequence[float | None],
    step: float = 0.1,
    arrived: Sequence[float] | None = None,
    **settings: bool,
) -> dict[int, float]:
    """The time of each picture, by its number."""
    timeline: Timeline[int] = Timeline(step, **settings)
    found: list[tuple[int, float]] = []
    for i, time in enumerate(raw):
        found += timeline.take(i, time, None if arrived is None else arrived[i])
    found += timeline.rest()
    assert [i for i, _ in found] == sorted(i for i, _ in found)
    assert all(sooner < later for (_, sooner), (_, later) in pairwise(found))
    return dict(found)


def near(times: dict[int, float]) -> object:
    return pytest.approx(times, rel=0, abs=1e-5)


def steps(count: int, begin: float = 0.0) -> list[float]:
    return [begin + i / 10 for i in range(count)]


@pytest.mark.parametrize("begin", [0.0, -3.7, UPTIME, EPOCH, 95_443.0])
def test_a_clock_that_runs_is_kept_as_it_is(begin: float) -> None:
    assert placed(steps(7, begin)) == dict(enumerate(steps(7, begin)))


@pytest.mark.parametrize("at", [0, 1, 5, 11, 12])
@pytest.mark.parametrize("off", [-7 * HOUR, -5.0, 3 * HOUR, 900 * HOUR])
@pytest.mark.parametrize("begin", [0.0, EPOCH])
@pytest.mark.parametrize("breaks", [True, False])
def test_one_picture_that_is_off_moves_nobody_else(at: int, off: float, begin: float, breaks: bool) -> None:
    right = steps(13, begin)
    raw = list(right)
    raw[at] += off
    times = placed(raw, breaks=breaks)
    assert len(times) == 13
    others = {i: t for i, t in enumerate(right) if i != at}
    assert {i: t for i, t in times.items() if i != at} == near(others)
    if 0 < at < 12:
        assert right[at - 1] < times[at] < right[at + 1]


@pytest.mark.parametrize("second", [0.0, 0.65, -400.0, 7.3])
def test_a_clock_that_begins_anew_goes_on_after_what_was(second: float) -> None:
    raw = steps(23, 7.0) + steps(17, second)
    assert placed(raw) == near(dict(enumerate(steps(40, 7.0))))


def test_parts_of_a_tenth_of_a_second_are_joined_too() -> None:
    assert placed(steps(2) * 9) == near(dict(enumerate(steps(18))))


@pytest.mark.parametrize(("leap", "kept"), [(5.0, True), (20.0, False), (40 * HOUR, False)])
def test_a_leap_is_time_that_passed_or_a_new_clock_as_the_format_has_it(leap: float, kept: bool) -> None:
    raw = steps(5) + steps(5, leap)
    expected = steps(5) + steps(5, leap if kept else 0.5)
    assert placed(raw, breaks=True) == near(dict(enumerate(expected)))


def test_hours_between_two_pictures_are_kept_where_a_clock_cannot_break() -> None:
    lapse = [i * 2 * HOUR for i in range(9)]
    assert placed(lapse, step=2 * HOUR) == dict(enumerate(lapse))
    paused = steps(5) + steps(5, 5 * HOUR)
    assert placed(paused) == dict(enumerate(paused))


def test_pictures_without_a_time_follow_the_one_before() -> None:
    raw = [0.0, None, None, 0.3, None, 0.5]
    assert placed(raw) == near(dict(enumerate(steps(6))))
    assert placed([None] * 5) == near(dict(enumerate(steps(5))))


def test_a_picture_whose_time_was_given_already_is_not_given_twice() -> None:
    assert list(placed([0.0, 0.1, 0.1, 0.2, 0.15, 0.3])) == [0, 1, 3, 5]


def test_a_clock_that_stands_still_does_not_end_the_stream() -> None:
    times = placed([5.0] * 12)
    assert len(times) >= 11
    assert times[11] == pytest.approx(6.1, abs=0.2)


def test_a_live_clock_that_begins_anew_goes_on_by_what_passed() -> None:
    arrived = [100.0 + i / 10 for i in range(5)] + [109.0 + i / 10 for i in range(5)]
    expected = dict(enumerate([*steps(5, 30.0), *steps(5, 39.0)]))
    assert placed(steps(5, 30.0) + steps(5), arrived=arrived, breaks=True) == near(expected)
    assert placed(steps(5, 30.0) + steps(5, EPOCH), arrived=arrived, breaks=True) == near(expected)
    ran_on = [*steps(5, 30.0), *steps(5, 39.02)]
    assert placed(ran_on, arrived=arrived, breaks=True) == near(dict(enumerate(ran_on)))


def test_a_stream_without_a_clock_has_the_time_of_day_its_pictures_came(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("time.time", lambda: EPOCH)
    arrived = [50.0, 50.4, 50.4, 57.0]
    times = placed(steps(4), arrived=arrived, timeless=True)
    assert [round(t - EPOCH, 2) for t in times.values()] == [0.0, 0.4, 0.4, 7.0]


def test_random_clocks_lose_nothing_and_always_rise() -> None:
    generator = random.Random(5)
    for _ in range(300):
        raw: list[float | None] = []
        now = generator.choice([0.0, EPOCH, UPTIME])
        for _ in range(40):
            now += 0.1
            if generator.random() < 0.1:
                now = generator.choice([0.0, now - 5, now + 30 * HOUR, now + 4])
            raw.append(None if generator.random() < 0.1 else now)
        assert len(placed(raw, breaks=generator.random() < 0.5)) >= 36


@pytest.mark.parametrize("fps", [1e308, 1e7, 5e-324])
def test_no_rate_is_too_much(fps: float) -> None:
    ticks = Ticks(fps)
    taken = [ticks.take(time) for time in steps(9, EPOCH)]
    assert taken == ([True] * 9 if fps > 1 else [True] + [False] * 8)


Write = Callable[..., Path]


def shown(path: Path, **settings: float) -> list[tuple[int, float]]:
    return [(number_of(f.image), round(f.pts, 2)) for f in VideoSource(path, **settings)]  # type: ignore[arg-type]


def at_25(count: int, first: int = 0, begin: float = 0.0) -> list[tuple[int, float]]:
    return [(first + i, round(begin + i / 25, 2)) for i in range(count)]


@pytest.mark.parametrize("begin", [UPTIME, EPOCH])
def test_a_recording_stamped_with_a_clock_of_the_world_is_read_by_it(tmp_path: Path, begin: float) -> None:
    path = write_numbered(tmp_path / "wall.mkv", [begin + i / 25 for i in range(30)], gop=10)
    assert shown(path) == at_25(30, 0, begin)
    assert shown(path, start=begin + 0.5, end=begin + 0.72) == at_25(6, 13, begin + 0.52)[:5]


def joined(folder: Path, parts: Sequence[tuple[int, float]], gop: int = 25, bf: int = 0) -> Path:
    """Transport streams of so many frames, each with a clock that begins there, in one file."""
    data, first = b"", 0
    for i, (count, begin) in enumerate(parts):
        times = [begin + k / 25 for k in range(count)]
        data += write_numbered(folder / f"{i}.ts", times, gop=gop, first=first, bf=bf).read_bytes()
        first += count
    path = folder / "joined.ts"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("off", [5 * HOUR, -60.0])
def test_a_recording_with_one_frame_that_is_off_is_whole(tmp_path: Path, off: float) -> None:
    frames = shown(joined(tmp_path, [(17, 90.0), (1, 90.68 + off), (30, 90.72)]))
    assert [n for n, _ in frames] == list(range(48))
    assert [p for p in frames if p[0] != 17] == [p for p in at_25(48, 0, frames[0][1]) if p[0] != 17]


@pytest.mark.parametrize(
    "parts", [[(30, 0.0), (40, 0.0), (20, 0.0)], [(50, 900.0), (50, 3.0)], [(50, 0.0), (50, 7000.0)]]
)
@pytest.mark.parametrize("bf", [0, 2])
def test_joined_transport_streams_are_one_recording(
    tmp_path: Path, parts: list[tuple[int, float]], bf: int
) -> None:
    path = joined(tmp_path, parts, bf=bf)
    count, begin = sum(n for n, _ in parts), shown(path)[0][1]
    assert shown(path) == at_25(count, 0, begin)
    start = round(begin + 2.4, 2)
    assert shown(path, start=start) == at_25(count - 60, 60, start)


@pytest.mark.parametrize("discontinuity", [True, False])
def test_an_hls_playlist_is_one_recording_whatever_the_clocks_of_its_segments(
    tmp_path: Path, discontinuity: bool
) -> None:
    lines = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:1"]
    for i, begin in enumerate([0.0, 500.0, 20.0] if discontinuity else [0.0, 1.0, 2.0]):
        write_numbered(tmp_path / f"s{i}.ts", [begin + k / 25 for k in range(25)], gop=25, first=25 * i)
        lines += ["#EXT-X-DISCONTINUITY"] * (discontinuity and i > 0) + ["#EXTINF:1.0,", f"s{i}.ts"]
    path = tmp_path / "vod.m3u8"
    path.write_text("\n".join([*lines, "#EXT-X-ENDLIST"]) + "\n")
    frames = shown(path)
    assert frames == at_25(75, 0, frames[0][1])


@pytest.mark.parametrize("suffix", ["ts", "mpg", "h264", "mkv", "mp4", "avi"])
@pytest.mark.parametrize("gop", [7, 200])
def test_start_and_end_are_exact_in_every_container(tmp_path: Path, suffix: str, gop: int) -> None:
    path = write_numbered(tmp_path / f"clip.{suffix}", [k / 25 for k in range(120)], gop=gop)
    begin = shown(path)[0][1]
    for start, end in [(3.2, 3.6), (0.36, 0.44), (4.72, 9.0)]:
        first, last = round(start * 25), min(120, round(end * 25))
        got = shown(path, start=begin + start, end=begin + end)
        assert [n for n, _ in got] == list(range(first, last))


@pytest.mark.parametrize("suffix", ["ts", "h264", "mkv", "mp4"])
def test_what_lies_outside_is_one_clear_error(tmp_path: Path, suffix: str) -> None:
    path = write_numbered(tmp_path / f"clip.{suffix}", [k / 25 for k in range(50)], gop=10)
    with pytest.raises(SourceError, match=r"start=77: its last frame is at \d\.\d+ s"):
        shown(path, start=77)
    late = write_numbered(tmp_path / f"late.{suffix}", [30 + k / 25 for k in range(50)], gop=10)
    if suffix != "h264":  # it has no times
        with pytest.raises(SourceError, match=r"end=5: it begins at 3\d\.\d+ s"):
            shown(late, end=5)


def test_a_stretch_between_two_frames_has_none_and_is_no_error(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "clip.mkv", [0.0, 1.0, 5.0, 6.0])
    assert shown(path, start=2.0, end=3.0) == []


def test_a_file_whose_index_is_missing_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "clip.mkv", [k / 25 for k in range(100)], gop=100)
    data = path.read_bytes()
    cues = data.rindex(b"\x1c\x53\xbb\x6b")  # Matroska's index
    path.write_bytes(data[:cues] + b"\xec" + data[cues + 1 :])
    assert shown(path, start=3.0)[0] == (75, 3.0)


def test_an_edit_list_that_begins_late_or_ends_early_is_a_whole_file(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "clip.mp4", [k / 25 for k in range(100)], gop=25)
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 4  # version and flags, count, duration, media time, rate
    scale = int.from_bytes(data[data.index(b"mvhd") + 16 :][:4], "big")
    track = int.from_bytes(data[data.index(b"mdhd") + 16 :][:4], "big")
    duration, media = 2 * scale, track  # two seconds, from the second one on
    data[at + 8 : at + 12], data[at + 12 : at + 16] = duration.to_bytes(4, "big"), media.to_bytes(4, "big")
    path.write_bytes(data)
    numbers = [n for n, _ in shown(path)]
    assert numbers == list(range(25, 75))
    with av.open(str(path)) as container:
        assert np.isclose(float(container.duration or 0) / av.time_base, 2.0, atol=0.1)
