"""`mosaic-edge`: a command is a file of this folder, with its options and its view, registered by @command.

Results go to stdout, progress and errors to stderr. --json prints one JSON document and nothing else.
Exit codes: 0 done, 1 it failed, 2 bad usage, 3 a cap that is impossible or was breached; see errors.py.
A signal that ends it: 128 and its number; see __main__.py.
"""

from __future__ import annotations

import errno
import logging
import os
import pkgutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

import typer

from mosaic_edge.cli.options import with_options
from mosaic_edge.cli.output import LogLines, StdoutError, check_stdout, complain, print_json

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Streaming video memory for vision-language models under a hard memory cap.",
)


def _interrupted() -> tuple[str, int]:
    return "interrupted", 130


stopped = _interrupted
"""What a command says that a signal ended, and its exit code: __main__ hears others than Ctrl-C."""


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make `function` the command of its name; what its parameters may be stands in options.py."""
    app.command(function.__name__.rstrip("_"))(with_options(function))
    return function


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Errors of the user, files and caps are one line on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if sys.stdout is None:
        complain("stdout is closed: there is nowhere to write results to")
        return 1
    with warnings.catch_warnings(), log_lines():
        warnings.showwarning = _warn
        try:
            check_stdout()
        except StdoutError as error:
            return _no_stdout(error, "results cannot be written there; nothing was started")
        try:
            code = _run(arguments)
            sys.stdout.flush()  # a full disk or a closed pipe is found out here, not when Python ends
        except OSError as error:
            return _no_stdout(error, "results were lost")
    return code


@contextmanager
def log_lines() -> Iterator[None]:
    """What the package logs, from INFO on, is for who types a command."""
    log, lines = logging.getLogger("mosaic_edge"), LogLines()
    before = log.level
    log.addHandler(lines)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(lines)
        log.setLevel(before)


def _run(arguments: list[str]) -> int:
    try:
        code = app(args=arguments, standalone_mode=False, prog_name="mosaic-edge")
        return (_fail(*stopped(), arguments) if code == 130 else code) if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return _fail(*stopped(), arguments)
    except StdoutError:
        raise
    except SystemExit:  # what typer and rich make of a broken pipe
        raise StdoutError(errno.EPIPE, os.strerror(errno.EPIPE)) from None
    except Exception as error:
        if hasattr(
            error, "format_message"
        ):  # typer's own: click's classes are private in newer versions of it
            return _fail(error.format_message(), 2, arguments)
        code = _exit_code(error)
        if code is None:
            raise
        return _fail(_line(error), code, arguments)


def _no_stdout(error: OSError, then: str) -> int:
    """Say what becomes of what cannot be written, and leave nothing for Python to write when it ends."""
    complain(f"stdout: {error.strerror or error}: {then}")
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _warn(message: Warning | str, category: type[Warning], filename: str, *_: object, **__: object) -> None:
    """A warning of this package is one line; those of libraries are not for who types a command."""
    if Path(filename).is_relative_to(Path(__file__).parents[1]):
        complain(f"warning: {' '.join(str(message).split())}")


def _exit_code(error: BaseException) -> int | None:
    try:
        from mosaic_edge.errors import exit_code_of
    except ImportError:  # the core does not load: what is to be said is of that
        return 1
    return exit_code_of(error)


def _line(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == "onnxruntime":
        return "onnxruntime is not installed: pip install 'mosaic_edge[cpu]', or 'mosaic_edge[gpu]' on a GPU"
    return " ".join(str(error).split()) or type(error).__name__


def _fail(message: str, code: int, arguments: Sequence[str]) -> int:
    complain(message)
    if "--json" in arguments:
        print_json({"error": message, "exit_code": code})
    return code


for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
