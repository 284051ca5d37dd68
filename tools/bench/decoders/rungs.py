"""The ladder of questions: what each rung takes away from the full cache, as settings of a session.

exact   everything kept and read, at 32 bits
kept    everything kept at 16 bits; frames and questions read what the policy lets them
chosen  what the policy keeps at a cap, nothing packed: as many pages as at the cap, in a wider one
packed  the product at a cap
disk    the same with a disk
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .product import Engine, MemoryCapError, Variant

RUNGS = ("exact", "kept", "chosen", "packed", "disk")
FULL = "full"
NARROW = "window"
NARROW_FRAMES = 4
"""SimpleStream (arXiv 2604.02317): the last four frames alone."""
PAGE_TOKENS = 16
EVERYTHING = 20
"""`kept`: a cap so many times the full cache, that pages of one token each hold all."""


@dataclass(frozen=True)
class Cell:
    """What a cell measures besides its stream. label: as tables name the policy."""

    label: str
    variant: Variant
    rung: str = "packed"
    cap_share: float | None = None
    """Of the 16-bit bytes of the full cache; None: what the policy needs."""
    disk: int = 0
    frames_read: int = 0
    """Sentences that a frame's tokens see; 0: what the policy lets them."""
    read_like: tuple[str, ...] = ()
    """Cells of the same stream and cap, of which the one that reads most sets how much this one keeps."""


def session_settings(
    engine: Engine, cell: Cell, base: dict[str, Any], full_bytes: int, frames: int, tokens: float | None
) -> dict[str, Any]:
    """Settings of Engine.session. frames: of the stream. tokens: to keep, a layer (read_like)."""
    policy = cell.variant.policy
    settings = {
        **base,
        **cell.variant.session,
        "policy": policy,
        "policy_settings": dict(cell.variant.policy_settings),
    }
    if cell.disk:
        settings["disk"] = cell.disk
    if cell.rung == "exact":
        settings["exact"] = "fp32"
    if policy == FULL:  # whatever codec the others have
        settings["packed"] = settings.get("exact", "fp16")
    as_product = dict(settings)
    if cell.rung in ("kept", "chosen"):
        settings["packed"] = settings["window_codec"] = settings.get("exact", "fp16")
    if policy == FULL:
        cap = holds(engine, settings, frames, full_bytes)
    elif policy == NARROW and cell.cap_share is None:
        exact = settings.get("exact", "fp16")
        settings |= {"window_frames": NARROW_FRAMES - 1, "packed": exact, "window_codec": exact}
        cap = holds(engine, settings, 1, 0)
    elif cell.rung == "kept":
        cap = EVERYTHING * full_bytes
    else:
        assert cell.cap_share is not None
        cap = int(cell.cap_share * full_bytes)
    if tokens is not None:
        cap = holds(engine, settings, _frames_of(engine, settings, tokens), 0)
    if cell.rung == "chosen":
        plan = engine.plan(**{**as_product, "memory": cap})  # a wider cap would choose other numbers
        settings |= {name: plan[name] for name in ("retrieve_tokens", "window_frames", "clusters", "scenes")}
        wanted = pages(engine, {**as_product, "memory": cap})
        cap = least(lambda size: pages(engine, {**settings, "memory": size}) >= wanted, cap - 1, cap)
    return {**settings, "memory": cap}


def holds(engine: Engine, settings: dict[str, Any], frames: int, low: int) -> int:
    """The least cap in bytes, above `low`, whose plan has pages of so many frames."""
    wanted: int = -(-engine.spec.tokens_per_frame // PAGE_TOKENS) * engine.spec.layers * frames

    def enough(cap: int) -> bool:
        try:
            return pages(engine, {**settings, "memory": cap}) >= wanted
        except MemoryCapError:
            return False

    return least(enough, low, 1 << 20)


def pages(engine: Engine, settings: dict[str, Any]) -> int:
    """Pages in DRAM of a plan."""
    return sum(tier["pages"] for tier in engine.plan(**settings)["tiers"] if tier["medium"] != "disk")


def least(enough: Callable[[int], bool], low: int, step: int) -> int:
    """The least number above `low` that is enough, to a ten-thousandth; what is enough stays so."""
    high: int = max(low, step)
    while not enough(high):
        low, high = high, 2 * high
        if high > 1 << 48:
            raise MemoryCapError("no cap is enough")
    while high - low > max(64, high // 10000):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _frames_of(engine: Engine, settings: dict[str, Any], tokens: float) -> int:
    """Frames in pages, besides first frame and window, that make `tokens` in all with the prefix."""
    longest = engine.spec.tokens_per_frame
    plan = engine.plan(**{**settings, "memory": "4GiB"})
    fixed = len(engine.model.tokenize(engine.spec.prefix)) + (1 + plan["window_frames"]) * longest
    return max(1, int((tokens - fixed) / longest + 0.5))
