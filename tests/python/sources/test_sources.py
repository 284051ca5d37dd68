"""Every file streams to its end or to one clear error, in real time order."""

from __future__ import annotations

import gc
import weakref
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from mosaic_edge.sources import Frame, SourceError, VideoSource, frames_from_arrays

CLIPS = Path(__file__).resolve().parents[3].parent / "shared" / "clips"
VIDEO_ENDINGS = {".mp4", ".webm", ".mkv"}
# Clips that are broken on purpose, with the frames that decode at least.
BROKEN = {"h264-invalid-nalu.mp4": 20, "malformed-free-box-no-moov.mp4": 0, "vp9-invalid-bitstream.webm": 0}
clips = sorted(p for p in CLIPS.rglob("*") if p.suffix in VIDEO_ENDINGS) if CLIPS.is_dir() else []


def times(source: VideoSource) -> list[float]:
    return [round(frame.pts, 3) for frame in source]


def read(path: Path, **settings: float) -> tuple[list[Frame], SourceError | None]:
    """Frames before the end or the error, and the error."""
    frames: list[Frame] = []
    try:
        for frame in VideoSource(path, **settings):  # type: ignore[arg-type]
            frames.append(frame)  # noqa: PERF402  (kept when the loop raises)
    except SourceError as error:
        return frames, error
    return frames, None


def one_line(error: SourceError | None, path: Path) -> SourceError:
    assert error is not None
    assert "\n" not in str(error)
    assert str(path) in str(error)
    assert error.cause
    return error


def test_every_frame_comes_once_in_order_with_its_time(make_video):
    frames = list(VideoSource(make_video()))
    assert [f.index for f in frames] == list(range(20))
    assert [round(f.pts, 3) for f in frames] == [i / 10 for i in range(20)]
    assert all(f.image.shape == (64, 96, 3) and f.image.dtype == np.uint8 for f in frames)
    brightness = [float(f.image.mean()) for f in frames]
    assert brightness == sorted(brightness)


def test_a_source_can_be_read_twice(make_video):
    source = VideoSource(make_video())
    assert times(source) == times(source)


def test_facts_are_known_before_reading(make_video):
    source = VideoSource(make_video())
    assert source.first == 0
    assert source.rate == pytest.approx(10, rel=0.1)
    assert source.duration == pytest.approx(2.0, abs=0.15)


def test_sampling_takes_the_first_frame_at_or_after_each_tick(make_video):
    assert times(VideoSource(make_video(), fps=2)) == [0.0, 0.5, 1.0, 1.5]
    assert times(VideoSource(make_video(), fps=4)) == [0.0, 0.3, 0.5, 0.8, 1.0, 1.3, 1.5, 1.8]


@pytest.mark.parametrize("fps", [10, 1000])
def test_asking_for_more_frames_than_there_are_gives_each_once(make_video, fps):
    assert len(times(VideoSource(make_video(), fps=fps))) == 20


def test_millisecond_rounding_of_matroska_drops_no_frame(make_video):
    path = make_video("clip.mkv", times=[i / 30 for i in range(60)])
    assert len(times(VideoSource(path, fps=30))) == 60


def test_ticks_do_not_drift(make_video):
    path = make_video(times=[i / 29.97 for i in range(600)], size=(32, 32))
    taken = times(VideoSource(path, fps=3))
    assert len(taken) == 60
    assert all(0 <= time - i / 3 < 0.034 for i, time in enumerate(taken))


@pytest.mark.parametrize("name", ["vfr.mp4", "vfr.mkv"])
def test_a_variable_frame_rate_is_sampled_by_time(make_video, name):
    shown = [0.0, 0.05, 0.1, 0.9, 1.0, 1.02, 1.04, 2.7, 2.75, 5.0]
    path = make_video(name, times=shown)
    assert times(VideoSource(path)) == shown
    assert times(VideoSource(path, fps=1)) == [0.0, 1.0, 2.7, 5.0]
    assert times(VideoSource(path, fps=2)) == [0.0, 0.9, 1.0, 2.7, 5.0]


@pytest.mark.parametrize("name", ["late.mp4", "late.mkv"])
def test_a_first_time_other_than_zero_is_kept(make_video, name):
    path = make_video(name, times=[10 + i / 10 for i in range(10)])
    source = VideoSource(path, fps=5)
    assert times(source) == [10.0, 10.2, 10.4, 10.6, 10.8]
    assert source.first == pytest.approx(10.0)


