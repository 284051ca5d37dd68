"""What a row of an evaluation is about, as written on the command line: policy variants, caps, cells.

"mosaic,infinipot-v[alpha=1;van=0]" are two variants; "2%,10%,512KiB" are three caps.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Any

from mosaic_edge import _core
from mosaic_edge.config import SessionConfig, format_bytes, parse_bytes

Setting = float | int | bool | str

FULL = "full"
"""The reference: holds everything, so it has one row, with the bytes it needs, and no disk."""

GIVEN = ("memory", "policy", "policy_settings", "disk", "spill_dir")
"""Fields of SessionConfig that the evaluation sets itself."""


@dataclass(frozen=True)
class Variant:
    """A policy with what is set differently from its defaults."""

    label: str
    policy: str
    policy_settings: dict[str, Setting] = field(default_factory=dict)
    """Of the policy."""
    session: dict[str, Setting] = field(default_factory=dict)
    """Fields of SessionConfig (packed, summaries, prefetch, retrieve_tokens, ...)."""


@dataclass(frozen=True)
class Cap:
    """A cap as a share of the full cache or as bytes; exactly one of the two is given."""

    share: float | None = None
    size: int | None = None

    @property
    def label(self) -> str:
        """As tables name it: 5% or 512.0 KiB."""
        return format_bytes(self.size) if self.size is not None else f"{100 * (self.share or 0):g}%"

    def bytes_of(self, full: int) -> int:
        """Bytes, where the full cache takes `full`."""
        return self.size if self.size is not None else int((self.share or 0) * full)

    def share_of(self, full: int) -> float:
        """Share of a full cache of `full` bytes."""
        return self.share if self.share is not None else (self.size or 0) / full


@dataclass(frozen=True)
class Cell:
    """What one row measures over its seeds. disk: bytes of the spill file, 0 for none."""

    difficulty: str
    frames: int
    variant: Variant
    cap: Cap
    disk: int = 0

    @property
    def label(self) -> str:
        """The policy with its disk, as tables and plots name it."""
        return self.variant.label + (" + disk" if self.disk else "")


def parse_caps(text: str) -> tuple[Cap, ...]:
    """Caps separated by commas, shares and sizes mixed: "2%,512KiB". ValueError names the part."""
    caps = []
    for part in text.split(","):
        share = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", part)
        size = re.fullmatch(r"\s*\d+(?:\.\d+)?\s*[a-zA-Z]+\s*", part)
        if share is not None and 0 < float(share[1]) <= 1000:
            caps.append(Cap(share=float(share[1]) / 100))
        elif size is not None:
            caps.append(Cap(size=parse_bytes(part, "caps")))
        else:
            raise ValueError(f"caps={part.strip()!r}: expected a share such as 10% or a size such as 512KiB")
    return tuple(dict.fromkeys(caps))


def parse_policies(text: str) -> tuple[Variant, ...]:
    """Names separated by commas, each perhaps with settings: "mosaic,mosaic[packed=int8;adaptive=0]".

    A key that is a field of SessionConfig goes there, any other to the policy, which refuses what it does not
    know when it is built. ValueError names the part.
    """
    parts = re.split(r",(?![^\[]*\])", text)
    variants = [parse_variant(part) for part in parts]
    return tuple({variant.label: variant for variant in variants}.values())


def parse_variant(text: str) -> Variant:
    """One part of parse_policies."""
    match = re.fullmatch(r"\s*([\w.-]+)\s*(?:\[([^\[\]]*)\])?\s*", text)
    if match is None:
        raise ValueError(
            f"policies={text.strip()!r}: expected names such as mosaic or mosaic[key=value;key=value]"
        )
    name, inside = match[1], match[2]
    known = list(_core.policies())
    if name not in known:
        raise ValueError(f"policy={name!r} is unknown; there are {', '.join(known)}")
    settings: dict[str, Setting] = {}
    session: dict[str, Setting] = {}
    defaults = {f.name: f.default for f in fields(SessionConfig)}
    for pair in (inside or "").split(";") if inside is not None else ():
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not (key and equals and value):
            raise ValueError(f"policies={text.strip()!r}: expected key=value, got {pair.strip()!r}")
        if key in GIVEN:
            raise ValueError(f"policies={text.strip()!r}: {key}= is set by the evaluation")
        if key in settings or key in session:
            raise ValueError(f"policies={text.strip()!r}: {key}= is given twice")
        if key in defaults:
            session[key] = _like(defaults[key], value, f"policies={text.strip()!r}: {key}")
        else:
            settings[key] = _value(value)
    said = ";".join(f"{key}={_text(value)}" for key, value in {**session, **settings}.items())
    return Variant(f"{name}[{said}]" if said else name, name, settings, session)


def _value(text: str) -> Setting:
    """A bool, an int, a float, else the text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    try:
        return float(text)
    except ValueError:
        return text


def _like(default: Any, text: str, knob: str) -> Setting:
    """`text` as the kind of value that `default` is; 0 and 1 are flags too."""
    value = _value(text)
    if isinstance(default, bool):
        if value not in (True, False):
            raise ValueError(f"{knob}={text}: expected true or false")
        return bool(value)
    if isinstance(default, int | float):
        whole = isinstance(value, int) or isinstance(default, float)
        if isinstance(value, bool | str) or not whole:
            raise ValueError(
                f"{knob}={text}: expected a {'whole ' if isinstance(default, int) else ''}number"
            )
        return value
    return text


def _text(value: Setting) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
