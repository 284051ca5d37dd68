"""What asking for the next layer's pages ahead saves: `python tools/bench/cold_disk.py [--frames 320,1024]`.

A memory of `edge` with a disk, in the shape of a 0.5B decoder whose frames are of 12 random tokens. Before
every question the system forgets what it has of the file, as if other work had needed its memory. Between two
layers the caller sleeps as long as a decoder's own arithmetic may take. Wall time of the memory's part of a
question, the median of some, and the bytes that then came from the disk, with prefetch= and without.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from random_stream import Heads, RandomStream

from mosaic_edge import _core
from mosaic_edge.config import parse_bytes

FRAME_TOKENS, QUESTION_TOKENS = 12, 12


class PausingStream(RandomStream):
    """One whose caller has something else to do between two layers."""

    pause = 0.0
    paused = 0.0

    def attend(self, tokens: int) -> None:
        """As there."""
        for layer in range(self.heads.layers):
            self.attend_layer(layer, tokens)
            if self.pause:
                began = time.perf_counter()
                time.sleep(self.pause)
                self.paused += time.perf_counter() - began


def forget_files(folder: str) -> None:
    """The system drops what it has of the files there, those without a name too."""
    for file in Path("/proc/self/fd").iterdir():
        if file.is_symlink() and str(file.readlink()).startswith(folder):
            descriptor = int(file.name)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def read_bytes() -> int:
    """That this process had the disk read."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def measure(stream: PausingStream, folder: str | None, pause: float, questions: int) -> tuple[float, float]:
    """Median milliseconds of the memory in a question, and MB read of the disk. folder: of files that are
    forgotten before."""
    spent, read = [], []
    stream.pause = pause
    for _ in range(questions):
        if folder is not None:
            forget_files(folder)
        stream.paused, before = 0.0, read_bytes()
        began = time.perf_counter()
        stream.question(QUESTION_TOKENS)
        spent.append(1e3 * (time.perf_counter() - began - stream.paused))
        read.append((read_bytes() - before) / 1e6)
    stream.pause = 0.0
    return statistics.median(spent), statistics.median(read)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--memory", default="5.34MiB")
    parser.add_argument("--frames", default="320")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--between", type=float, default=4.0, help="milliseconds between two layers")
    parser.add_argument("--questions", type=int, default=9)
    parser.add_argument("--folder", help="of the disk's file; by default the one for temporary files")
    o = parser.parse_args()
    heads = Heads(o.layers, query=14, kv=2, dim=64)
    print("| frames | tokens | the file | prefetch | the memory's part of a question, ms | MB read |")
    print("|---|---|---|---|---|---|")
    for frames in (int(n) for n in o.frames.split(",")):
        for prefetch in (False, True):
            with tempfile.TemporaryDirectory(dir=o.folder) as folder:
                config = {
                    "cap_bytes": parse_bytes(o.memory), "window_frames": 1, "branch_tokens": 19,
                    "disk_bytes": parse_bytes("1GiB"), "spill_dir": folder, "prefetch": prefetch,
                }  # fmt: skip
                memory = _core.KvMemory(heads.model(FRAME_TOKENS), config, "edge", {}, "cpu", 1)
                stream = PausingStream(heads, FRAME_TOKENS, memory)
                while stream.frames < frames:
                    stream.frame()
                for lies, forgotten in (("on the disk", folder), ("in the system's cache", None)):
                    took, read = measure(stream, forgotten, o.between / 1e3, o.questions)
                    length = f"{frames} | {frames * FRAME_TOKENS}"
                    print(f"| {length} | {lies} | {prefetch} | {took:.1f} | {read:.2f} |", flush=True)


if __name__ == "__main__":
    main()
