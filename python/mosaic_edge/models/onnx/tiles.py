"""An encoder that is given tiles of a picture and the picture's size (LLaVA-NeXT): one frame goes to it as
the smallest picture of that family, a single tile, or a single tile with the picture as a whole before it.

No signature says which, nor whether an export was made for other numbers of tiles alone: it is found by
running. Every tile has to make rows of its own, as many as the others; rows that no tile changes stand
between (line breaks).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mosaic_edge.models.sandbox import OF_THE_MACHINE
from mosaic_edge.models.vlm import FloatArray, ModelError

PADDED = {"phi3_v", "phi3v", "phi4mm", "phi4_multimodal"}
"""Families, by model_type, that pad a picture to a square with borders."""
_PART = 0.1
"""Of the largest change, from which on a row counts as changed: 8-bit encoders share a scale."""
_SAME = 1e-3
"""Of the largest number, what threads may change from run to run."""

Run = Callable[[FloatArray, "np.ndarray[Any, Any]"], FloatArray]
"""run(pixels [1, N, 3, H, W], image_sizes [1, 2]) -> tokens [T, hidden]."""


@dataclass(frozen=True)
class Tiles:
    """How often a frame's one picture is given."""

    count: int
    rows: tuple[int, ...]
    """Which tokens are the picture's; the others stand between."""
    tokens: int

    @property
    def plain(self) -> bool:
        """Whether the tokens are one picture and nothing else."""
        return self.count == 1 and len(self.rows) == self.tokens

    def stacked(self, pixels: FloatArray) -> FloatArray:
        """[1, 3, H, W] -> [1, count, 3, H, W]."""
        return np.repeat(pixels[None], self.count, axis=1)


def size_of(pixels: FloatArray) -> np.ndarray[Any, Any]:
    """[[H, W]] of [..., H, W]."""
    return np.array([pixels.shape[-2:]])


def tiles_of(run: Run, height: int, width: int, family: str, where: str) -> Tiles:
    """The smallest picture that an encoder takes. ModelError with what came of each."""
    if family in PADDED:
        raise ModelError(
            f"{where}: takes tiles and image_sizes; {family} pads a picture to a square before it is cut, "
            "which is not done here"
        )
    said: list[str] = []
    found: list[Tiles] = []
    for count in (1, 2):
        try:
            tiles = _rows_of_tiles(run, count, height, width)
        except (ModelError, *OF_THE_MACHINE):  # a run that does not end, features of another width
            raise
        except Exception as error:  # ONNX Runtime raises a different class for every cause
            tiles = " ".join(str(error).split())[:160]
        if isinstance(tiles, Tiles):
            found.append(tiles)
        else:
            said.append(f"{count}: {tiles}")
    if found:
        # With a tile less there are fewer tokens, or what stands for the tile is left of another run.
        return found[0] if found[0].tokens < found[-1].tokens else found[-1]
    raise ModelError(
        f"{where}: takes tiles and image_sizes, and a frame of {height} x {width} pixels cannot be given as "
        f"one tile, nor as one behind the whole picture; by number of tiles: {'; '.join(said)}"
    )


def _rows_of_tiles(run: Run, count: int, height: int, width: int) -> Tiles | str:
    """What is wrong, in words, where tiles do not each make rows of their own."""
    random = np.random.default_rng(0)
    shown = random.standard_normal((2, count, 3, height, width), np.float32)
    size = np.array([[height, width]])
    first = run(shown[:1], size)
    if not np.isfinite(first).all():
        return "NaN or infinity among its tokens"
    owned: list[set[int]] = []
    for tile in range(count):
        other = shown[:1].copy()
        other[0, tile] = shown[1, tile]
        changed = np.abs(run(other, size) - first).max(axis=1)
        owned.append({int(i) for i in np.flatnonzero(changed > _PART * changed.max())})
    if np.abs(run(shown[:1], size) - first).max() > _SAME * np.abs(first).max():
        return "the same pixels make other tokens when it is run again"
    sizes, rows = {len(rows) for rows in owned}, sorted(set().union(*owned))
    if sizes == {0}:
        return "its tokens do not depend on pixels"
    if len(sizes) > 1 or len(rows) != count * sizes.pop():
        return "tiles do not make tokens of their own"
    most = count * (math.isqrt(len(rows) // count - 1) + 2)  # a break behind each line and each tile
    if len(first) - len(rows) > most:
        return f"{len(first) - len(rows)} of its {len(first)} tokens are no tile's"
    return Tiles(count, tuple(rows), len(first))
