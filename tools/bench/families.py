"""Every family of models under every policy: a real video for thousands of frames at a tenth of its memory.

Models are the small ones with random weights that the tests build: `hf` as transformers saves them, `onnx` as
others' exporters write them. The cap is a share of what keys and values of the whole stream would take in
half precision. Each cell is a process of its own. It fails on a breach (more bytes than the cap, a tier over
its size, a token without a place, an invariant), on an answer that is not finite, and when RSS at any later
sample exceeds that at frame WARM by more than `--allow`: what the process holds must not follow the stream.
`full` keeps all or refuses: its row is where it did.

    python tools/bench/families.py --video walk.mp4 [--frames 2000] [--policies edge,mosaic] [--json]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

WARM = 500
"""Frames until caches, allocator and interpreter have what they need."""
EVERY, ASK = 50, 250
MEASURED = ("edge", "mosaic", "infinipot-v", "rekv")  # over all frames; the others over half
ONNX = {
    "llava": ("transformers.js", "fp32"),
    "qwen2.5-vl": ("genai", "int4", "accuracy_level=1"),
    "qwen3-vl": ("genai", "int4", "accuracy_level=1"),
}
ANY_ASPECT = 12  # tokens of a frame, where a family resizes


def looped(path: str) -> Iterator[tuple[np.ndarray, float]]:
    """Every frame of the file, over and over, on one timeline."""
    from mosaic_edge.sources import VideoSource

    begin = 0.0
    for _ in count():
        pts = last = step = 0.0
        first: float | None = None
        for frame in VideoSource(path):
            first = frame.pts if first is None else first
            pts = frame.pts - first
            step, last = max(step, pts - last), pts
            yield frame.image, begin + pts
        begin += pts + (step or 1.0)


def run_cell(folder: str, path: str, policy: str, frames: int, share: float, video: str) -> dict[str, Any]:
    """One stream: what was taken, what RSS did, what was wrong."""
    import psutil

    from mosaic_edge import Engine, MemoryCapError
    from mosaic_edge.evaluation.stress import breach_of
    from mosaic_edge.evaluation.variants import parse_variant
    from mosaic_edge.sampling import SamplingParams

    wide = "qwen" in Path(folder).name
    options: dict[str, Any] = {"tokens_per_frame": ANY_ASPECT} if wide else {}
    engine = Engine.load(folder, threads=1, device="cpu", **options)
    source = looped(video)
    image, _ = next(source)
    tokens = len(engine.model.encode(image, 100.0, 100.0, 1000).tokens)
    whole = frames * tokens * engine.spec.kv_bytes_per_token
    cap = int(share * whole)
    question, room = ("what?", 96) if path == "hf" else ("w5 w6 w7", 16)
    process, rss, breaches, refused = psutil.Process(), [], [], ""
    began, done, seconds = time.perf_counter(), 0, 0.0
    variant = parse_variant(policy)
    chosen = {"policy": variant.policy, "policy_settings": variant.policy_settings, **variant.session}
    with engine.session(memory=cap, kernel_threads=1, branch_tokens=room, **chosen) as session:
        for image, pts in looped(video):
            try:
                session.append(image, pts)
            except MemoryCapError as error:
                refused = str(error)
                break
            done += 1
            if done % ASK == 0 or done == frames:
                session.check_invariants()
                reply = session.ask(question, sampling=SamplingParams(max_tokens=4))
                if not np.isfinite(reply.logits).all():
                    breaches.append(f"frame {done}: logits are not finite")
            if done % EVERY == 0 or done == frames:
                rss.append((done, process.memory_info().rss))
                breaches += filter(None, [breach_of(session.memory())])
            if done == frames:
                break
        seconds = time.perf_counter() - began
        memory = session.memory()
    warm = next((value for at, value in rss if at >= WARM), 0)
    return {
        "policy": policy,
        "frames": done,
        "tokens_per_frame": tokens,
        "whole_bytes": whole,
        "cap_bytes": memory["cap_bytes"],
        "taken_bytes": memory["taken_bytes"],
        "breaches": breaches,
        "rss_warm_bytes": warm,
        "rss_end_bytes": rss[-1][1] if rss else 0,
        "rss_most_bytes": max((value for at, value in rss if at >= WARM), default=0),
        "frames_per_second": done / max(seconds, 1e-9),
        "tokens": memory["tokens"],
        "refused": refused,
    }


def models(root: Path, paths: list[str], families: list[str]) -> Iterator[tuple[str, str, Path]]:
    """(path, family, directory), written to `root`."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "material"))
    import torch

    from exported_models import Exporter
    from fixtures_hf import FAMILIES, write_checkpoint

    torch.set_num_threads(1)
    wanted = [("hf", f) for f in FAMILIES] + [("onnx", f) for f in ONNX]
    exporter = Exporter(root / "exported")
    (root / "exported").mkdir()
    for path, family in wanted:
        if path not in paths or (families and family not in families):
            continue
        place = root / path / family
        place.parent.mkdir(exist_ok=True)
        if path == "hf":
            write_checkpoint(family, place)
        else:
            exporter(family, *ONNX[family]).rename(place)
        yield path, family, place


