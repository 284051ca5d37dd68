"""Pictures in high dynamic range (PQ of HDR10 and Dolby Vision, HLG) as the 8 bits that models were shown.

To light, as BT.2100 has it; white of BT.2408 (203 cd/m2) to three quarters of the range, what is brighter
above it by Reinhard's curve; BT.2020's primaries to BT.709's; and back to a signal. As it is, it looks grey.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from av import VideoFrame
from numpy.typing import NDArray

PQ, HLG = 16, 18
"""SMPTE ST 2084 and ARIB STD-B67, as FFmpeg numbers what a signal means."""
WHITE_NITS, PEAK_NITS = 203.0, 1000.0

_TO_709: NDArray[np.float32] = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
"""BT.2087: light in BT.2020's primaries, in BT.709's."""


def is_hdr(picture: VideoFrame) -> bool:
    """Whether its signal is one of high dynamic range."""
    return int(getattr(picture, "color_trc", 0)) in (PQ, HLG)  # older PyAV does not say


def tone_mapped(picture: VideoFrame, width: int) -> NDArray[np.uint8]:
    """RGB [H, width, 3] of a picture that is_hdr."""
    signal: NDArray[Any] = picture.to_ndarray(format="rgb48le", width=width)
    light = _light(int(picture.color_trc))[signal >> 4] @ _TO_709.T
    return _signal()[(np.clip(light, 0.0, 1.0) * 4095.0 + 0.5).astype(np.uint16)]


@cache
def _light(transfer: int) -> NDArray[np.float32]:
    """Of a signal of 12 bits: light mapped into 0 to 1."""
    e = np.arange(4096) / 4095.0
    if transfer == PQ:
        root = e ** (32 / 2523)
        ratio = np.maximum(root - 3424 / 4096, 0.0) / (2413 / 128 - 2392 / 128 * root)
        nits = 10000.0 * ratio ** (8192 / 1305)
    else:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        nits = PEAK_NITS * np.where(e <= 0.5, e**2 / 3.0, (np.exp((e - c) / a) + b) / 12.0) ** 1.2
    x, most = nits / WHITE_NITS, PEAK_NITS / WHITE_NITS
    return np.minimum(x * (1.0 + x / most**2) / (1.0 + x), 1.0).astype(np.float32)


@cache
def _signal() -> NDArray[np.uint8]:
    """Of light in 12 bits: what a display of BT.1886 makes that light of."""
    return np.round(255.0 * (np.arange(4096) / 4095.0) ** (1 / 2.4)).astype(np.uint8)
