"""Files that look odd: what is attached to pictures, names, tags, what is encrypted, what is broken."""

from __future__ import annotations

import io
import multiprocessing
import pickle
import socket
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from mosaic_edge.sources import SourceError, VideoSource, open_source
from numbered import HEIGHT, WIDTH, number_of, numbered, write_numbered


def numbers(path: Any, **settings: Any) -> list[int]:
    return [number_of(frame.image) for frame in VideoSource(path, **settings)]


def jpeg(number: int, orientation: int | None = None, **more: Any) -> bytes:
    exif = Image.Exif()
    exif[0x10F] = "a camera"
    if orientation is not None:
        exif[0x112] = orientation
    held = io.BytesIO()
    Image.fromarray(numbered(number)).save(held, "JPEG", exif=exif, quality=95, **more)
    return held.getvalue()


def mux(path: Path, codec: str, packets: list[bytes]) -> Path:
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        for i, data in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.pts, packet.dts, packet.duration = stream, i, i, 1
            packet.time_base, packet.is_keyframe = Fraction(1, 10), True
            out.mux(packet)
    return path


# EXIF's orientation n: what is to be done to the stored picture so that it is upright.
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: np.rot90(p),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_photograph_is_turned_and_mirrored_as_its_exif_says(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(jpeg(37, orientation))
    (frame,) = VideoSource(path)
    expected = UPRIGHT[orientation](numbered(37))
    assert frame.image.shape == expected.shape
    assert np.abs(frame.image.astype(int) - expected).mean() < 12


@pytest.mark.parametrize("name", ["cam.avi", "cam.mkv", "cam.mov"])
def test_motion_jpeg_with_exif_in_every_picture_is_whole(tmp_path: Path, name: str) -> None:
    path = mux(tmp_path / name, "mjpeg", [jpeg(i) for i in range(9)])
    assert numbers(path) == list(range(9))


@pytest.mark.parametrize(
    "name", ["2026-11-29T10:30:00.mp4", "concat:a.mp4", "http:x.mkv", "a?b#c.mp4", "50%.mp4", "grün ünd.mkv"]
)
def test_a_relative_name_is_a_name_whatever_is_in_it(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_numbered(tmp_path / f"plain{Path(name).suffix}", [0.0, 0.04, 0.08]).rename(tmp_path / name)
    assert numbers(name) == [0, 1, 2]


def test_a_name_that_is_not_utf_8_is_one_too(tmp_path: Path) -> None:
    path = tmp_path / b"\xff\xfe.mp4".decode(errors="surrogateescape")
    write_numbered(tmp_path / "plain.mp4", [0.0, 0.04]).rename(path)
    assert numbers(path) == [0, 1]


@pytest.mark.parametrize(("suffix", "tag"), [("avi", b"Latin-1"), ("mkv", b"titleXX"), ("mp4", b"cometXX")])
def test_tags_that_are_not_utf_8_are_nobodys_business(tmp_path: Path, suffix: str, tag: bytes) -> None:
    path = tmp_path / f"tagged.{suffix}"
    write_numbered(path, [0.0, 0.04, 0.08])
    with av.open(str(path)) as old, av.open(str(tmp_path / f"new.{suffix}"), "w") as new:
        new.metadata["title"] = new.metadata["comment"] = tag.decode()
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    data = (tmp_path / f"new.{suffix}").read_bytes()
    assert tag in data
    path.write_bytes(data.replace(tag, b"\xff\xe4\xfc" + tag[3:]))
    assert numbers(path) == [0, 1, 2]


@pytest.mark.parametrize("suffix", ["mkv", "avi", "mp4"])
@pytest.mark.parametrize("at", [3, 11, 19])
def test_one_broken_packet_costs_its_own_frame_on_any_number_of_cores(
    tmp_path: Path, suffix: str, at: int
) -> None:
    packets = [jpeg(i) for i in range(20)]
    packets[at] = b"\xff\xd8" + b"\x17" * 60
    path = mux(tmp_path / f"broken.{suffix}", "mjpeg", packets)
    seen: list[int] = []
    with pytest.raises(SourceError, match="does not decode"):
        for frame in VideoSource(path):
            seen.append(number_of(frame.image))  # noqa: PERF401  (kept when the loop raises)
    assert seen == [i for i in range(20) if i != at]


def test_a_broken_packet_in_h264_costs_no_frame_of_another_group(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "clip.mkv", [i / 25 for i in range(60)], gop=10)
    with av.open(str(path)) as container:
        sizes = [p.size for p in container.demux(video=0)]
        container.seek(0)
        broken = next(bytes(p) for i, p in enumerate(container.demux(video=0)) if i == 30)
    data = path.read_bytes()
    assert data.count(broken) == 1 and sizes[30] == len(broken)
    path.write_bytes(data.replace(broken, b"\xff" * len(broken)))
    seen: list[int] = []
    with pytest.raises(SourceError):
        for frame in VideoSource(path):
            seen.append(number_of(frame.image))  # noqa: PERF401  (kept when the loop raises)
    assert [n for n in seen if not 30 <= n < 40] == [n for n in range(60) if not 30 <= n < 40]


def encrypted_mp4(path: Path) -> Path:
    key = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "11" * 16, "encryption_kid": "22" * 16}
    return write_numbered(path, [i / 25 for i in range(20)], gop=5, **key)


def scrambled_ts(path: Path, said: int = 0x80) -> Path:
    data = bytearray(write_numbered(path, [i / 25 for i in range(40)], gop=5).read_bytes())
    for at in range(0, len(data), 188):
        if int.from_bytes(data[at + 1 : at + 3], "big") & 0x1FFF == 0x100:  # the video
            data[at + 3] |= said
            data[at + 12 : at + 188] = bytes(b ^ 0x5A for b in data[at + 12 : at + 188])
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [("a.mp4", encrypted_mp4, "common encryption, cenc"), ("a.ts", scrambled_ts, "scrambled MPEG-TS")],
)
def test_what_is_encrypted_is_said_to_be(
    tmp_path: Path, name: str, make: Callable[[Path], Path], said: str
) -> None:
    with pytest.raises(SourceError, match=f"it is encrypted .*{said}"):
        numbers(make(tmp_path / name))


