"""What programs hold pictures in, as RGB: NumPy, PIL, torch, PyAV, the bytes of a JPEG, an open file."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

_EXPECTED = "expected uint8 [H, W, 3]"
_MOST_PIXELS = 1 << 28
"""Of a picture: an array may say that it is of any size and hold a byte (broadcast, expand)."""


def as_rgb(frame: Any) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] of an array or what NumPy makes one of; a PIL image (turned as its EXIF says); a
    torch tensor ([H, W, 3] or, as torch has pictures, [3, H, W]; on any device); a frame of PyAV; an
    encoded picture (bytes, or a binary file). ValueError for anything else; nothing is guessed of floats."""
    try:
        image: NDArray[Any] = _reader(frame)(frame)
    except Exception as error:  # of its own class: whatever the object raises when it is asked for its pixels
        why = " ".join(str(error).split())[:200]
        raise ValueError(f"frame: cannot be read as an array ({why})") from error
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"frame: {_EXPECTED}, got {image.dtype} {list(image.shape)}")
    if image.shape[0] * image.shape[1] > _MOST_PIXELS:
        raise ValueError(f"frame: {list(image.shape)}: expected at most {_MOST_PIXELS} pixels")
    return image


def _reader(frame: Any) -> Callable[[Any], NDArray[Any]]:
    module = type(frame).__module__.partition(".")[0]
    if module == "PIL":
        return _of_pil
    if module == "torch":
        return _of_torch
    if module == "av":
        return _of_av
    if isinstance(frame, bytes | bytearray | memoryview) or hasattr(frame, "read"):
        return _of_encoded
    return np.asarray


def _of_pil(image: Any) -> NDArray[Any]:
    from PIL import ImageOps

    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def _of_torch(tensor: Any) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    planes = array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3
    return np.ascontiguousarray(array.transpose(1, 2, 0)) if planes else array


def _of_av(picture: Any) -> NDArray[Any]:
    from mosaic_edge.sources.decoding import upright

    return upright(picture)


def _of_encoded(held: Any) -> NDArray[Any]:
    from mosaic_edge.sources import VideoSource

    source = VideoSource(held if hasattr(held, "read") else bytes(held))
    for frame in islice(source, 1):
        return frame.image
    raise ValueError("there is no picture in it")
