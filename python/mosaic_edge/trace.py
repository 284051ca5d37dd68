"""A trace of a session's work: JSON for ui.perfetto.dev or chrome://tracing, a row per thread.

Spans: encode_frame, forward (one pass of the decoder) and, inside it, per lane - a layer, or one of its KV
heads - select, prefetch, copy_wait (for a page of the disk), recall, attend and listen; where a frame is
filed settle, admit, pack and cluster; on the thread mosaic-copy spill_read, spill_ahead and spill_write.
Times are in microseconds; on a GPU attend may end before its kernel has run. The newest 16,384 spans of each
thread are kept, "otherData" counts those overwritten. The rings (8 MiB) are outside the session's cap.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from mosaic_edge import _core
from mosaic_edge.output_file import OutputFile


class Trace:
    """Records spans of this process until `close`, then writes them; without a path it does nothing.

    Raises ValueError when another session is being traced or something else than a regular file is there,
    OSError when no file can be made: all before anything is recorded. The file appears when it is whole.
    """

    def __init__(self, path: str | Path | None) -> None:
        self._file: OutputFile | None = None
        self._recording: Any = None
        if path is None:
            return
        file = OutputFile(path, "trace")
        self._recording = _core.TraceRecording()
        self._file = file  # both end when they are forgotten: a session without close(), a refused one

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
        """End the trace and write it. Closing twice is fine, and so is closing again what an interrupt kept
        from its end. A disk that is full costs the trace alone, with a warning: what the session answered is
        its caller's."""
        file, failed = self._file, None
        if file is None:
            return
        try:
            file.write(self._recording.stop())
        except OSError as error:
            failed = error.strerror or error
        self._file = self._recording = None
        if failed is not None:
            warnings.warn(f"trace={str(file.path)!r}: not written ({failed})", stacklevel=1)

    def discard(self) -> None:
        """End the trace of a session that was refused; what lies at its path is left as it was."""
        self._file = self._recording = None
