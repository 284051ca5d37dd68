"""The command line as a process: `mosaic-edge`, or `python -m mosaic_edge`.

Ctrl-C, SIGTERM and SIGHUP are heard from here on, which is before anything large is imported. While a module
is, they end the process at once: an exception in there is lost in some modules, and aborts others (torch's,
in C++). So does a second one, and one whose exception is lost. Files and folders of the command that are not
to stay go first.
"""

from __future__ import annotations

import os
import signal
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from mosaic_edge.ends import Told

_PROCESS = os.getpid()
_NOT_WRITTEN = (OSError, ValueError, AttributeError, RuntimeError)
"""What writing to a standard file raises: it is closed, there is none, or it is being written to."""

_SAID = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
"""The signals that end a command, and what it says then."""
_CODES = {number: 128 + number for number in _SAID}
_LETHAL = {_CODES[number]: number for number in (signal.SIGTERM, signal.SIGHUP)}
"""Those that a command dies of, as if it heard nothing: a shell and Docker make that exit code of it, and to
systemd a service that it stopped has not failed."""
_heard: list[signal.Signals] = []
"""Of these, those that nobody told this process to ignore, as a background job's Ctrl-C is."""
_came: list[int] = []
"""Signals, in their order: the first is what ended the command."""
_told = Told()


def program() -> NoReturn:
    """Run one command, then end."""
    _fill_standard_files()
    _heard.extend(number for number in _SAID if _is_default(number))
    _hear(_interrupted)
    from mosaic_edge import cli

    cli.stopped = _how
    sys.unraisablehook = _lost
    _hear(_raise_or_end)
    try:
        code = cli.main()
        _hear(lambda *_: _end(code))  # it has said what it had to say
    except KeyboardInterrupt:
        _interrupted()
    if code in _LETHAL:
        _end(code)
    sys.exit(code)


def _is_default(number: int) -> bool:
    return signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)


def _hear(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> None:
    for number in _heard:
        signal.signal(number, handler)


def _fill_standard_files() -> None:
    """What is closed leads nowhere from here on: else a file that the command opens is what a library takes
    for stderr."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)


def _raise_or_end(number: int, frame: FrameType | None) -> None:
    if not _told.count():
        return
    _came.append(number)
    if len(_came) > 1:
        _interrupted()
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _interrupted()
        frame = frame.f_back
    raise KeyboardInterrupt


def _lost(unraisable: sys.UnraisableHookArgs) -> None:
    """An exception that nobody hears: it came in the callback of a weak reference, in __del__."""
    if _came and isinstance(unraisable.exc_value, KeyboardInterrupt):
        _interrupted()
    sys.__unraisablehook__(unraisable)


def _how() -> tuple[str, int]:
    """What is said now, and the exit code; who is told to end meanwhile does."""
    number = signal.Signals(_came[0] if _came else signal.SIGINT)
    said, code = _SAID[number], _CODES[number]
    _hear(lambda *_: _end(code))
    return said, code


def _interrupted(number: int = signal.SIGINT, *_: object) -> NoReturn:
    """As cli.main() says it."""
    _came.append(number)
    said, code = _how()
    with suppress(*_NOT_WRITTEN):
        sys.stderr.write(f"mosaic-edge: {said}\n")
    with suppress(*_NOT_WRITTEN):
        if "--json" in sys.argv:
            sys.stdout.write(f'{{\n "error": "{said}",\n "exit_code": {code}\n}}\n')
    _end(code)


def _end(code: int) -> NoReturn:
    """At once, with what was written and without what is for the time of the command."""
    _hear(signal.SIG_IGN)
    if os.getpid() == _PROCESS:  # in a fork, they are not its own
        with suppress(Exception):
            weakref.finalize._exitfunc()  # type: ignore[attr-defined]
    for stream in (sys.stdout, sys.stderr):
        with suppress(*_NOT_WRITTEN):
            stream.flush()
    if code in _LETHAL:
        signal.signal(_LETHAL[code], signal.SIG_DFL)
        os.kill(os.getpid(), _LETHAL[code])  # which does nothing to the first process of a container
    os._exit(code)


if __name__ == "__main__":
    program()
