"""What an evaluation and a stress run are told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mosaic_edge import DEFAULT_POLICY, _core
from mosaic_edge.config import parse_bytes
from mosaic_edge.evaluation.variants import Cap, Variant, parse_caps, parse_policies
from mosaic_edge.models import TINY
from mosaic_edge.world.world import Difficulty, checked_seed


@dataclass(frozen=True)
class EvalSettings:
    """What is measured. Every field is part of the key under which a finished cell is kept."""

    policies: tuple[Variant, ...] = field(default_factory=lambda: parse_policies(",".join(_core.policies())))
    caps: tuple[Cap, ...] = parse_caps("100%,25%,10%,5%,2%")
    """Of the full cache: frames x tokens per frame x 16-bit keys and values of all layers; or bytes."""
    lengths: tuple[int, ...] = (512,)
    """Frames of a stream, one a second."""
    seeds: tuple[int, ...] = (7, 8)
    difficulties: tuple[str, ...] = ("plain", "lively")
    questions: int = 96
    """Per stream."""
    disk: str | None = None
    """Quota with which the policies that retrieve get a second row; None: what does not fit is gone."""
    model: str = TINY
    load: dict[str, Any] = field(default_factory=dict)
    """Keywords of Engine.load."""
    session: dict[str, Any] = field(default_factory=dict)
    """More fields of SessionConfig, the same for every policy."""

    def __post_init__(self) -> None:
        for difficulty in self.difficulties:
            if difficulty not in ("plain", "lively"):
                raise ValueError(f"difficulty={difficulty!r} is unknown; expected plain or lively")
        for name in ("policies", "caps", "lengths", "seeds", "difficulties"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected at least one")
        for length in self.lengths:
            if not 16 <= length < 1 << 24:
                raise ValueError(f"lengths={length}: expected 16 to {(1 << 24) - 1} frames")
        for seed in self.seeds:
            checked_seed(seed, "seeds")
        if self.questions < 1:
            raise ValueError(f"questions={self.questions}: expected at least 1")
        if self.disk is not None:
            parse_bytes(self.disk, "disk")


@dataclass(frozen=True)
class StressSettings:
    """What is streamed, and what counts as a breach."""

    memory: str = "32MiB"
    frames: int = 100_000
    policy: str = DEFAULT_POLICY
    disk: str | None = None
    """Quota of the spill file; None: four times the cap; "none": no disk."""
    faults: int = 0
    """Every nth page read from, written to and given a slot on disk fails; 0: none.

    On the CPU those are all the copies there are: pages in DRAM are read where they lie.
    """
    difficulty: Difficulty = "plain"
    seed: int = 7
    ask_every: int = 50
    check_every: int = 1000
    """Frames between two recounts of every invariant."""
    warm_up: float = 0.25
    """Share of the frames after which RSS must not grow; it lasts on until every DRAM tier has been full."""
    allow: str = "8MiB"
    """RSS may grow by so much after warm-up: the interpreter's and the allocator's noise."""
    model: str = "mosaic-tiny"
    load: dict[str, Any] = field(default_factory=dict)
    """Keywords of Engine.load."""
    session: dict[str, Any] = field(default_factory=dict)
    """More fields of SessionConfig (trace=, window_frames=, ...)."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("frames", 16, 1_000_000),
            ("ask_every", 1, None),
            ("check_every", 1, None),
            ("faults", 0, None),
        ):
            value = getattr(self, name)
            if value < low or (high is not None and value > high):
                raise ValueError(
                    f"{name}={value}: expected {low:,} to {high:,}"
                    if high
                    else f"{name}={value}: at least {low}"
                )
        checked_seed(self.seed)
        if not 0 < self.warm_up < 1:
            raise ValueError(f"warm_up={self.warm_up:g}: expected a share between 0 and 1")
        if self.difficulty not in ("plain", "lively"):
            raise ValueError(f"difficulty={self.difficulty!r}: expected plain or lively")
        if self.faults and self.disk == "none":
            raise ValueError(
                f"faults={self.faults}: faults are of disk pages; disk='none' leaves nothing to fail"
            )
        parse_bytes(self.memory)
        parse_bytes(self.allow, "allow")
        if self.disk not in (None, "none"):
            parse_bytes(self.disk, "disk")

    @property
    def disk_bytes(self) -> int | None:
        """Quota of the spill file in bytes, None without one."""
        if self.disk == "none":
            return None
        return 4 * parse_bytes(self.memory) if self.disk is None else parse_bytes(self.disk, "disk")
