"""The command line as a process: `mosaic-edge`, or `python -m mosaic_edge`.

Ctrl-C is heard from here on, which is before anything large is imported. While a module is, it ends the
process at once: an exception in there is lost in some modules, and aborts others (torch's, in C++). Files
and folders of the command that are not to stay go first.
"""

from __future__ import annotations

import os
import signal
import sys
import weakref
from contextlib import suppress
from types import FrameType
from typing import NoReturn

_PROCESS = os.getpid()
_NOT_WRITTEN = (OSError, ValueError, AttributeError, RuntimeError)
"""What writing to a standard file raises: it is closed, there is none, or it is being written to."""


def program() -> NoReturn:
    """Run one command, then end."""
    _fill_standard_files()
    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a background job may ignore it
    if heard:
        signal.signal(signal.SIGINT, _interrupted)
    from mosaic_edge.cli import main

    if heard:
        signal.signal(signal.SIGINT, _raise_or_end)
    try:
        code = main()
    except KeyboardInterrupt:
        _interrupted()
    if heard:
        signal.signal(signal.SIGINT, lambda *_: _end(code))  # it has said what it had to say
    sys.exit(code)


def _fill_standard_files() -> None:
    """What is closed leads nowhere from here on: else a file that the command opens is what a library takes
    for stderr."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)


def _raise_or_end(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _interrupted()
        frame = frame.f_back
    raise KeyboardInterrupt


def _interrupted(*_: object) -> NoReturn:
    """As cli.main() says it."""
    with suppress(*_NOT_WRITTEN):
        sys.stderr.write("mosaic-edge: interrupted\n")
    with suppress(*_NOT_WRITTEN):
        if "--json" in sys.argv:
            sys.stdout.write('{\n "error": "interrupted",\n "exit_code": 130\n}\n')
    _end(130)


def _end(code: int) -> NoReturn:
    """At once, with what was written and without what is for the time of the command."""
    if os.getpid() == _PROCESS:  # in a fork, they are not its own
        with suppress(Exception):
            weakref.finalize._exitfunc()  # type: ignore[attr-defined]
    for stream in (sys.stdout, sys.stderr):
        with suppress(*_NOT_WRITTEN):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    program()
