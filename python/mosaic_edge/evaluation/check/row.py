"""One thing that was compared, and how it came out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Row:
    """`what` was compared; equal: None where it could not be, `detail` then says why."""

    what: str
    equal: bool | None
    detail: str
    difference: float | None = None
    """The largest there is, in units of what is `allowed`."""
    allowed: float | None = None


NAMES = ("prompt", "pixels", "tokens a frame", "features", "positions", "logits", "greedy tokens")


def not_compared(names: Iterable[str], why: str) -> list[Row]:
    """Rows that say why they are none."""
    return [Row(name, None, f"not compared: {why}") for name in names]


def passed(rows: Iterable[Row]) -> bool:
    """Something was compared, and nothing differs."""
    verdicts = [row.equal for row in rows]
    return True in verdicts and False not in verdicts


def near(what: str, difference: float, allowed: float, of: str) -> Row:
    """Numbers that may differ by rounding. of: what the difference is a share of."""
    close = bool(difference <= allowed)  # NaN is not
    return Row(what, close, f"differ by {difference:.1e} of {of}, {allowed:.0e} allowed", difference, allowed)


def same_ids(what: str, ours: list[int], theirs: list[int], unit: str) -> Row:
    """Lists of numbers, the first difference named."""
    if ours == theirs:
        return Row(what, True, f"{len(ours)} {unit}")
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    if at is None:
        return Row(what, False, f"{len(ours)} {unit}, the script has {len(theirs)}")
    return Row(what, False, f"number {at} of {len(theirs)} {unit} is {ours[at]}, the script has {theirs[at]}")


def largest(a: NDArray[Any], b: NDArray[Any], unit: float) -> float:
    """The largest difference of two arrays, in units of `unit`; infinity for other shapes."""
    if a.shape != b.shape:
        return float("inf")
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0.0)) / max(unit, 1e-30)