def test_start_and_end_cut_on_the_files_timeline(make_video):
    path = make_video(times=[i / 10 for i in range(100)])
    assert times(VideoSource(path, start=3.33, end=3.8)) == [3.4, 3.5, 3.6, 3.7]
    assert times(VideoSource(path, fps=2, start=8.0)) == [8.0, 8.5, 9.0, 9.5]
    with pytest.raises(SourceError, match=r"start=500: its last frame is at 9\.90 s"):
        times(VideoSource(path, start=500))


def test_pictures_are_freed_as_they_pass_and_not_when_the_garbage_collector_comes(make_video):
    path = make_video(times=[i / 10 for i in range(40)])

    def pictures() -> int:
        return sum(isinstance(thing, av.VideoFrame) for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = pictures()
        alive = [pictures() - before for _ in VideoSource(path)]
    finally:
        gc.enable()
    assert len(alive) == 40
    assert max(alive) <= 8  # what decoder and generator hold


@pytest.mark.parametrize("size", [(97, 65), (33, 31), (161, 121)])
def test_odd_sizes_keep_their_size(make_video, size):
    path = make_video("odd.webm", times=[0, 0.1, 0.2], size=size, codec="libvpx-vp9")
    assert {f.image.shape for f in VideoSource(path)} == {(size[1], size[0], 3)}


def test_one_frame_is_a_video(make_video):
    assert times(VideoSource(make_video(times=[0.0]), fps=1)) == [0.0]


def test_audio_is_ignored(tmp_path):
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=8000)
        for _ in range(10):
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
        container.mux(audio.encode(silence(80_000)))  # ten seconds: longer than the video, and no truncation
        container.mux(video.encode(None) + audio.encode(None))
    assert len(times(VideoSource(path))) == 10


def silence(samples: int) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, samples), np.int16), format="s16", layout="mono")
    frame.rate = 8000
    return frame


# Display matrices: (a, b, c, d) with x' = a x + c y, y' = b x + d y. All eight turns and mirrors.
TURNS = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)]
MIRRORS = [(-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)]


