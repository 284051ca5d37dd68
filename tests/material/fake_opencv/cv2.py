"""A cv2 of the few names that mosaic_edge uses. A "video" is an .npy of numbers: a picture each, 25 a second;
one below zero does not decode. What it was opened with stands in `opened`."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

CAP_FFMPEG, CAP_V4L2 = 1900, 200
CAP_PROP_POS_MSEC, CAP_PROP_FPS = 0, 5
CAP_PROP_OPEN_TIMEOUT_MSEC, CAP_PROP_READ_TIMEOUT_MSEC = 53, 54
opened: list[tuple[Any, ...]] = []


class VideoCapture:
    """Numbers as grey pictures whose blue is 7."""

    def __init__(self, path: str, *how: Any) -> None:
        opened.append((path, *how, os.environ.get("OPENCV_FFMPEG_CAPTURE_OPTIONS")))
        try:
            self._numbers = np.load(path.removeprefix("tcp://"))
        except (OSError, ValueError):
            self._numbers = None
        self._at = -1

    def isOpened(self) -> bool:  # noqa: N802
        return self._numbers is not None

    def get(self, what: int) -> float:
        return {CAP_PROP_POS_MSEC: self._at * 40.0, CAP_PROP_FPS: 25.0}[what]

    def grab(self) -> bool:
        self._at += 1
        return self._at < len(self._numbers)

    def retrieve(self) -> tuple[bool, Any]:
        number = int(self._numbers[self._at])
        picture = np.full((6, 10, 3), number % 256, np.uint8)
        picture[:, :, 0] = 7
        return number >= 0, picture

    def release(self) -> None:
        self._numbers = np.empty(0)
