"""What a source of frames is: anything that gives frames with their times one after the other, and can be
closed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Where: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO"
"""A path, a URL, the bytes of a file, or a binary file that is open for reading."""


def is_held(where: object) -> bool:
    """Whether it is the contents of a file, or an open one, and no name."""
    return isinstance(where, bytes) or hasattr(where, "read")


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a stream.

    image: uint8 [H, W, 3] RGB, upright. pts: seconds on the stream's own timeline, which need not start at 0;
    it always rises. index: how many frames this source gave before it.
    """

    image: NDArray[np.uint8]
    pts: float
    index: int


@runtime_checkable
class FrameSource(Protocol):
    """Frames in order, one at a time. A generator of Frame is one; so is what a robot wraps its camera in.

    A source that breaks off raises SourceError, once, after the frames it could give.
    """

    def __iter__(self) -> Iterator[Frame]:
        """The frames; their pts rise."""
        ...

    def close(self) -> None:
        """Give back what the source holds; no frame comes afterwards. Closing twice is fine."""
        ...


class SourceError(ValueError):
    """A source that cannot be read, or not to its end: path, seconds reached (None: no frame) and cause."""

    exit_code = 1

    def __init__(self, path: str | os.PathLike[str], reached: float | None, cause: str) -> None:
        self.path = os.fspath(path)
        self.reached = reached
        self.cause = " ".join(cause.split())
        where = "no frame could be read" if reached is None else f"read up to {reached:.2f} s"
        super().__init__(f"{self.path}: {where}: {self.cause}")

    def __reduce__(self) -> tuple[type[SourceError], tuple[str, float | None, str]]:
        return type(self), (self.path, self.reached, self.cause)
