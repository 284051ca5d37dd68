"""KV caches side by side on one model: `python tools/bench caches [--size tiny|small|3b] [--out DIR]`.

One random-weight Qwen2.5-VL-shaped model, the same frames and the same question for every method; at every
length of the stream it is asked, and the question leaves no trace. The caches of transformers grow with the
stream, ours have one cap for all lengths. Times are of decoder and cache (the vision tower ran before);
frame times are those of the frames just before the question. A method that breaks --budget stops there and
the table says so. --out writes caches.md and caches.png; caches.json beside them keeps what is finished, so
that a run can be taken up again with the same settings.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cache_model import SIZES, Recorded, Size, build_model, encode_frames
from cache_report import write_report
from cache_streams import Stream, contestants

QUESTION = "what lay on the table before the lamp was moved?"
ANSWER = 16
LENGTHS = (32, 64, 128, 256, 512)
RECENT = 32
"""Frames before the question whose times are shown, at most half of the stream."""


@dataclass(frozen=True)
class Row:
    """One method at one length. Times in milliseconds."""

    method: str
    frames: int
    frame_ms: float = 0.0
    frame_p95_ms: float = 0.0
    frame_cpu_ms: float = 0.0
    first_token_ms: float = 0.0
    first_token_cpu_ms: float = 0.0
    tokens_per_s: float = 0.0
    cache_bytes: int = 0
    """Most the cache held: taken of the cap (ours), bytes of its tensors (the library's)."""
    cap_bytes: int = 0
    """0: it has none."""
    rss_growth_bytes: int = 0
    """Most the process grew by while the frames came in."""
    load: float = 0.0
    """Load average of the machine at the time."""
    stopped: str = ""
    """Why there is no measurement at this length."""


LIBRARY = ("DynamicCache", "QuantizedCache")
"""How the names of the library's methods begin."""


class Rss:
    """Resident memory of this process since the object was made; the kernel keeps the peak (Linux)."""

    def __init__(self) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what freed blocks are still held would hide growth
        self.base = _status("VmRSS")
        self.most = 0

    def forget_peak(self) -> None:
        """Count from now on; what came before is in `growth` or not wanted."""
        Path("/proc/self/clear_refs").write_text("5")

    def growth(self) -> int:
        """The most since it was made, the times before a forget_peak() left out that was not asked for."""
        self.most = max(self.most, _status("VmHWM") - self.base)
        return self.most


def measure(
    name: str,
    open_stream: Callable[[Recorded], Stream],
    recorded: Recorded,
    lengths: tuple[int, ...],
    cap: int,
    budget: float,
) -> Iterator[Row]:
    """Rows of one method, one per length; cap in bytes, 0 without; budget in CPU seconds of the stream."""
    rss = Rss()
    try:
        stream = open_stream(recorded)
    except (AssertionError, ImportError, ValueError) as error:  # a backend that is not here says so by any
        yield Row(name, lengths[0], cap_bytes=cap, stopped=f"not run: {_first_line(error)}")
        return
    began, number, held = time.process_time(), 0, 0
    wall: list[float] = []
    cpu: list[float] = []
    try:
        for length in lengths:
            rss.forget_peak()
            while number < length:
                at, cpu_at = time.perf_counter(), time.process_time()
                stream.append(number)
                wall.append(time.perf_counter() - at)
                cpu.append(time.process_time() - cpu_at)
                number += 1
                held = max(held, stream.cache_bytes())
                spent = time.process_time() - began
                if spent > budget:
                    yield Row(name, number, cap_bytes=cap, stopped=f"stopped: took {budget:.0f} CPU s")
                    return
            growth = rss.growth()
            answer = stream.ask(QUESTION, ANSWER)
            recent = min(RECENT, max(1, length // 2))
            yield Row(
                method=name,
                frames=length,
                frame_ms=1e3 * statistics.median(wall[-recent:]),
                frame_p95_ms=1e3 * sorted(wall[-recent:])[int(0.95 * recent)],
                frame_cpu_ms=1e3 * statistics.median(cpu[-recent:]),
                first_token_ms=1e3 * answer.first,
                first_token_cpu_ms=1e3 * answer.first_cpu,
                tokens_per_s=answer.rate,
                cache_bytes=held,
                cap_bytes=cap,
                rss_growth_bytes=growth,
            )
    except ValueError as error:  # a quantiser that cannot take this shape says so at its first block
        yield Row(name, number, cap_bytes=cap, stopped=f"stopped: {_first_line(error)}")
    finally:
        stream.close()


def compare(
    size: Size,
    lengths: tuple[int, ...],
    cap: int,
    budget: float,
    methods: list[str],
    keep: Callable[[list[Row], dict[str, float]], None],
) -> None:
    """Measure `methods`; `keep` is given the rows of each, and milliseconds of the vision tower a frame."""
    model = build_model(size)
    encode_frames(model, size, 1)
    at, cpu = time.perf_counter(), time.process_time()
    frames = encode_frames(model, size, lengths[-1])
    vision = {
        "vision_ms": 1e3 * (time.perf_counter() - at) / len(frames),
        "vision_cpu_ms": 1e3 * (time.process_time() - cpu) / len(frames),
    }
    recorded = Recorded(model, frames)
    for name in methods:
        make = contestants(cap)[name]
        _warm_up(make, recorded)
        own = 0 if name.startswith(LIBRARY) else cap
        rows = []
        for row in measure(name, make, recorded, lengths, own, budget):
            rows.append(replace(row, load=os.getloadavg()[0]))
            print(json.dumps(asdict(rows[-1])), file=sys.stderr, flush=True)
        keep(rows, vision)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tools/bench caches", description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)), help="frames, rising")
    parser.add_argument("--cap-frames", type=int, default=64, help="cap: what so many frames are cached in")
    parser.add_argument("--budget", type=float, default=240.0, help="CPU seconds a method may take")
    parser.add_argument("--methods", help="names from the table, separated by ';'")
    parser.add_argument("--json", action="store_true", help="rows as JSON on standard output")
    parser.add_argument("--out", type=Path, help="write caches.md, .png and .json into this directory")
    settings = parser.parse_args(arguments)
    size = SIZES[settings.size]
    lengths = tuple(int(n) for n in settings.lengths.split(","))
    if list(lengths) != sorted(set(lengths)) or lengths[0] < 1:
        parser.error(f"--lengths {settings.lengths}: expected rising numbers of frames")
    cap = settings.cap_frames * size.cached_bytes_per_frame
    methods = settings.methods.split(";") if settings.methods else list(contestants(cap))
    unknown = [name for name in methods if name not in contestants(cap)]
    if unknown:
        parser.error(f"--methods: no {unknown[0]!r}; there are {'; '.join(contestants(cap))}")
    rows: list[Row] = []
    facts: dict[str, Any] = {
        "size": settings.size, "lengths": list(lengths), "cap_frames": settings.cap_frames,
        "cap_bytes": cap, "budget": settings.budget,
    }  # fmt: skip
    kept = None if settings.out is None else settings.out / "caches.json"
    if kept is not None and kept.exists():
        before = json.loads(kept.read_text(encoding="utf-8"))
        if any(before["facts"][key] != value for key, value in facts.items()):
            parser.error(f"{kept} is of other settings; remove it or give another --out")
        facts, rows = before["facts"], [Row(**row) for row in before["rows"]]

    def keep(new: list[Row], vision: dict[str, float]) -> None:
        rows.extend(new)
        facts.update(vision)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            whole = {"facts": facts, "rows": [asdict(row) for row in rows]}
            kept.write_text(json.dumps(whole), encoding="utf-8")

    missing = [name for name in methods if name not in {row.method for row in rows}]
    if missing:
        compare(size, lengths, cap, settings.budget, missing, keep)
    if settings.json:
        print(json.dumps({"facts": facts, "rows": [asdict(row) for row in rows]}))
    if settings.out is not None or not settings.json:
        command = " ".join(["python tools/bench caches", *map(shlex.quote, arguments or [])])
        print(write_report(rows, size, facts, command, settings.out))
    return 0


def _warm_up(make: Callable[[Recorded], Stream], recorded: Recorded) -> None:
    """Two frames and a question: kernels are chosen and compiled, pages of weights touched."""
    try:
        stream = make(recorded)
    except (AssertionError, ImportError, ValueError):
        return  # measure() says why
    try:
        for number in range(min(2, len(recorded.frames))):
            stream.append(number)
        stream.ask(QUESTION, 2)
    except ValueError:
        pass
    finally:
        stream.close()


def _status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
