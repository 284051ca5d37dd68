"""The file a session is saved in: written aside, on the disk before it is in place, and in place as a whole.
A process that is killed at any moment leaves the last whole one.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mosaic_edge.output_file import regular


@contextmanager
def replaced(path: str | Path) -> Iterator[int]:
    """A descriptor to write to; when the body ends what was written is at `path`, and survives a power cut.

    If the body raises, or the disk is full, `path` is as it was. Two that save to one path at a time:
    the second raises ValueError. ValueError too for a path that is no place for a file, OSError where
    none can be made. Others may not read it: it holds what a camera saw.
    """
    real = regular(path, "path")
    aside = real.with_name(f".{real.name[:200]}.part")
    descriptor = _begin(aside, path)
    try:
        yield descriptor
        os.fsync(descriptor)
        aside.replace(real)
    except BaseException:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)  # and with it the lock
    _sync_folder(real.parent)


def _begin(aside: Path, path: str | Path) -> int:
    """The file aside, empty and locked. One that a killed process left is taken over: a name for each would
    fill the disk in time."""
    while True:
        try:
            descriptor = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:  # of a name that nobody gave
            raise OSError(error.errno, f"path=: {error.strerror}", os.fspath(path)) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.fstat(descriptor)
            with suppress(FileNotFoundError):
                there = aside.stat(follow_symlinks=False)
                if (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino):
                    os.ftruncate(descriptor, 0)
                    return descriptor
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise ValueError(f"path={os.fspath(path)!r}: another session is being saved there") from None
            raise
        os.close(descriptor)  # who held it has put it in place meanwhile: another one


def _sync_folder(folder: Path) -> None:
    """The name itself is on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot
            raise
    finally:
        os.close(descriptor)


@contextmanager
def opened(path: str | Path) -> Iterator[int]:
    """A descriptor to read from. ValueError for what is no regular file, OSError where there is none."""
    descriptor = os.open(regular(path, "path"), os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
