"""Cameras behind a GStreamer pipeline, such as the CSI cameras of Jetson boards:

    gst:nvarguscamerasrc ! video/x-raw(memory:NVMM),width=1280,height=720 ! nvvidconv

What follows "gst:" is written as behind gst-launch-1.0, which runs it in a process of its own: one that hangs
or crashes is ended, and started again as a camera is opened again.
"""

from __future__ import annotations

import fcntl
import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress

import numpy as np

from mosaic_edge.sources.connection import Connection, Picture, RgbPicture
from mosaic_edge.sources.frame_source import SourceError
from mosaic_edge.sources.live import LiveSource
from mosaic_edge.sources.registry import scheme
from mosaic_edge.sources.where import name_of

PROGRAM = "gst-launch-1.0"
PIPE_BYTES = 1 << 20
END_S = 1.0
"""What a process that was told to end may take."""
_LONGEST_S = 3600.0  # of one wait
_SINK = "mosaic_edge_sink"
_CAPS = re.compile(rf"{_SINK}\.GstPad:sink: caps = (.*)".encode())
_ERROR = re.compile(rb"ERROR: (?:from element .*?: )?(.+)")
_NO_PIPELINE = re.compile(rb"(?:WARNING: erroneous pipeline|ERROR: pipeline could not be constructed): (.+)")
_IS_LIVE = b"Pipeline is live"


@scheme("gst")
class GStreamerSource(LiveSource):
    """A pipeline: "gst:v4l2src ! videoconvert"."""

    def _check(self) -> None:
        _words(self._pipeline())
        if shutil.which(PROGRAM) is None:
            install = "apt-get install gstreamer1.0-tools gstreamer1.0-plugins-base"
            raise SourceError(name_of(self.path), None, f"{PROGRAM} is not installed: {install}")

    def _connect(self, connect_s: float, read_s: float) -> Connection:
        return GStreamerConnection(self._pipeline(), (connect_s, read_s))

    def _pipeline(self) -> str:
        return self.path.removeprefix("gst:")


