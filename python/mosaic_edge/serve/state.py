"""Sessions that outlive their process: files of a folder, saved every so often and at the end, restored at
the start. What cannot be restored is kept aside and said; a service begins anew rather than not at all.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from mosaic_edge.errors import DeviceError, MemoryCapError, NoMemoryError, NoThreadError
from mosaic_edge.question import seconds
from mosaic_edge.serve.budget import BudgetSpentError
from mosaic_edge.session import Session

SUFFIX = ".session"
_log = logging.getLogger(__name__)

_Restored = TypeVar("_Restored")


class StateFolder:
    """A folder of saved sessions, made if it is not there. ValueError where it is none, OSError where none
    can be made."""

    def __init__(self, path: Path, every: float, notify: Callable[[str], None] = _log.warning) -> None:
        """every: seconds from one saving to the next. notify: what was restored, refused or not saved."""
        if not seconds(every, "state_every") > 0:
            raise ValueError(f"state_every={every:g}: expected more than zero")
        if path.exists() and not path.is_dir():
            raise ValueError(f"state={str(path)!r}: is no folder")
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path, self.every, self.notify = path, every, notify

    def names(self) -> list[str]:
        """Of the sessions that are saved here."""
        return sorted(file.name.removesuffix(SUFFIX) for file in self.path.glob(f"*{SUFFIX}"))

    def file(self, name: str) -> Path:
        """Where the session of that name is saved."""
        return self.path / f"{name}{SUFFIX}"

    def restore(self, name: str, restored: Callable[[Path], _Restored]) -> _Restored | None:
        """What restored(file) makes of a saved session; None where there is none, or it was refused and lies
        aside now. NoThreadError, NoMemoryError, MemoryError and OSError where the system has no thread,
        memory or descriptor for it: that is no fault of the file, which stays."""
        file = self.file(name)
        if not file.exists():
            return None
        try:
            made = restored(file)
        except (ValueError, MemoryError, OSError, DeviceError) as error:
            if _is_of_the_system(error):
                raise
            aside = self._put_aside(file)
            why = " ".join(str(error).split())
            self.notify(f"state: {file} was not restored and is kept as {aside.name}: {why}")
            return None
        self.notify(f"state: {file} was restored")
        return made

    def save(self, name: str, save: Callable[[Path], None]) -> bool:
        """Whether it was saved. A disk that is full costs this saving, not the session."""
        try:
            save(self.file(name))
        except (OSError, ValueError) as error:
            self.notify(f"state: {self.file(name)} was not saved: {' '.join(str(error).split())}")
            return False
        return True

    def forget(self, name: str) -> None:
        """The session was ended for good."""
        with suppress(OSError):
            self.file(name).unlink(missing_ok=True)

    def _put_aside(self, file: Path) -> Path:
        """Under a name that is free: what was refused before may be what somebody looks for."""
        number = 1
        while (aside := file.with_name(f"{file.name}.refused-{number}")).exists():
            number += 1
        return file.rename(aside)


def _is_of_the_system(error: Exception) -> bool:
    """It has too little for anything. A cap, a budget or a device that is full is something else."""
    if isinstance(error, OSError):
        return error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    if isinstance(error, MemoryError):
        return not isinstance(error, MemoryCapError | BudgetSpentError)
    return isinstance(error, NoThreadError | NoMemoryError)


class SavedStream:
    """One session of a folder that is saved as its frames go in."""

    def __init__(self, folder: StateFolder, name: str, session: Session) -> None:
        self._folder, self._name, self._session = folder, name, session
        self._due = time.monotonic() + folder.every

    def tick(self) -> None:
        """A frame went in."""
        if time.monotonic() >= self._due:
            self.save()

    def save(self) -> None:
        """Now."""
        self._folder.save(self._name, self._session.save)
        self._due = time.monotonic() + self._folder.every
