"""`python tools/bench/gpu.py --bench build/gpu/kernels_bench`: stages 3 and 5 of tools/gpu_check.

Kernels beside torch and the measured ceilings of the same device, then an hour of video in the shapes of a
3B and a 7B model. Each row is a JSON line of --lines the moment it is measured; the tables come last.
--rehearse runs all of it on the CPU with tiny sizes: to see that it works, no numbers to quote. Ends with 1
when a kernel or a stream failed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "gpu_check"))

from gpu_decoder import SHAPES, TINY
from gpu_peers import Device, bench_kernels
from gpu_stream import POLICIES, bench_streams
from report import kernel_table, stream_table


class Rows:
    """What was measured, on disk and here."""

    def __init__(self, lines: Path | None) -> None:
        self.lines = lines
        self.all: list[dict[str, Any]] = []

    def emit(self, row: dict[str, Any]) -> None:
        self.all.append({"line": "row"} | row)
        if self.lines is not None:
            with self.lines.open("a") as file:
                file.write(json.dumps(row) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bench", help="the program kernels_bench of a build")
    parser.add_argument("--only", choices=("kernels", "streams"), help="half of it")
    parser.add_argument("--lines", type=Path, help="append the rows to this file")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, tiny")
    parser.add_argument("--seconds", type=float, default=240.0, help="of all streams")
    parser.add_argument("--policies", default=",".join(POLICIES))
    options = parser.parse_args()
    if options.only != "streams" and options.bench is None:
        parser.error("--bench names the program kernels_bench of a build")
    import torch

    device = Device(torch, "cpu" if options.rehearse else "cuda")
    if device.is_cuda and not torch.cuda.is_available():
        print("gpu bench: torch sees no GPU. --rehearse runs on the CPU.", file=sys.stderr)
        return 1
    if options.rehearse:
        torch.set_num_threads(1)  # handing tiny work over takes longer than doing it
    print(f"{device.describe()}; torch {torch.__version__}, CUDA {torch.version.cuda}")
    if options.rehearse:
        print("REHEARSAL on the CPU with tiny sizes: these are no measurements")
    rows, good = Rows(options.lines), True
    with torch.inference_mode():
        if options.only != "streams":
            fault = bench_kernels(options.bench, device, rows.emit)
            good = not fault
            print(fault or "kernels: all of them", file=sys.stderr)
        if options.only != "kernels":
            from mosaic_edge import _core

            shapes = TINY if options.rehearse else SHAPES
            policies = options.policies.split(",")
            good = bench_streams(_core, shapes, device, options.seconds, policies, rows.emit) and good
    print("\n".join(kernel_table(rows.all) + stream_table(rows.all)))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
