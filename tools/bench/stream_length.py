"""Whether a longer stream costs more: `python tools/bench/stream_length.py [--frames 768,1536,3072]`.

One memory of a fixed cap and frames of random keys and values, in the shape of a 0.5B decoder whose frames
are sentences of 12 tokens (docs/results/decoders.md). Whenever as many frames have come as --frames says, the
CPU time of the last 32 frames and of 8 questions is shown: attention, and all that the memory does beside it
(the decoder's own arithmetic is the same at any length). CPU time, as other work on the machine matters less.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

from random_stream import Heads, RandomStream

from mosaic_edge import _core
from mosaic_edge.config import parse_bytes

FRAME_TOKENS, QUESTION_TOKENS = 12, 12
LAYERS = 24  # of the model; --layers of them are run


def cpu_ms(work: Callable[[], None], times: int) -> float:
    """The median of some calls."""
    spent = []
    for _ in range(times):
        began = time.process_time()
        work()
        spent.append(1e3 * (time.process_time() - began))
    return statistics.median(spent)


def measure(stream: RandomStream, lengths: list[int]) -> None:
    """Print a table."""
    print("| frames | tokens | a frame, ms | first token of a question, ms |\n|---|---|---|---|")
    scale = LAYERS / stream.heads.layers
    for length in lengths:
        while stream.frames < length - 32:
            stream.frame()
        frame = scale * cpu_ms(stream.frame, 32)
        question = scale * cpu_ms(lambda: stream.question(QUESTION_TOKENS), 8)
        print(f"| {length} | {length * FRAME_TOKENS} | {frame:.1f} | {question:.1f} |", flush=True)


def main() -> None:
    """Build the memory, then measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", default="edge")
    parser.add_argument("--memory", default="5.34MiB", help="the cap of all layers of the model")
    parser.add_argument("--disk", default="1GiB", help="0: none")
    parser.add_argument("--frames", default="768,1536,3072")
    parser.add_argument("--no-prefetch", action="store_true", help="the disk is not asked ahead")
    parser.add_argument("--layers", type=int, default=4, help="that are run; times are given for all")
    o = parser.parse_args()
    heads = Heads(o.layers, query=14, kv=2, dim=64)
    shared = parse_bytes("0.4MiB")  # of a cap: scratch and tables that all layers use
    cap = shared + (parse_bytes(o.memory) - shared) * o.layers // LAYERS
    config = {"cap_bytes": cap, "window_frames": 1, "branch_tokens": 19, "disk_bytes": parse_bytes(o.disk)}
    config["prefetch"] = not o.no_prefetch
    with tempfile.TemporaryDirectory() as folder:
        config["spill_dir"] = folder
        memory = _core.KvMemory(heads.model(FRAME_TOKENS), config, o.policy, {}, "cpu", 1)
        measure(RandomStream(heads, FRAME_TOKENS, memory), [int(n) for n in o.frames.split(",")])


if __name__ == "__main__":
    main()