class GStreamerConnection:
    """A pipeline that runs: its pictures come through a pipe, their size (caps) on its standard output.

    Pictures have the time of day they came. One that says it is not live (a file) is over when it ends.
    """

    def __init__(self, pipeline: str, timeout: tuple[float, float]) -> None:
        self.timeless, self.patient = True, False
        self.rate: float | None = None
        self.broken = 0
        self.broke_off: str | None = None
        self._name, self._read_s = name_of(pipeline), timeout[1]
        self._size: tuple[int, int] | None = None
        self._is_live = self._ended = self._aborted = False
        self._trouble: str | None = None
        self._process, self._data = _started(_words(pipeline), self._name)
        self._stop = weakref.finalize(self, self._process.kill)  # at the interpreter's end, too
        self._selector = selectors.DefaultSelector()
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            self._selector.register(stream, selectors.EVENT_READ, bytearray())
        self._speaking = 2
        self._woken, self._wake = os.pipe()
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        try:
            self._await_size(time.monotonic() + timeout[0])
            width, height = self._size or (0, 0)
            # GStreamer's rows are whole words.
            self._buffer = np.empty((height, (3 * width + 3) // 4 * 4), np.uint8)
        except BaseException:
            self.close()
            raise
        self._filled = 0
        self._selector.register(self._data, selectors.EVENT_READ, None)

    @property
    def over(self) -> bool:
        """Whether the end was the end of a file."""
        return self.broke_off is None and not self._is_live

    def pictures(self) -> Iterator[tuple[Picture, float | None]]:
        """Each; none has a time."""
        size, width = self._size, (self._size or (0, 0))[0]
        last = time.monotonic()
        while not self._ended:
            if not self._hear(last + self._read_s):
                self.broke_off = "no data came in time"
                return
            if self._size != size:
                self.broke_off = f"its pictures were {size}, and are {self._size}: width, height"
                return
            if self._filled == self._buffer.nbytes:
                whole, self._buffer, self._filled = self._buffer, np.empty_like(self._buffer), 0
                last = time.monotonic()
                yield RgbPicture(whole[:, : 3 * width].reshape(len(whole), width, 3)), None
        self.broke_off = self._cause()

    def abort(self) -> None:
        """Tell it to end, and whoever waits for it, from any thread."""
        with suppress(OSError):  # it has ended, or this is closed
            os.write(self._wake, b"!")
            self._process.send_signal(signal.SIGINT)

    def close(self) -> None:
        """It ends, or is killed."""
        self.abort()
        self._selector.close()
        for end in (self._data, self._woken, self._wake):
            os.close(end)
        self._wake = -1
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        self._stop()
        self._process.wait()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def _await_size(self, until: float) -> None:
        while self._size is None:
            heard = self._hear(until)
            if self._size is None and (not heard or not self._speaking or self._aborted):
                cause = self._cause() if heard else "no picture came in time"
                raise SourceError(self._name, None, cause or "it ended before its first picture")

    def _cause(self) -> str | None:
        """Why a process that hung up did: what it said, or how it ended."""
        if self._aborted:
            return "it was told to end"
        while self._speaking and self._hear(time.monotonic() + END_S):
            pass
        try:
            code = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            return self._trouble or f"{PROGRAM} closed its pipe"
        if code and self._trouble is None:
            return f"{PROGRAM} ended with {code}"
        return self._trouble

    def _hear(self, until: float) -> bool:
        """Wait for pixels or words; False: none came."""
        wait = min(max(0.0, until - time.monotonic()), _LONGEST_S)
        ready = self._selector.select(wait)
        for key, _ in ready:
            if key.fd == self._woken:
                self._ended = self._aborted = True
                self._selector.unregister(self._woken)
            elif key.data is None:
                self._read_pixels()
            elif data := os.read(key.fd, 1 << 16):
                *lines, rest = (bytes(key.data) + data).split(b"\n")
                key.data[:] = rest
                for line in lines:
                    self._understand(line)
            else:
                self._speaking -= 1
                self._selector.unregister(key.fileobj)
        return bool(ready)

    def _read_pixels(self) -> None:
        count = os.readv(self._data, [memoryview(self._buffer.data).cast("B")[self._filled :]])
        self._filled += count
        if not count:
            self._ended = True
            self._selector.unregister(self._data)

    def _understand(self, line: bytes) -> None:
        if found := _CAPS.search(line):
            caps = dict(re.findall(r"([\w-]+)=\([a-z]+\)([^,;]+)", found[1].decode(errors="replace")))
            self._size = int(caps["width"]), int(caps["height"])
            frames, _, seconds = caps.get("framerate", "0/1").partition("/")
            self.rate = int(frames) / int(seconds or 1) or None
        elif line.startswith(_IS_LIVE):
            self._is_live = True
        elif found := _NO_PIPELINE.search(line):
            raise ValueError(f"source={self._name!r}: {found[1].decode(errors='replace')}")
        elif self._trouble is None and (found := _ERROR.search(line)):
            self._trouble = found[1].decode(errors="replace")


def _words(pipeline: str) -> list[str]:
    try:
        words = shlex.split(pipeline)
    except ValueError as error:
        raise ValueError(f"source={name_of(pipeline)!r}: {error}") from None
    if not words:
        raise ValueError("source='gst:': expected a pipeline, such as gst:v4l2src")
    return words


def _started(words: list[str], name: str) -> tuple[subprocess.Popen[bytes], int]:
    """The process, and the pipe that its pictures come through."""
    data, end = os.pipe()
    sink = f"! videoconvert ! video/x-raw,format=RGB ! fdsink name={_SINK} fd={end} sync=true"
    try:
        with suppress(OSError):  # larger, so that fewer calls are a picture
            fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        process = subprocess.Popen(
            [PROGRAM, "-v", *words, *sink.split()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[end],
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,  # Ctrl-C is for this process, which ends it
        )
    except OSError as error:
        os.close(data)
        raise SourceError(name, None, f"{PROGRAM}: {error.strerror}") from None
    finally:
        os.close(end)
    return process, data