def test_a_broken_file_is_not_said_to_be_encrypted(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        numbers(scrambled_ts(tmp_path / "clip.ts", said=0))
    assert "encrypted" not in str(caught.value)


def flagged(path: Path, images: list[np.ndarray], **flags: Any) -> Path:
    """A video of the pictures as they are, by a codec that says what is asked of pixels and fields."""
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("mpeg2video", rate=25, options=flags.pop("options", {}))
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 20_000_000
        for name, value in flags.items():
            setattr(stream, name, value)
        for image in images:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("ratio", "width"), [((16, 15), 171), ((4, 3), 213), ((3, 4), 120), ((1, 1), 160)])
def test_pixels_that_are_not_square_are_made_so(tmp_path: Path, ratio: tuple[int, int], width: int) -> None:
    for name in ("wide.mkv", "wide.ts"):
        path = write_numbered(tmp_path / name, [i / 25 for i in range(9)], pixel=Fraction(*ratio))
        frames = list(VideoSource(path))
        assert {frame.image.shape for frame in frames} == {(HEIGHT, width, 3)}
        assert [number_of(frame.image) for frame in frames] == list(range(9))


def test_an_interlaced_picture_shows_one_time_and_no_combs(tmp_path: Path) -> None:
    woven = np.zeros((96, 160, 3), np.uint8)
    woven[::2, 40:80] = 255  # a bar, and where it is a field later
    woven[1::2, 80:120] = 255
    path = flagged(tmp_path / "i.mpg", [woven] * 3, options={"flags": "+ildct+ilme", "top": "1"})
    for frame in VideoSource(path):
        rows = frame.image[10:86].astype(int)
        assert rows[:, 50:70].min() > 180
        assert rows[:, 90:110].max() < 75


