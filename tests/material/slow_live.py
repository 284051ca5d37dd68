"""`mosaic-edge live` with a model that takes half a second for a frame, as a process: URL in, JSON out.

Of every frame that is looked at: its number, its time on the stream, and when it was taken (time.monotonic);
and how many newer ones had been read by then.
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
from mosaic_edge.sources.connection import Picture
from mosaic_edge.sources.newest import NewestFirst
from numbered import number_of
from numpy_vlm import NumpyVlm

MODEL_S = 0.5


class Counted(NewestFirst):
    """Counts what waits behind a picture, at the moment that it is taken."""

    newer: list[int] = []  # noqa: RUF012  # of the one source that this process opens

    def take(self) -> tuple[Picture, float] | None:
        with self._changed:  # nothing comes between the two
            taken = super().take()
            if taken is not None:
                self.newer.append(len(self))
            return taken


class Noted(LiveSource):
    """A live source that remembers what it gave."""

    looked: list[tuple[int, float, float]] = []  # noqa: RUF012  # of the one that this process opens

    def __iter__(self) -> Iterator[Frame]:
        for frame in super().__iter__():
            self.looked.append((number_of(frame.image), frame.pts, time.monotonic()))
            yield frame

    def _new_queue(self) -> NewestFirst:
        return Counted()


if __name__ == "__main__":
    source = Noted(sys.argv[1], read_s=1.5)
    with Engine(NumpyVlm()).session(memory="1MiB", policy="window", kernel_threads=1) as session:
        ended = stream_live(session, source, progress=lambda pts, frames: time.sleep(MODEL_S))
    print(json.dumps({**asdict(ended), "looked": source.looked, "newer": Counted.newer}))
