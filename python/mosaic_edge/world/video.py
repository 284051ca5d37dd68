"""A world as a real video file: H.264 in mp4, one presentation time per frame."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

from .world import World


def write_mp4(
    path: str | Path,
    world: World,
    fps: int = 8,
    size: int = 192,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Encode all of `world` at `fps` frames a second, `size` x `size` pixels; frame i is shown at i / fps
    seconds.

    `progress(done, total)` is called after every frame. Returns `path`.
    """
    import av

    if size % 2 or size < 16:
        raise ValueError(f"size={size} must be even and at least 16")
    if fps < 1:
        raise ValueError(f"fps={fps} must be at least 1")
    total = max(1, int(world.seconds * fps))
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "20", "preset": "veryfast"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        for i in range(total):
            frame = av.VideoFrame.from_ndarray(world.render(i / fps, size), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, fps)
            container.mux(stream.encode(frame))
            if progress is not None:
                progress(i + 1, total)
        container.mux(stream.encode())
    return Path(path)
