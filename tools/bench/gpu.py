"""`python tools/bench/gpu.py --bench build/gpu/kernels_bench`: what tools/gpu_check.sh measures, table last.

Kernels beside torch and the measured ceilings of the same device, then an hour of video in the shapes of a
3B and a 7B model. --rehearse runs all of it on the CPU with tiny sizes: to see that it works, no numbers to
quote. Ends with 1 when a stream failed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpu_decoder import SHAPES, TINY
from gpu_peers import Device, bench_kernels
from gpu_stream import POLICIES, bench_streams


def rate(row: dict[str, Any]) -> str:
    unit = "G mul-add/s" if row["op"] == "assign" else "GB/s"
    share = "" if row["share"] is None else f"{100 * row['share']:.0f} %"
    return f"{row['rate'] / 1e9:>9.1f} {unit:<11} {share:>5}"


def peers(row: dict[str, Any]) -> str:
    if row["op"] == "attend":
        bare, gathered = row["sdpa_seconds"], row["gather_sdpa_seconds"]
        ratio = gathered / row["seconds"]
        return f"SDPA {1e6 * bare:.0f} us, gather + SDPA {1e6 * gathered:.0f} us ({ratio:.2f}x ours)"
    if row["op"] == "assign":
        return (
            f"torch {1e6 * row['torch_seconds']:.0f} us ({row['torch_seconds'] / row['seconds']:.2f}x ours)"
        )
    return ""


def stream_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The table of the streams, and what rekv needs to its first token beside mosaic."""
    lines = [
        f"{'model':<10}{'policy':<8}{'frames':>12}{'frame ms':>10}{'memory ms':>11}{'first token ms':>16}"
        f"{'memory GiB':>12}{'device GiB':>12}"
    ]
    first: dict[tuple[str, str], tuple[int, float]] = {}
    for row in rows:
        start = f"{row['model']:<10}{row['policy']:<8}"
        if "error" in row:
            lines.append(start + row["error"])
            continue
        first[row["model"], row["policy"]] = row["frames"], row["first_token_seconds"]
        device = "-" if row["device_bytes"] is None else f"{row['device_bytes'] / 2**30:.2f}"
        lines.append(
            f"{start}{row['frames']:>5} /{row['of_frames']:>5}{1e3 * row['frame_seconds']:>10.2f}"
            f"{1e3 * row['memory_seconds']:>11.2f}{1e3 * row['first_token_seconds']:>16.2f}"
            f"{row['memory_bytes'] / 2**30:>12.2f}{device:>12}"
        )
    for model in dict.fromkeys(row["model"] for row in rows):
        rekv, mosaic = first.get((model, "rekv")), first.get((model, "mosaic"))
        if rekv and mosaic and rekv[0] == mosaic[0]:
            lines.append(f"{model}: first token, rekv / mosaic = {rekv[1] / mosaic[1]:.2f}")
        elif rekv and mosaic:
            lines.append(f"{model}: first tokens are of {rekv[0]} and {mosaic[0]} frames: not to be compared")
    return lines


def show(result: dict[str, Any]) -> None:
    print(f"\n{result['device']}; torch {result['torch']}, CUDA {result['cuda']}")
    if result["rehearsal"]:
        print("REHEARSAL on the CPU with tiny sizes: these are no measurements")
    kernels = result["kernels"]
    print(f"matrix product: {kernels['matmul_multiply_adds_per_second'] / 1e12:.2f} T mul-add/s")
    for row in kernels["rows"]:
        print(f"{row['name']:<48}{1e6 * row['seconds']:>10.1f} us {rate(row)}  {peers(row)}".rstrip())
    print(f"\n{result['stream_note']}")
    print("\n".join(stream_lines(result["streams"])))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bench", required=True, help="the program kernels_bench of a build")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, tiny")
    parser.add_argument("--seconds", type=float, default=30.0, help="most seconds of one stream")
    parser.add_argument("--policies", default=",".join(POLICIES))
    options = parser.parse_args()
    import torch

    from mosaic_edge import _core

    device = Device(torch, "cpu" if options.rehearse else "cuda")
    if device.is_cuda and not torch.cuda.is_available():
        print("gpu bench: torch sees no GPU. --rehearse runs on the CPU.", file=sys.stderr)
        return 1
    if options.rehearse:
        torch.set_num_threads(1)  # handing tiny work over takes longer than doing it
    shapes = TINY if options.rehearse else SHAPES
    result: dict[str, Any] = {
        "device": device.describe(), "torch": torch.__version__, "cuda": torch.version.cuda,
        "rehearsal": options.rehearse,
        "stream_note": f"{shapes[0].frames} frames of {shapes[0].frame_tokens} and {shapes[1].frame_tokens} "
        "tokens, 0.5 a second, random weights; linear layers run for one frame in 60 and the first ones",
    }  # fmt: skip
    with torch.inference_mode():
        result["kernels"] = bench_kernels(options.bench, device)
        result["streams"] = bench_streams(_core, shapes, device, options.seconds, options.policies.split(","))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    show(result)
    return 1 if any("error" in row for row in result["streams"]) else 0


if __name__ == "__main__":
    sys.exit(main())
