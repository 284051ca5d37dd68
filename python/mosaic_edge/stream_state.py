"""What a session knows of its stream beside the core's memory, and how that goes into a snapshot and back."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol

import numpy as np

from mosaic_edge.held_frame import HeldFrame
from mosaic_edge.models.vlm import FloatArray, VlmSpec
from mosaic_edge.question import seconds

_FAR_SECONDS = 1e6
"""A first frame's pts beyond it is a clock that did not begin with the stream (the time of day, or since a
machine went up): the core, which holds 31 years, is given what passed since."""
_MOST_SECONDS = 1e12
_GAPS = 31
_MOST_ARRAY_BYTES = 1 << 28
_MOST = 1 << 53


class Reads(Protocol):
    """A _core.SnapshotReader, as far as arrays are concerned."""

    def take(self, tag: str, most: int) -> bytes:
        """The next section, of at most so many bytes."""


class Writes(Protocol):
    """A _core.SnapshotWriter, as far as arrays are concerned."""

    def add(self, tag: str, data: Any) -> None:
        """A section of its own."""


@dataclass
class StreamState:
    """Counts, times and pictures of one stream."""

    gaps: deque[float]
    """Seconds between the newest frames."""
    held: HeldFrame
    """Frames of a picture that is not whole."""
    seen: int = 0
    """Tokens, those of the prefix among them."""
    frames: int = 0
    pictures: int = 0
    duplicates: int = 0
    """Frames that were left out as alike."""
    first_pts: float | None = None
    last_pts: float | None = None
    origin: float = 0.0
    """What the core counts seconds from."""
    talking: bool = False
    """The dialogue holds a turn."""
    past_context: bool = False
    """It was said that questions read more than the model has positions for."""
    kept_picture: FloatArray | None = field(default=None, repr=False)
    """Of the last frame that was no duplicate."""

    @classmethod
    def of(cls, spec: VlmSpec, prefix_tokens: int) -> StreamState:
        """Before the first frame."""
        gaps = deque([1.0 / spec.fps], maxlen=_GAPS)
        return cls(gaps, HeldFrame(spec.temporal_patch_size), prefix_tokens)

    @property
    def next_pts(self) -> float:
        """When a frame comes that does not say when: a frame time after the last."""
        return 0.0 if self.last_pts is None else self.last_pts + median(self.gaps)

    def begin(self, pts: Any) -> float:
        """When the frame that comes was seen, as seconds: `pts`, None: a frame time after the last.
        ValueError for a time before the last frame's, or that is none."""
        pts = seconds(self.next_pts if pts is None else pts, "pts")
        if self.last_pts is not None and pts < self.last_pts:
            raise ValueError(f"pts={pts}: before the last frame's, {self.last_pts}; pts must not fall")
        if abs(pts) > _MOST_SECONDS:
            raise ValueError(f"pts={pts}: expected seconds within +-{_MOST_SECONDS:g}")
        if self.first_pts is None:
            self.origin = pts if abs(pts) > _FAR_SECONDS else 0.0
        return pts

    def note_time(self, times: Iterable[float]) -> None:
        """Frames were seen: what counts as neighbouring moments follows the stream."""
        for pts in times:
            if self.first_pts is None:
                self.first_pts = pts
            if self.last_pts is None or pts > self.last_pts:
                if self.last_pts is not None:
                    self.gaps.append(pts - self.last_pts)
                self.last_pts = pts

    def is_alike(self, picture: FloatArray, limit: float) -> bool:
        """Whether a picture [tokens, width] says no more than the last one that was kept: mean cosine of its
        tokens, place by place. limit 0: none does."""
        before = self.kept_picture
        if not limit or before is None or before.shape != picture.shape:
            return False
        lengths = np.linalg.norm(picture, axis=1) * np.linalg.norm(before, axis=1)
        return bool(np.mean((picture * before).sum(axis=1) / np.maximum(lengths, 1e-30)) >= limit)

    def document(self) -> dict[str, Any]:
        """All but the pictures, as plain data; their shapes."""
        images, times = self.held.look()
        return {
            **{name: getattr(self, name) for name in (*_COUNTS, *_FLAGS, "first_pts", "last_pts", "origin")},
            "gaps": list(self.gaps),
            "held": [
                {"shape": list(image.shape), "pts": pts} for image, pts in zip(images, times, strict=True)
            ],
            "kept_picture": None if self.kept_picture is None else list(self.kept_picture.shape),
        }

    def save_pictures(self, writer: Writes) -> None:
        """Behind the core's sections, each from where it lies."""
        for image in self.held.look()[0]:
            writer.add("HELD", np.ascontiguousarray(image))
        if self.kept_picture is not None:
            writer.add("KEPT", np.ascontiguousarray(self.kept_picture))

    @classmethod
    def from_document(cls, spec: VlmSpec, document: Any) -> StreamState:
        """As `document()` made it, without the pictures. ValueError for what no session wrote."""
        said = _table(document, "stream")
        state = cls.of(spec, 0)
        for name in _COUNTS:
            setattr(state, name, _count(said.get(name), name))
        for name in _FLAGS:
            if not isinstance(said.get(name), bool):
                raise _wrong(name, "true or false")
            setattr(state, name, said[name])
        for name in ("first_pts", "last_pts"):
            setattr(state, name, None if said.get(name) is None else _seconds(said[name], name))
        state.origin = _seconds(said.get("origin"), "origin")
        gaps = said.get("gaps")
        if not isinstance(gaps, list) or not 0 < len(gaps) <= _GAPS:
            raise _wrong("gaps", f"1 to {_GAPS} times")
        state.gaps = deque([_seconds(gap, "gaps") for gap in gaps], maxlen=_GAPS)
        if min(state.gaps) <= 0 or (state.first_pts is None) != (state.last_pts is None):
            raise _wrong("gaps", "times that rise")
        return state

    def restore_pictures(self, spec: VlmSpec, document: Any, reader: Reads) -> None:
        """What save_pictures wrote. ValueError for pictures that this model has none of."""
        said = _table(document, "stream")
        held = said.get("held")
        if not isinstance(held, list) or len(held) >= max(spec.temporal_patch_size, 1):
            raise _wrong("held", f"fewer than {spec.temporal_patch_size} frames")
        for one in held:
            frame = _table(one, "held")
            shape = _shape(frame.get("shape"), "held", 3)
            if shape[2] != 3 or math.prod(shape) > _MOST_ARRAY_BYTES:
                raise _wrong("held", "a picture")
            image = np.frombuffer(_whole(reader, "HELD", math.prod(shape)), np.uint8).reshape(shape)
            if not self.held.fits(image):
                raise _wrong("held", "frames of one size")
            self.held.add(image, _seconds(frame.get("pts"), "held"))
        if said.get("kept_picture") is None:
            return
        shape = _shape(said["kept_picture"], "kept_picture", 2)
        if shape[0] > spec.tokens_per_frame or shape[1] > 1 << 20:
            raise _wrong("kept_picture", f"at most {spec.tokens_per_frame} tokens")
        picture = np.frombuffer(_whole(reader, "KEPT", 4 * math.prod(shape)), np.float32).reshape(shape)
        if not np.isfinite(picture).all():
            raise _wrong("kept_picture", "finite numbers")
        self.kept_picture = picture


_COUNTS = ("seen", "frames", "pictures", "duplicates")
_FLAGS = ("talking", "past_context")


def _whole(reader: Reads, tag: str, size: int) -> bytes:
    data = reader.take(tag, size)
    if len(data) != size:
        raise ValueError(f"snapshot: section {tag}: {len(data)} bytes, expected {size}")
    return data


def _wrong(name: str, expected: str) -> ValueError:
    return ValueError(f"snapshot: {name} of the stream: expected {expected}")


def _table(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(name, "a table")
    return value


def _count(value: Any, name: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST:
        return value
    raise _wrong(name, "a whole number, 0 or more")


def _seconds(value: Any, name: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e13:
        return float(value)
    raise _wrong(name, "seconds")


def _shape(value: Any, name: str, axes: int) -> Sequence[int]:
    if isinstance(value, list) and len(value) == axes:
        counts = [_count(length, name) for length in value]
        if min(counts) > 0:
            return counts
    raise _wrong(name, f"{axes} lengths")
