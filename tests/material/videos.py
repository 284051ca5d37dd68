"""Videos made on the spot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

MakeVideo = Callable[..., Path]


def picture(number: int, width: int, height: int) -> np.ndarray:
    """Noise (so that frames are big enough to cut) with the number as grey level: uint8 [H, W, 3]."""
    noise = np.random.default_rng(number).integers(0, 40, (height, width, 3), dtype=np.uint8)
    return noise + np.uint8(8 * (number % 24))


@pytest.fixture
def make_video(tmp_path: Path) -> MakeVideo:
    """Write a video of `picture`s (or of `images`) at the given times and return its path."""

    def make(
        name: str = "clip.mp4",
        times: Sequence[float] = tuple(i / 10 for i in range(20)),
        size: tuple[int, int] = (96, 64),
        images: Sequence[np.ndarray] | None = None,
        codec: str = "mpeg4",
        gop: int = 5,
    ) -> Path:
        path = tmp_path / name
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=10)
            stream.width, stream.height = size
            stream.pix_fmt = "yuv420p"
            stream.gop_size = gop
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
            stream.bit_rate = 2_000_000
            for number, time in enumerate(times):
                image = picture(number, *size) if images is None else images[number]
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return make
