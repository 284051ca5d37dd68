"""The brush: shapes, room backgrounds and the light of the lively world, in plain NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .words import COLOURS, ROOMS, SHAPES

Image = NDArray[np.float32]  # [H, W, 3], 0..255

PAD = 0.14
"""How far a panorama reaches beyond the frame on each side, share of the frame: the room the camera has to
pan."""

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40), "yellow": (240, 208, 32), "green": (32, 160, 48), "cyan": (40, 208, 216),
    "blue": (40, 64, 208), "purple": (160, 40, 176), "white": (246, 246, 246), "black": (14, 14, 14),
}  # fmt: skip

# room: wall, floor, height of the floor's edge
_ROOM_LOOK: dict[str, tuple[tuple[int, int, int], tuple[int, int, int], float]] = {
    "kitchen": ((200, 182, 142), (116, 96, 78), 0.62),
    "garden": ((138, 168, 192), (92, 126, 76), 0.50),
    "garage": ((124, 124, 126), (78, 78, 82), 0.70),
    "office": ((172, 180, 188), (88, 102, 130), 0.66),
    "hall": ((184, 124, 104), (140, 124, 108), 0.74),
    "attic": ((120, 90, 66), (172, 140, 98), 0.56),
    "cellar": ((66, 72, 82), (112, 102, 92), 0.64),
    "studio": ((152, 134, 176), (104, 84, 108), 0.60),
    "library": ((96, 66, 58), (70, 96, 88), 0.68),
    "bathroom": ((132, 186, 176), (180, 178, 170), 0.58),
    "bedroom": ((190, 148, 166), (126, 100, 134), 0.72),
    "porch": ((154, 164, 108), (146, 114, 84), 0.54),
}

assert set(PALETTE) == set(COLOURS) and set(_ROOM_LOOK) == set(ROOMS)


def coverage(
    shape: str, x: NDArray[np.float32], y: NDArray[np.float32], pixels: float
) -> NDArray[np.float32]:
    """Share of each pixel that `shape` covers; x, y in radii from its centre, `pixels` a radius in pixels."""
    ax, ay = np.abs(x), np.abs(y)
    rho = np.sqrt(x * x + y * y)
    if shape == "ball":
        d = rho - 0.95
    elif shape == "box":
        d = np.maximum(ax, ay) - 0.84
    elif shape == "cone":
        d = np.maximum(y - 0.85, (ax * 1.85 - (y + 1.0) * 0.95) / 2.08)
    elif shape == "star":
        fifth = 2 * np.pi / 5
        angle = np.abs((np.arctan2(x, -y) + fifth / 2) % fifth - fifth / 2)
        d = (rho - (1.08 - 0.68 * angle / (fifth / 2))) * 0.7
    elif shape == "ring":
        d = np.abs(rho - 0.74) - 0.24
    elif shape == "cross":
        d = np.minimum(np.maximum(ax - 1.0, ay - 0.30), np.maximum(ax - 0.30, ay - 1.0))
    elif shape == "moon":
        d = np.maximum(rho - 1.0, 0.82 - np.sqrt((x - 0.52) ** 2 + (y + 0.1) ** 2))
    elif shape == "diamond":
        d = (ax / 0.66 + ay - 1.05) * 0.55
    else:
        raise ValueError(f"unknown shape {shape!r}; known: {' '.join(SHAPES)}")
    return np.clip(0.5 - d * pixels, 0.0, 1.0).astype(np.float32)


def draw_object(image: Image, shape: str, colour: str, x: float, y: float, radius: float) -> None:
    """Paint one object onto `image` in place; x, y, radius in shares of the frame."""
    size = image.shape[0]
    cx, cy, r = x * size - 0.5, y * size - 0.5, max(radius * size, 1e-3)
    x0, x1 = max(0, int(cx - r * 1.15) - 1), min(image.shape[1], int(cx + r * 1.15) + 3)
    y0, y1 = max(0, int(cy - r * 1.15) - 1), min(size, int(cy + r * 1.15) + 3)
    if x0 >= x1 or y0 >= y1:
        return
    gx = ((np.arange(x0, x1, dtype=np.float32) - cx) / r)[None, :]
    gy = ((np.arange(y0, y1, dtype=np.float32) - cy) / r)[:, None]
    gx, gy = np.broadcast_arrays(gx, gy)
    alpha = coverage(shape, gx, gy, r)[..., None]
    patch = image[y0:y1, x0:x1]
    patch += alpha * (np.asarray(PALETTE[colour], np.float32) - patch)


def _pattern(kind: int, u: NDArray[np.float32], v: NDArray[np.float32], waves: float, phase: float) -> Image:
    """A smooth texture in -1..1 over coordinates u, v (shares of the frame)."""
    w = 2 * np.pi * waves
    a, b = np.sin(w * u + phase), np.sin(w * v + 1.7 * phase)
    if kind == 0:
        return a + 0 * v
    if kind == 1:
        return b + 0 * u
    if kind == 2:
        return np.clip(3 * a * b, -1, 1)
    if kind == 3:
        return np.sin(0.7 * w * (u + v) + phase)
    if kind == 4:
        return np.maximum(a, b)
    return np.sin(w * u + phase + 1.5 * b)


def panorama(room: str, size: int, lively: bool, rng: np.random.Generator | None = None) -> Image:
    """The background of `room`, [S, S, 3] with S = size (plain) or size plus the pan's margin (lively)."""
    wall, floor, edge = _ROOM_LOOK[room]
    margin = round(PAD * size) if lively else 0
    axis = ((np.arange(size + 2 * margin) - margin + 0.5) / size).astype(np.float32)
    u, v = axis[None, :], axis[:, None]
    share = np.clip(0.5 + (v - edge) * size, 0, 1)[..., None]  # of floor
    wall_colour, floor_colour = np.asarray(wall, np.float32), np.asarray(floor, np.float32)
    if not lively or rng is None:
        image = (1 - share) * wall_colour + share * floor_colour
        return np.repeat(image, len(axis), axis=1).astype(np.float32)
    k = ROOMS.index(room)
    high = _pattern(k % 6, u, v, 2.0 + 0.5 * (k // 2 % 4), float(k))[..., None]
    low = _pattern((k + 2) % 6, u, v, 3.0 + 0.5 * (k % 3), float(2 * k))[..., None]
    image = (1 - share) * (wall_colour + 13 * high) + share * (floor_colour + 11 * low)
    for _ in range(int(rng.integers(3, 7))):
        _clutter(image, u, v, size, rng)
    return np.asarray(image, np.float32)


def _clutter(
    image: Image, u: NDArray[np.float32], v: NDArray[np.float32], size: int, rng: np.random.Generator
) -> None:
    """One dull box or blob, close to grey and half transparent: never one of the named colours."""
    x, y = rng.uniform(-PAD, 1 + PAD, 2)
    w, h = rng.uniform(0.03, 0.16, 2)
    if rng.random() < 0.5:
        d = np.maximum(np.abs(u - x) - w, np.abs(v - y) - h)
    else:
        d = (np.hypot((u - x) / w, (v - y) / h) - 1) * min(w, h)
    alpha = 0.65 * np.clip(0.5 - d * size, 0, 1)[..., None]
    dull = rng.uniform(70, 170) + rng.uniform(-14, 14, 3)
    image += (alpha * (dull - image)).astype(image.dtype)
