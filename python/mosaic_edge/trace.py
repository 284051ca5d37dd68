"""A trace of a session's work: JSON for ui.perfetto.dev or chrome://tracing, a row per thread.

Spans: encode_frame, forward (one pass of the decoder) and, inside it, per lane - a layer, or one of its KV
heads - select, prefetch, copy_wait (for a page of the disk) and attend; admit; on the thread mosaic-copy
spill_read and spill_write. Times are in microseconds; on a GPU attend may end before its kernel has run. The
newest 16,384 spans of each thread are kept, "otherData" counts those overwritten. The rings (8 MiB) are
outside the session's cap.
"""

from __future__ import annotations

import time
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from mosaic_edge import _core
from mosaic_edge.output_file import OutputFile


class Trace:
    """Records spans of this process until `close`, then writes them; without a path it does nothing.

    Raises ValueError when another session is being traced or something else than a regular file is there,
    OSError when no file can be made: all before anything is recorded. The file appears when it is whole.
    """

    def __init__(self, path: str | Path | None) -> None:
        self._file = None if path is None else OutputFile(path, "trace")
        if self._file is None:
            return
        try:
            _core.trace_start()
        except BaseException:
            self._file.discard()
            raise
        # Also when a session is forgotten without close(): the next trace may start then.
        self._stop = weakref.finalize(self, _core.trace_stop)
        self._forget = weakref.finalize(self, self._file.discard)

    @contextmanager
    def span(self, name: Literal["encode_frame", "forward"]) -> Iterator[None]:
        """Time the body as one span."""
        began = 0 if self._file is None else time.monotonic_ns()
        try:
            yield
        finally:
            if self._file is not None:
                _core.trace_span(name, began, time.monotonic_ns())

    def close(self) -> None:
        """End the trace and write it. Closing twice is fine. A disk that is full costs the trace alone,
        with a warning: what the session answered is its caller's."""
        file, self._file = self._file, None
        if file is None:
            return
        try:
            file.write(self._stop() or "")
        except OSError as error:
            warnings.warn(f"trace={str(file.path)!r}: not written ({error.strerror or error})", stacklevel=1)