def fault_of(row: dict[str, Any], frames: int, allow: int) -> str:
    """What fails a row, or nothing."""
    if "error" in row:
        return str(row["error"])
    if row["breaches"]:
        return str(row["breaches"][0])
    if row["policy"] != "full" and row["frames"] < frames:
        return f"refused frame {row['frames'] + 1}: {row['refused']}"
    if row["policy"] == "full" and not row["refused"]:
        return "full held a stream ten times its cap"
    grew = row["rss_most_bytes"] - row["rss_warm_bytes"]
    if grew > allow:
        return f"RSS grew by {grew} bytes after frame {WARM}; it may by {allow}"
    return ""


def is_measured(policy: str) -> bool:
    """Over all frames: a policy of MEASURED, with whatever settings."""
    return policy.partition("[")[0] in MEASURED


HEAD = (
    "| path | family | policy | frames | tokens each | cap KiB | peak KiB | breaches "
    f"| RSS MiB at {WARM}, most after, end | frames/s |\n|---|---|---|---|---|---|---|---|---|---|"
)


def line(row: dict[str, Any]) -> str:
    """A row of the table, its fault last."""
    cells = [row["path"], row["family"], row["policy"]]
    if "error" not in row:
        keys = ("rss_warm_bytes", "rss_most_bytes", "rss_end_bytes")
        cells += [
            f"refuses frame {row['frames'] + 1}" if row["refused"] else str(row["frames"]),
            str(row["tokens_per_frame"]),
            f"{row['cap_bytes'] / 1024:.1f}",
            f"{row['taken_bytes'] / 1024:.1f}",
            str(len(row["breaches"])),
            ", ".join(f"{row[k] / 2**20:.1f}" for k in keys) if row["rss_warm_bytes"] else "-",
            f"{row['frames_per_second']:.0f}",
        ]
    return " | ".join(["", *cells, row["fault"]]).strip() + ("" if not row["fault"] else " |")


def measure(place: Path, path: str, policy: str, frames: int, args: argparse.Namespace) -> dict[str, Any]:
    """A cell in a process of its own."""
    cell = json.dumps([str(place), path, policy, frames, args.share, args.video])
    command = [sys.executable, __file__, "--video", args.video, "--cell", cell]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def main() -> int:
    """The table on stdout, a line per cell on stderr; exit code 1 when a row fails."""
    from mosaic_edge import _core
    from mosaic_edge.config import parse_bytes

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--video", required=True, help="any file PyAV reads; it is looped")
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--share", type=float, default=0.1, help="cap, of what the whole stream would take")
    parser.add_argument("--paths", default="hf,onnx")
    parser.add_argument("--families", default="", help="names, by commas; all when not given")
    parser.add_argument("--policies", default=",".join(_core.policies()))
    parser.add_argument("--fewer", type=int, help=f"frames for policies other than {', '.join(MEASURED)}")
    parser.add_argument("--allow", default="4MiB", help="RSS may grow by so much after warm-up")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        print(json.dumps(run_cell(*json.loads(args.cell))))
        return 0
    if args.frames <= WARM:
        parser.error(f"--frames {args.frames}: expected more than the {WARM} of the warm-up")
    rows, faults, allow = [], 0, parse_bytes(args.allow, "allow")

    def cell(work: tuple[str, str, Path, str]) -> tuple[dict[str, Any], int]:
        path, family, place, policy = work
        frames = args.frames if args.fewer is None or is_measured(policy) else args.fewer
        return {"path": path, "family": family, "policy": policy} | measure(
            place, path, policy, frames, args
        ), frames

    with tempfile.TemporaryDirectory() as root, ThreadPoolExecutor(args.jobs) as pool:
        families = [f for f in args.families.split(",") if f]
        made = list(models(Path(root), args.paths.split(","), families))
        policies = sorted(args.policies.split(","), key=lambda policy: not is_measured(policy))
        work = [(*model, policy) for policy in policies for model in made]
        for row, frames in pool.map(cell, work):
            row["fault"] = fault_of(row, frames, allow)
            faults += bool(row["fault"])
            rows.append(row)
            print(line(row), file=sys.stderr, flush=True)
    print(json.dumps(rows) if args.json else "\n".join([HEAD, *map(line, rows)]))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
