"""What commands print: results on stdout, as tables or as one JSON document; what went wrong on stderr."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import select
import sys
import unicodedata
from contextlib import suppress
from datetime import datetime
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from mosaic_edge.config import format_bytes


class StdoutError(OSError):
    """Results could not be written: the disk is full, or who reads the pipe is gone."""


def check_stdout() -> None:
    """StdoutError where nothing can be written: it is not to be found out when a stream has ended."""
    try:
        number = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # no file: who calls main() takes it
        return
    try:
        os.write(number, b"")
        waiting = select.poll()
        waiting.register(number, 0)
        if any(event & select.POLLERR for _, event in waiting.poll(0)):
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
    except OSError as error:
        words = "it is not open for writing" if error.errno == errno.EBADF else error.strerror
        raise StdoutError(error.errno, words) from None


class DataConsole(Console):
    """Strings are data: an answer, a question or a name is shown as it is, whatever it looks like to rich or
    to the terminal. What is to be styled comes as a rich Text."""

    def __init__(self, *, width: int | None = None, stderr: bool = False) -> None:
        super().__init__(width=width, stderr=stderr, markup=False, emoji=False, highlight=False)

    def print(self, *objects: Any, **settings: Any) -> None:
        """As rich does it. StdoutError where results cannot be written."""
        try:
            super().print(*objects, **settings)
        except OSError as error:
            if self.stderr:
                raise
            raise StdoutError(error.errno, error.strerror) from None

    def render_str(self, text: str, **settings: Any) -> Text:
        """As rich does it, of what can be seen."""
        return super().render_str(visible(text), **settings)


def visible(text: str) -> str:
    """`text` with what moves a cursor, turns writing around or is no character as its escape; lines and tabs
    stay."""
    return "".join(repr(c)[1:-1] if _acts(c) else c for c in text)


def _acts(character: str) -> bool:
    if character in "\n\t":
        return False
    kind = unicodedata.category(character)
    return kind in ("Cc", "Cs", "Zl", "Zp") or character in _TURNS


_TURNS = "\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def console() -> DataConsole:
    """Results on stdout: as wide as the terminal, or wide enough for every table in a pipe."""
    return DataConsole(width=None if sys.stdout.isatty() else 160)


def complain(message: str) -> None:
    """One line on stderr, if there is one to write to."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            print(visible(f"mosaic-edge: {message}"), file=sys.stderr)


class LogLines(logging.Handler):
    """What this package logs is a line on stderr, as what went wrong is."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        complain(record.getMessage())


def one_line(error: BaseException) -> str:
    """What an error says."""
    return " ".join(str(error).split()) or type(error).__name__


def end_with(error: str | None, code: int) -> None:
    """End the command with `code` and one line, if there is an error."""
    if error is not None:
        complain(error)
        raise typer.Exit(code)


def print_json(document: dict[str, Any]) -> None:
    """One document on stdout; a number JSON does not know becomes null."""
    text = json.dumps(_plain(document), indent=1, allow_nan=False)
    try:
        print(text)
    except OSError as error:
        raise StdoutError(error.errno, error.strerror) from None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


WALL_CLOCK_S = 1e9
"""Seconds from here on (2001) are the time of day, as cameras and recordings have it, not of a stream."""
_LAST_YEAR_S = 2.5e11
"""Of the year 9892: no calendar has what a file may claim behind it."""


def clock(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss from an hour on; the time of day as date and time, here."""
    if WALL_CLOCK_S <= seconds < _LAST_YEAR_S:
        return datetime.fromtimestamp(seconds).isoformat(" ", "seconds")
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
