"""A Unix socket at a path that is nobody else's: claimed while no one listens there, and given back only if
it is still ours.
"""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MODE = 0o600
_WAITING = 256
_LOCK_SECONDS = 2.0


@contextmanager
def claimed(path: Path) -> Iterator[socket.socket]:
    """A listening socket at `path`, for its owner alone whatever the umask is. ValueError where another
    process listens, something else than a socket is, or none can be made."""
    text = os.fspath(path)
    if not text or "\0" in text:
        raise ValueError(f"socket={text!r}: expected a path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        with _alone_in(path.parent):
            _clear(path)
            try:
                listener.bind(text)
            except OSError as error:  # its own text says "AF_UNIX path too long", or names no path
                raise ValueError(f"socket={text!r}: {error.strerror or error}") from None
            ours = _identity(path)
            path.chmod(_MODE)  # before anyone can connect
            listener.listen(_WAITING)
        try:
            yield listener
        finally:
            if _identity(path) == ours:  # and still listening: nobody takes it for one that was left
                path.unlink(missing_ok=True)


def _clear(path: Path) -> None:
    """Remove a socket that a process left which was killed."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ValueError(f"socket={str(path)!r}: {error.strerror or error}") from None
    if not stat.S_ISSOCK(mode):
        raise ValueError(f"socket={str(path)!r}: there is something else than a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError:  # it listens, and is busy or not for us
            pass
    raise ValueError(f"socket={str(path)!r}: another process answers there")


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Two that start at once look and claim in turn."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ValueError(f"socket: {str(folder)!r}: {error.strerror or error}") from None
    try:
        until = time.monotonic() + _LOCK_SECONDS
        while not _locked(handle):
            if time.monotonic() > until:
                raise ValueError(f"socket: {str(folder)!r} is locked by another process")
            time.sleep(0.01)
        yield
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    import fcntl  # not on Windows, which has no such sockets in Python either

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
