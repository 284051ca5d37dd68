"""Calls that last as long as a server or a pipe likes, made in threads: FFmpeg hears neither Ctrl-C nor
close(), and takes minutes to free what a hostile playlist named. Who waits for them waits in Python, and
leaves what he gives up to its thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import Generic, TypeVar

from mosaic_edge.sources.end_of_python import ending_with_python
from mosaic_edge.threads import started

THREAD = "mosaic-video"
CLOSE_S = 0.3
"""What the end of an iteration waits for its thread."""
_T = TypeVar("_T")


def aside(call: Callable[[], _T], what: str) -> _T:
    """What `call` returns or raises."""
    return next(iter(Ahead(_once(call), what)))


def left_alone(call: Callable[[], object]) -> None:
    """It is made, and waited for no longer than CLOSE_S."""
    thread = threading.Thread(target=call, name=THREAD, daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no thread: then here
        call()
    else:
        thread.join(CLOSE_S)


def _once(call: Callable[[], _T]) -> Generator[_T, None, None]:
    yield call()


class Ahead(Generic[_T]):
    """The items of a generator that a thread steps, one ahead; it is closed there. stop: tells a step that
    goes on and on that nobody waits for it any more."""

    def __init__(
        self, items: Generator[_T, None, None], what: str, stop: Callable[[], object] | None = None
    ) -> None:
        self._items, self._stop = items, stop
        self._changed = threading.Condition()
        self._waiting: deque[_T] = deque()
        self._closed = self._ended = False
        self._error: BaseException | None = None
        self._thread = started(threading.Thread(target=self._run, name=THREAD, daemon=True), what)

    def __iter__(self) -> Iterator[_T]:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self._ended or self._closed)
                    if self._closed or not self._waiting:
                        break
                    item = self._waiting.popleft()
                    self._changed.notify_all()
                yield item
                del item
            if self._error is not None and not self._closed:
                raise self._error
        finally:
            self.close()
            if self._thread is not threading.current_thread():  # which may collect what nobody holds
                self._thread.join(CLOSE_S)

    def close(self) -> None:
        """The iteration ends, from any thread; so does the generator, after the step that it is in."""
        if self._stop is not None:
            self._stop()
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def _run(self) -> None:
        with ending_with_python(self.close):
            self._step()

    def _step(self) -> None:
        try:
            for item in self._items:
                with self._changed:
                    self._changed.wait_for(lambda: not self._waiting or self._closed)
                    if self._closed:
                        break
                    self._waiting.append(item)
                    self._changed.notify_all()
                del item
        except BaseException as error:  # raised where someone waits for it
            self._error = error
        finally:
            with suppress(Exception):
                self._items.close()
            with self._changed:
                self._ended = True
                self._changed.notify_all()