def pq_signal(nits: float) -> float:
    """SMPTE ST 2084's inverse curve."""
    y = (nits / 10000) ** 0.1593017578125
    return float(((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375)


def hlg_signal(nits: float) -> float:
    """ARIB STD-B67's curve, on a display of 1000 cd/m2 (system gamma 1.2)."""
    scene = (nits / 1000) ** (1 / 1.2)
    return (
        float(np.sqrt(3 * scene))
        if scene <= 1 / 12
        else 0.17883277 * np.log(12 * scene - 0.28466892) + 0.55991073
    )


@pytest.mark.parametrize(("transfer", "curve"), [(16, pq_signal), (18, hlg_signal)])
def test_a_picture_of_high_dynamic_range_is_as_bright_as_one_of_the_usual(
    tmp_path: Path, transfer: int, curve: Callable[[float], float]
) -> None:
    nits = [0.0, 5.0, 26.0, 100.0, 203.0, 400.0, 1000.0]
    codes = np.array([round(1023 * curve(n)) for n in nits], np.uint16)
    grey = np.broadcast_to(np.repeat(codes, 16)[None, :, None], (32, 16 * len(nits), 3)) << 6
    path = tmp_path / "hdr.mkv"
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = grey.shape[1], 32, "gbrp10le"
        stream.codec_context.color_trc, stream.codec_context.color_primaries = transfer, 9
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(grey), format="rgb48le")
        frame = frame.reformat(format="gbrp10le")
        frame.color_trc, frame.color_primaries = transfer, 9
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    (shown,) = VideoSource(path)
    row = shown.image[16, 8::16].astype(int)
    assert np.ptp(row, axis=1).max() <= 2, "grey stays grey"
    level = row.mean(axis=1)
    assert (np.diff(level) > 5).all()
    assert level[0] <= 1 and level[-1] >= 250
    assert 175 <= level[4] <= 210, "white of 203 cd/m2 is three quarters of the range"
    assert 85 <= level[2] <= 120, "and middle grey is middle"


class Listener:
    """A port that notes who connects."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.asked = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                peer, _ = self.socket.accept()
            except OSError:
                return
            self.asked += 1
            peer.close()


@pytest.mark.parametrize("name", ["list.m3u8", "clip.mp4", "list.ffconcat"])
@pytest.mark.parametrize("scheme", ["http", "tcp", "crypto+http", "rtsp"])
def test_a_playlist_in_a_local_file_connects_to_nobody(tmp_path: Path, name: str, scheme: str) -> None:
    listener = Listener()
    url = f"{scheme}://127.0.0.1:{listener.port}/a.ts"
    hls = f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\n{url}\n#EXT-X-ENDLIST\n"
    path = tmp_path / name
    path.write_text(f"ffconcat version 1.0\nfile '{url}'\n" if name.endswith("concat") else hls)
    with pytest.raises(SourceError):
        numbers(path)
    assert listener.asked == 0
    listener.socket.close()


def count(path: str) -> int:
    return len(list(VideoSource(path)))


def test_a_source_error_crosses_processes_as_it_is() -> None:
    for error in (SourceError("a b.mp4", 1.25, "it ends"), SourceError(Path("x"), None, "no  file\nhere")):
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), again.path, again.reached, again.cause) == (
            str(error),
            error.path,
            error.reached,
            error.cause,
        )
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        asked = pool.apply_async(count, ("/there/is/none.mp4",))
        with pytest.raises(SourceError, match="no such file"):
            asked.get(60)


def test_bytes_and_open_files_are_videos_too(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "clip.mp4", [i / 25 for i in range(30)], gop=10)
    data = path.read_bytes()
    assert numbers(data) == numbers(io.BytesIO(data)) == list(range(30))
    with path.open("rb") as file:
        source = open_source(file, 25.0, 0.5, 0.7)
        assert [number_of(f.image) for f in source] == [13, 14, 15, 16, 17]
        assert [number_of(f.image) for f in source] == [13, 14, 15, 16, 17]
        assert not file.closed
    with pytest.raises(SourceError, match=r"<7 bytes>: no frame could be read"):
        VideoSource(b"nothing")


def test_a_source_that_is_never_read_holds_no_file_open(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "clip.mp4", [0.0, 0.04])
    for _ in range(5):
        open_source(path).close()
    held = [file for file in Path("/proc/self/fd").iterdir() if file.exists() and file.samefile(path)]
    assert not held
