"""Several sessions over one stream share each forward pass: the weights are read once for all of them.

Every session runs in a thread of its own and knows nothing of the others. The decoder runs when all that are
still there have brought a block; each block's attention is its own session's. Only time is different: a
frame's time is that of all, so what is measured is the time in a session's own `attend`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from .decoder import Attend, Decoder, Floats

Result = TypeVar("Result")


@dataclass
class Meter:
    """Seconds in a session's own `attend`, of its frames and of its questions."""

    seconds: list[float] = field(default_factory=lambda: [0.0, 0.0])
    asking: bool = False

    def around(self, attend: Attend) -> Attend:
        """`attend`, timed."""

        def timed(layer: int, q: Floats, k: Floats, v: Floats) -> Floats:
            began = time.perf_counter()
            try:
                return attend(layer, q, k, v)
            finally:
                self.seconds[self.asking] += time.perf_counter() - began

        return timed


@dataclass
class _Block:
    embeds: Floats
    attend: Attend
    want_logits: bool
    logits: Floats | None = None
    error: BaseException | None = None
    done: bool = False


class Together:
    """Forward passes of `members` sessions, joined."""

    def __init__(self, decoder: Decoder, members: int) -> None:
        self._decoder = decoder
        self._members = members
        self._changed = threading.Condition()
        self._brought: list[_Block] = []

    def forward(self, embeds: Floats, attend: Attend, want_logits: bool) -> Floats | None:
        """As NarratedVlm wants it; called from the session's own thread."""
        block = _Block(embeds, attend, want_logits)
        with self._changed:
            self._brought.append(block)
            self._changed.notify_all()
            while not block.done:
                if len(self._brought) == self._members:
                    self._run()
                else:
                    self._changed.wait()
        if block.error is not None:
            raise block.error
        return block.logits

    def leave(self) -> None:
        """A session that has ended is not waited for."""
        with self._changed:
            self._members -= 1
            self._changed.notify_all()

    def _run(self) -> None:
        """One pass over all blocks; what fails in one session's attention is that session's alone."""
        blocks, self._brought = self._brought, []
        try:
            rows = [len(block.embeds) for block in blocks]
            ends = np.cumsum(rows).tolist()
            parts = [slice(end - n, end) for n, end in zip(rows, ends, strict=True)]
            wanted = [i for i, block in enumerate(blocks) if block.want_logits]
            logits = self._decoder.forward(
                np.concatenate([block.embeds for block in blocks]),
                lambda layer, q, k, v: _attend(blocks, parts, layer, q, k, v),
                [ends[i] - 1 for i in wanted],
            )
            for at, i in enumerate(wanted):
                assert logits is not None
                blocks[i].logits = logits[at]
        except BaseException as error:
            for block in blocks:
                block.error = block.error or error
        finally:
            for block in blocks:
                block.done = True
            self._changed.notify_all()


def _attend(
    blocks: Sequence[_Block], parts: Sequence[slice], layer: int, q: Floats, k: Floats, v: Floats
) -> Floats:
    out = np.zeros_like(q)
    for block, part in zip(blocks, parts, strict=True):
        if block.error is None:
            try:
                out[part] = block.attend(layer, q[part], k[part], v[part])
            except Exception as error:
                block.error = error
    return out


def run_together(decoder: Decoder, tasks: Sequence[Callable[[Together], Result]]) -> list[Result]:
    """Run tasks that each stream into a session, in threads. The first exception of any is raised."""
    shared = Together(decoder, len(tasks))
    results: dict[int, Result] = {}
    errors: list[BaseException] = []

    def work(index: int) -> None:
        try:
            results[index] = tasks[index](shared)
        except BaseException as error:
            errors.append(error)
        finally:
            shared.leave()

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[i] for i in range(len(tasks))]
