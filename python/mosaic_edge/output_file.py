"""Files that a run writes for its user: opened before anything starts, written aside, and in place only when
they are whole. What lies at the path is replaced only if it is a regular file; a character device
(/dev/null, a terminal) is written to when there is something to write, and stays.
"""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path

from mosaic_edge.shown import shown


class OutputFile:
    """A text that will stand at `path`. ValueError for a path that is no place for a file, OSError where
    none can be made."""

    def __init__(self, path: str | Path, knob: str) -> None:
        device = _character_device(path, knob)
        self.path = regular(path, knob) if device is None else device
        self._process = os.getpid()
        self._aside: Path | None = None
        if device is None:
            self._begin(path, knob)
        else:
            self._device = _opened(device, path, knob)
            self._end = weakref.finalize(self, os.close, self._device)

    def _begin(self, path: str | Path, knob: str) -> None:
        self._aside = self.path.parent / f".{self.path.name[:50]}.{secrets.token_hex(8)}.part"
        # Before there is a file: whatever interrupts what follows leaves none.
        weakref.finalize(self, _remove, self._aside, self._process)
        try:
            self._aside.touch(0o600, exist_ok=False)
        except OSError as error:  # of a name that nobody gave
            raise OSError(error.errno, f"{knob}=: {error.strerror}", os.fspath(path)) from None

    def write(self, text: str) -> None:
        """Put `text` in place. OSError if it does not fit; what was there before is there still. ValueError
        after discard() of a device: its number may be another file's by now."""
        if self._aside is None:
            if not self._end.alive:
                raise ValueError(f"{self.path}: it was closed, and nothing is written to it any more")
            with open(self._device, "w", encoding="utf-8", closefd=False) as device:
                device.write(text)
            return
        try:
            with self._aside.open("w", encoding="utf-8", newline="") as file:
                file.write(text)
            self._aside.replace(self.path)
        except OSError:
            self.discard()
            raise

    def discard(self) -> None:
        """Leave everything as it was, as when it is forgotten. Nothing to do after `write`, nor in a fork: it
        is not its file."""
        if self._aside is not None:
            _remove(self._aside, self._process)
        else:
            self._end()


def _remove(aside: Path, process: int) -> None:
    if process == os.getpid():
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def regular(path: str | Path, knob: str) -> Path:
    """`path`, links followed, if a regular file is there or nothing. ValueError names the knob."""
    text = _text(path, knob, "a file")
    try:
        real = Path(os.path.realpath(text))
    except OSError as error:  # the current folder is gone
        raise ValueError(f"{knob}={text!r}: {error.strerror or error}") from None
    try:
        mode = Path(text).stat().st_mode  # /dev/stdout may lead to what has no path
    except FileNotFoundError:
        return real
    except OSError as error:
        raise ValueError(f"{knob}={text!r}: {error.strerror or error}") from None
    if not stat.S_ISREG(mode):
        raise ValueError(f"{knob}={text!r}: there is something else than a regular file")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        with suppress(OSError):
            if os.path.samestat(os.fstat(number), real.stat()):
                raise ValueError(f"{knob}={text!r}: is this command's {name}, which would be lost")
    return real


def _character_device(path: str | Path, knob: str) -> Path | None:
    """The one at `path`, links followed; None where something else is, or nothing."""
    try:
        real = Path(os.path.realpath(_text(path, knob, "a file")))
        return real if stat.S_ISCHR(real.stat().st_mode) else None
    except OSError:  # regular() says what is wrong with it
        return None


def _opened(device: Path, path: str | Path, knob: str) -> int:
    """Its descriptor. OSError where it takes nothing: nobody is to find that out at the end of a stream."""
    try:
        descriptor = os.open(
            device, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK
        )  # a line nobody is at waits else
        try:
            os.write(descriptor, b"")  # of which /dev/full says what it says of more
            os.set_blocking(descriptor, True)
        except BaseException:
            os.close(descriptor)
            raise
    except OSError as error:
        raise OSError(error.errno, f"{knob}=: {error.strerror}", os.fspath(path)) from None
    return descriptor


def writable_folder(path: str | Path, knob: str) -> Path:
    """`path` as a folder that files can be made in, which is made if nothing is there. Its errors name
    the knob."""
    text = _text(path, knob, "a folder")
    folder = Path(text)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # a file system may be read-only, whoever asks
            return folder
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"{knob}={text!r}: there is something else than a folder") from None
    except OSError as error:
        raise OSError(error.errno, f"{knob}=: {error.strerror}", text) from None


def _text(path: object, knob: str, of: str) -> str:
    """A path as text; ValueError for what is none."""
    text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
    if not text or "\0" in text:
        raise ValueError(f"{knob}={shown(text or path)}: expected the path of {of}")
    return text
