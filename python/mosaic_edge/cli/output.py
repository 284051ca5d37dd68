"""What commands print: results on stdout, as tables or as one JSON document; what went wrong on stderr."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import typer
from rich.console import Console

from mosaic_edge.config import format_bytes


def console() -> Console:
    """Results on stdout: as wide as the terminal, or wide enough for every table in a pipe."""
    width = None if sys.stdout.isatty() else 160
    return Console(width=width, highlight=False)


def end_with(error: str | None, code: int) -> None:
    """End the command with `code` and one line, if there is an error."""
    if error is not None:
        print(f"mosaic-edge: {error}", file=sys.stderr)
        raise typer.Exit(code)


def print_json(document: dict[str, Any]) -> None:
    """One document on stdout; a number JSON does not know becomes null."""
    print(json.dumps(_plain(document), indent=1, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def clock(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss from an hour on."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def taken(memory: dict[str, Any]) -> str:
    """Bytes taken of the cap, of Session.memory()."""
    return f"{format_bytes(memory['taken_bytes'])} of a cap of {format_bytes(memory['cap_bytes'])}"


def show_evidence(evidence: list[dict[str, float]], most: int = 3) -> str:
    """Time ranges with their share of the attention: 0:41-0:52 (63 %)."""
    ranges = [f"{clock(e['start'])}-{clock(e['end'])} ({e['score']:.0%})" for e in evidence[:most]]
    return ", ".join(ranges) or "spread over everything"