@pytest.mark.parametrize("matrix", TURNS + MIRRORS)
def test_rotation_and_mirror_metadata_are_applied(make_video, matrix):
    height, width = 48, 80
    corners = {
        (-1, -1): (220, 20, 20),
        (1, -1): (20, 220, 20),
        (-1, 1): (20, 20, 220),
        (1, 1): (220, 220, 220),
    }
    image = np.zeros((height, width, 3), np.uint8)
    for (x, y), colour in corners.items():
        image[half(y, height), half(x, width)] = colour
    path = make_video(times=[0, 0.1], size=(width, height), images=[image, image])
    set_matrix(path, matrix)

    shown = next(iter(VideoSource(path))).image
    a, b, c, d = matrix
    assert shown.shape == ((width, height, 3) if b else (height, width, 3))
    for (x, y), colour in corners.items():
        patch = shown[half(b * x + d * y, shown.shape[0]), half(a * x + c * y, shown.shape[1])]
        middle = patch[patch.shape[0] // 2, patch.shape[1] // 2].astype(int)
        assert np.abs(middle - colour).max() < 40, f"corner {x, y}"


def half(side: int, length: int) -> slice:
    return slice(0, length // 2) if side < 0 else slice(length // 2, length)


def set_matrix(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write a display matrix into the track header of an mp4."""
    a, b, c, d = (v * 65536 for v in matrix)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44  # version 0: the nine matrix words start here
    data[at : at + 36] = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4").tobytes()
    path.write_bytes(data)


def with_index_first(path: Path) -> Path:
    """The same mp4 with its index before the data, so that a cut-off copy still opens."""
    copy = path.with_name("fast-" + path.name)
    with av.open(str(path)) as old, av.open(str(copy), "w", options={"movflags": "faststart"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    return copy


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv"])
def test_a_truncated_file_gives_its_frames_then_one_error(make_video, name):
    path = make_video(name, times=[i / 10 for i in range(60)])
    path = with_index_first(path) if name.endswith("mp4") else path
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    frames, error = read(path)
    assert 25 <= len(frames) <= 40
    assert one_line(error, path).reached == pytest.approx(frames[-1].pts)


def test_an_mp4_cut_before_its_index_says_so(make_video):
    path = make_video(times=[i / 10 for i in range(60)])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    frames, error = read(path)
    assert frames == []
    assert one_line(error, path).reached is None
    assert "moov" in str(error)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["bits.mp4", "bits.mkv"])
def test_flipped_bits_end_well_or_in_one_error(make_video, name, seed):
    path = make_video(name, times=[i / 10 for i in range(30)])
    data = bytearray(path.read_bytes())
    generator = np.random.default_rng(seed)
    for at in generator.integers(len(data) // 10, len(data), 12):
        data[at] ^= 1 << int(generator.integers(8))
    path.write_bytes(data)
    frames, error = read(path, fps=5)
    assert [f.pts for f in frames] == sorted({f.pts for f in frames})
    if error is not None:
        one_line(error, path)


def test_what_is_no_video_is_refused_before_any_frame(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("this is no video\n" * 100)
    for name, words in [
        ("missing.mp4", "no such file"),
        ("", "directory"),
        ("empty.mp4", "empty"),
        ("text.mp4", "readable"),
    ]:
        path = tmp_path / name if name else tmp_path
        with pytest.raises(SourceError, match=words) as caught:
            VideoSource(path)
        assert one_line(caught.value, path).reached is None


def test_a_file_with_sound_only_is_refused(tmp_path):
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        audio = container.add_stream("pcm_s16le", rate=8000)
        container.mux(audio.encode(silence(800)))
        container.mux(audio.encode(None))
    with pytest.raises(SourceError, match="no video stream"):
        VideoSource(path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fps": 0}, "fps: got 0"),
        ({"fps": float("nan")}, "fps: got nan"),
        ({"start": -1}, "start: got -1"),
        ({"start": 5, "end": 5}, "end: got 5"),
        ({"stream": 7}, "stream: got 7"),
    ],
)
def test_settings_out_of_range_name_what_was_got(make_video, settings, words):
    with pytest.raises(ValueError, match=words):
        VideoSource(make_video(), **settings)


def test_times_that_jump_back_go_on_rising(make_video, tmp_path):
    # A transport stream recorded twice into one file: the second part starts at the first one's time again.
    part = make_video("part.ts").read_bytes()
    path = tmp_path / "joined.ts"
    path.write_bytes(part + part)
    frames, _ = read(path)
    shown = [f.pts for f in frames]
    assert len(shown) >= 38
    assert all(later > sooner for sooner, later in pairwise(shown))


def test_frames_are_not_kept(make_video):
    seen = []
    for frame in VideoSource(make_video(times=[i / 10 for i in range(50)])):
        seen.append(weakref.ref(frame.image))
        assert frame.image.shape == (64, 96, 3)
        del frame
        gc.collect()
        assert sum(image() is not None for image in seen) <= 1
    assert len(seen) == 50


def test_arrays_become_frames_with_times():
    images = [np.full((5, 7, 3), i, np.uint8) for i in range(4)]
    frames = list(frames_from_arrays(iter(images), fps=4, start=2))
    assert [(f.pts, f.index) for f in frames] == [(2.0, 0), (2.25, 1), (2.5, 2), (2.75, 3)]
    assert all(f.image is image for f, image in zip(frames, images, strict=True))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((5, 7, 4), np.uint8), r"frame 0: got uint8 \[5, 7, 4\]"),
        (np.zeros((5, 7), np.uint8), r"frame 0: got uint8 \[5, 7\]"),
        (np.zeros((5, 7, 3), np.float32), r"frame 0: got float32 \[5, 7, 3\]"),
        ([[1, 2, 3]], "frame 0: got list"),
    ],
)
def test_arrays_of_another_shape_or_type_are_refused(image, words):
    with pytest.raises(ValueError, match=words):
        next(frames_from_arrays([image], fps=1))


needs_clips = pytest.mark.skipif(not clips, reason="the clips lie beside the repository, not in it")


@needs_clips
@pytest.mark.parametrize("path", clips, ids=lambda p: p.name)
def test_every_clip_streams_to_its_end_or_to_one_error(path):
    frames, error = read(path, fps=2, **({"end": 20.0} if "long-black" in path.name else {}))
    shown = [f.pts for f in frames]
    assert shown == sorted(set(shown))
    if path.name in BROKEN:
        one_line(error, path)
        assert len(frames) >= BROKEN[path.name] // 15
    else:
        assert error is None
        assert len(frames) >= 2


@needs_clips
def test_clips_show_what_their_list_says():
    late = VideoSource(CLIPS / "decoder" / "avc-2b-firstpts-10s.mp4", end=10.1)
    assert times(late)[0] == 10.0
    odd = VideoSource(CLIPS / "decoder" / "bear-vp9-odd-161x121.webm", end=0.1)
    assert next(iter(odd)).image.shape == (121, 161, 3)
    turned = VideoSource(CLIPS / "decoder" / "rotate-and-reflect.mp4", end=0.1)
    assert next(iter(turned)).image.shape == (1080, 720, 3)
    best = next(iter(VideoSource(CLIPS / "nasa_13013.mp4", end=0.1))).image.shape
    first = next(iter(VideoSource(CLIPS / "nasa_13013.mp4", end=0.1, stream=0))).image.shape
    assert (best, first) == ((270, 480, 3), (180, 320, 3))
