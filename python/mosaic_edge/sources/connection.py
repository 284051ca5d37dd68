"""What a live source reads: one connection to a camera, whoever makes it (FFmpeg, OpenCV, GStreamer)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Picture(Protocol):
    """A picture that waits to be looked at, as it was decoded."""

    @property
    def nbytes(self) -> int:
        """What it takes while it waits."""
        ...

    def image(self) -> NDArray[np.uint8]:
        """RGB [H, W, 3], upright. ValueError where it does not convert."""
        ...


@dataclass(frozen=True, eq=False)
class RgbPicture:
    """A picture that came as pixels, of RGB or BGR."""

    pixels: NDArray[np.uint8]
    is_bgr: bool = False

    @property
    def nbytes(self) -> int:
        """What it takes while it waits."""
        return self.pixels.nbytes

    def image(self) -> NDArray[np.uint8]:
        """RGB [H, W, 3]."""
        return np.ascontiguousarray(self.pixels[:, :, :: -1 if self.is_bgr else 1])


class Connection(Protocol):
    """Made when it is opened (SourceError where that fails), read once by one thread, then closed by it."""

    rate: float | None
    """Pictures a second; None where it does not say."""
    timeless: bool
    """It has no times: pictures have those of their arrival."""
    patient: bool
    """Who sends can be made to wait."""

    @property
    def broken(self) -> int:
        """Packets and pictures that did not decode."""
        ...

    @property
    def broke_off(self) -> str | None:
        """Why there was nothing more to read; None: the sender ended it."""
        ...

    @property
    def over(self) -> bool:
        """Whether what ended is not to be opened again."""
        ...

    def pictures(self) -> Iterator[tuple[Picture, float | None]]:
        """Each with its time as the stream has it, s."""
        ...

    def abort(self) -> None:
        """From another thread: no need to go on."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...
