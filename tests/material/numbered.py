"""Videos whose frames carry their own number, as ten bars in the upper half."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT, BARS = 160, 96, 10
CODECS = {"avi": "mpeg4", "mpg": "mpeg2video"}


def numbered(number: int) -> np.ndarray:
    """uint8 [H, W, 3] that `number_of` reads."""
    image = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    image[: HEIGHT // 2] = 0
    for bar in range(BARS):
        if number >> bar & 1:
            image[: HEIGHT // 2, bar * WIDTH // BARS : (bar + 1) * WIDTH // BARS] = 255
    return image


def number_of(image: np.ndarray) -> int:
    """The number a picture carries, of any size."""
    height, width = image.shape[:2]
    cells = np.array_split(image[height // 8 : height // 3], BARS, axis=1)
    middles = (cell[:, cell.shape[1] // 4 : -(cell.shape[1] // 4) or None] for cell in cells)
    assert width >= BARS * 4
    return sum(1 << i for i, cell in enumerate(middles) if cell.mean() > 127)


def write_numbered(
    path: Path,
    times: Sequence[float],
    gop: int = 25,
    first: int = 0,
    bf: int = 0,
    pixel: Fraction | None = None,
    **options: str,
) -> Path:
    """A video of numbered frames at `times` seconds, in the container that the name ends in. pixel: how wide
    one is said to be to its height."""
    suffix = path.suffix[1:]
    codec = CODECS.get(suffix, "libx264")
    # A clock as fine as the codec has it; MPEG-2 and MPEG-4 count frames.
    base = Fraction(1, 25) if suffix in CODECS else Fraction(1, 1000 if suffix == "mkv" else 90000)
    settings = {"avoid_negative_ts": "disabled", **options}
    with av.open(str(path), "w", options=settings) as out:
        stream = out.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"bf": str(bf)} | ({"preset": "ultrafast"} if codec == "libx264" else {})
        stream.codec_context.gop_size, stream.codec_context.time_base = gop, base
        if pixel is not None:
            stream.codec_context.sample_aspect_ratio = pixel
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(numbered(first + i), format="rgb24")
            frame.pts, frame.time_base = round(Fraction(time) / base), base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path
