"""What can go wrong for a user, and the exit code that each error ends `mosaic-edge` with.

An error of ours carries its code (`exit_code`): 3 for a cap, 1 for the machine, a file or a defect of the
core, 2 for what was asked for. So do SourceError and ModelError, where they are defined. Python's own have
none: a ValueError is 2; OSError, ImportError, MemoryError, and what a library says of memory in an error of
its own, are 1; all else is a defect here.
"""

from __future__ import annotations

from mosaic_edge._core import (
    DeviceError,
    InvalidInput,
    InvariantError,
    MemoryCapError,
    NoMemoryError,
    NoThreadError,
    SpillError,
)
from mosaic_edge.models.sandbox import says_no_memory

__all__ = [
    "DeviceError",
    "InvalidInput",
    "InvariantError",
    "MemoryCapError",
    "NoMemoryError",
    "NoThreadError",
    "SpillError",
    "exit_code_of",
]

# The core knows no command line.
MemoryCapError.exit_code = 3
InvalidInput.exit_code = 2
for _kind in (DeviceError, InvariantError, SpillError):
    _kind.exit_code = 1

_PYTHONS: tuple[tuple[tuple[type[BaseException], ...], int], ...] = (
    ((ValueError,), 2),
    ((OSError, ImportError, MemoryError), 1),
)


def exit_code_of(error: BaseException) -> int | None:
    """The exit code of an error; None for a defect of this package."""
    code: int | None = getattr(error, "exit_code", None)
    if code is not None:
        return code
    known = next((code for kinds, code in _PYTHONS if isinstance(error, kinds)), None)
    return 1 if known is None and says_no_memory(error) else known
