"""`mosaic-edge live` with a model that takes half a second for a frame, as a process: URL in, JSON out.

Of every frame that is looked at: its number, its time on the stream, and when it was taken (time.monotonic).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict

from mosaic_edge import stream_live
from mosaic_edge.engine import Engine
from mosaic_edge.sources import Frame, LiveSource
from numbered import number_of
from numpy_vlm import NumpyVlm

MODEL_S = 0.5


class Noted(LiveSource):
    """A live source that remembers what it gave."""

    looked: list[tuple[int, float, float]] = []  # noqa: RUF012  # of the one that this process opens

    def __iter__(self) -> Iterator[Frame]:
        for frame in super().__iter__():
            self.looked.append((number_of(frame.image), frame.pts, time.monotonic()))
            yield frame


if __name__ == "__main__":
    source = Noted(sys.argv[1], read_s=1.5)
    with Engine(NumpyVlm()).session(memory="1MiB", policy="window", kernel_threads=1) as session:
        ended = stream_live(session, source, progress=lambda pts, frames: time.sleep(MODEL_S))
    print(json.dumps({**asdict(ended), "looked": source.looked}))
