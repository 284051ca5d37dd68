"""Frames that wait for those they make one picture with: Qwen-VL reads two at a time."""

from __future__ import annotations

import numpy as np

from mosaic_edge.models.vlm import FrameArray


class HeldFrame:
    """At most one frame less than a picture has, each a copy: its owner may fill the same array again."""

    def __init__(self, together: int) -> None:
        self._together = together
        self._frames: list[FrameArray] = []
        self._times: list[float] = []

    def __len__(self) -> int:
        return len(self._frames)

    def fits(self, frame: FrameArray) -> bool:
        """Whether a frame can belong to the picture that has begun: they are all of one size."""
        return not self._frames or self._frames[0].shape == frame.shape

    def add(self, frame: FrameArray, pts: float) -> bool:
        """True when the picture is whole with it."""
        self._frames.append(np.array(frame))
        self._times.append(pts)
        return len(self._frames) == self._together

    def look(self) -> tuple[list[FrameArray], list[float]]:
        """Those there are, and when each was seen."""
        return self._frames, self._times

    def take(self) -> tuple[list[FrameArray], list[float]]:
        """The frames of a picture and when each was seen, the last one once more for those that are
        missing."""
        missing = self._together - len(self._frames)
        frames = self._frames + self._frames[-1:] * missing
        times = self._times + self._times[-1:] * missing
        self._frames, self._times = [], []
        return frames, times
