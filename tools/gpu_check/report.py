"""`python tools/gpu_check/report.py OUT [--write docs/results]`: gpu-NAME.md of the results that a GPU gave.

OUT holds results.jsonl of tools/gpu_check. The page has the device, its driver, the shapes, our times beside
torch's and the ceilings of the same run; and what was not measured, and why. A rehearsal is refused.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

Row = dict[str, Any]
OURS = "edge"  # the default policy
PEERS = ("rekv", "full", "mosaic")


def microseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e6 * seconds:.1f}"


def rate_of(row: Row) -> str:
    return f"{row['rate'] / 1e9:.1f} {'G mul-add/s' if row['op'] == 'assign' else 'GB/s'}"


def share_of(row: Row) -> str:
    return "-" if row.get("share") is None else f"{100 * row['share']:.0f} %"


def peer_of(row: Row) -> tuple[str, str]:
    """Torch's time on equal sizes, and how many of ours it is; above 1 ours is faster."""
    peer = row.get("sdpa_seconds", row.get("torch_seconds"))
    return ("-", "-") if peer is None else (microseconds(peer), f"{peer / row['seconds']:.2f}")


def table(head: list[str], body: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *body]
    return ["| " + " | ".join(line) + " |" for line in lines] if body else []


def kernel_rows(lines: list[Row]) -> list[list[str]]:
    rows = [line for line in lines if line.get("line") == "row" and line["op"] != "stream"]
    body = []
    for row in rows:
        gathered = row.get("gather_sdpa_seconds")
        body.append([row["name"], microseconds(row["seconds"]), rate_of(row), share_of(row), *peer_of(row)])
        body[-1].append("-" if gathered is None else f"{gathered / row['seconds']:.2f}")
    return body


KERNEL_HEAD = ["kernel", "us", "rate", "of its ceiling", "torch us", "torch / ours", "gather + SDPA / ours"]


def kernel_table(lines: list[Row]) -> list[str]:
    """For a terminal."""
    return aligned(KERNEL_HEAD, kernel_rows(lines))


def streams_of(lines: list[Row]) -> list[Row]:
    return [line for line in lines if line.get("line") == "row" and line["op"] == "stream"]


def stream_rows(lines: list[Row]) -> list[list[str]]:
    body = []
    for row in streams_of(lines):
        if "error" in row:
            body.append([row["model"], row["policy"], "failed", *["-"] * 5])
            continue
        taken = row.get("device_bytes")
        body.append([
            row["model"], row["policy"], f"{row['frames']} of {row['of_frames']}",
            f"{1e3 * row['frame_seconds']:.2f}", f"{1e3 * row['memory_seconds']:.2f}",
            f"{1e3 * row['first_token_seconds']:.2f}", f"{row['memory_bytes'] / 2**30:.2f}",
            "-" if taken is None else f"{taken / 2**30:.2f}",
        ])  # fmt: skip
    return body


STREAM_HEAD = [
    "model",
    "policy",
    "frames",
    "frame ms",
    "memory ms",
    "first token ms",
    "cap GiB",
    "device GiB",
]


def ratio_lines(lines: list[Row]) -> list[str]:
    """First-token times of the peers over ours after as many frames; and what failed."""
    seen = {
        (row["model"], row["policy"]): row["first_token_seconds_by_frames"]
        for row in streams_of(lines)
        if "error" not in row
    }
    text = [
        f"{row['model']} {row['policy']} failed: {row['error']}"
        for row in streams_of(lines)
        if "error" in row
    ]
    for model in dict.fromkeys(model for model, _ in seen):
        for peer in PEERS:
            ours, theirs = seen.get((model, OURS), {}), seen.get((model, peer), {})
            both = sorted(map(int, ours.keys() & theirs.keys()))
            if both:
                at = str(both[-1])
                text.append(
                    f"{model}: first token after {at} frames, {peer} / {OURS} = {theirs[at] / ours[at]:.2f}"
                )
    return text


def stream_table(lines: list[Row]) -> list[str]:
    """For a terminal."""
    return aligned(STREAM_HEAD, stream_rows(lines)) + ratio_lines(lines)


def aligned(head: list[str], body: list[list[str]]) -> list[str]:
    if not body:
        return []
    width = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]
    rows = ["  ".join(cell.ljust(w) for cell, w in zip(line, width, strict=True)) for line in (head, *body)]
    return [row.rstrip() for row in (*rows, "")]


def asked_lines(lines: list[Row]) -> list[str]:
    """What the project asks of decode attention on a GPU, answered from the rows."""
    rows = [row for row in lines if row.get("line") == "row" and row["op"] == "attend"]
    return [
        f"- {row['name']}: {share_of(row)} of the copy rate (60 % is asked), torch's SDPA "
        f"{row['sdpa_seconds'] / row['seconds']:.2f} of ours (above 1 is asked)"
        for row in rows
        if row["queries"] == 1 and row["tokens"] >= 12544
    ]


def name_of(device: str) -> str:
    """H200 of "NVIDIA H200, sm_90, ...", as a file's name has it."""
    bare = re.sub(r"^NVIDIA\s+", "", device.split(",")[0])
    return re.sub(r"[^a-z0-9]+", "-", bare.lower()).strip("-")


KERNEL_NOTE = """\
Ceiling: of attend and score the copy rate within the device, of extents one copy over the link, of assign
torch's matrix product, all of the same run. torch: SDPA on gathered halves whose keys are rotated already, a
matrix product for assign and score. Ratios above 1: ours is faster."""
STREAM_NOTE = """\
Random weights in the shapes of Qwen2.5-VL, 196 tokens a frame, 0.5 frames a second; linear layers run for one
frame in 60 and the first ones. frame: with all linear layers; memory: of a frame without them."""


def page(lines: list[Row]) -> tuple[str, str]:
    """The file's name and its text."""
    machine = next((line for line in lines if line["line"] == "machine"), None)
    if machine is None:
        raise SystemExit("report: results.jsonl names no machine: not of tools/gpu_check, or cut short")
    if machine["rehearsal"]:
        raise SystemExit("report: this was a rehearsal on the CPU; its times say nothing of a GPU")
    stages = [line for line in lines if line["line"] == "stage"]
    failed = [line for line in lines if line["line"] == "failed"]
    tests = [line for line in lines if line["line"] == "tests"]
    ran, bad = sum(row["cases"] for row in tests), sum(row["failed"] for row in tests)
    states = [[row["stage"], row["state"], f"{row['seconds']:.0f}", row["why"]] for row in stages]
    text = [
        f"# {machine['device']}", "",
        f"`python tools/gpu_check` of commit {machine['commit']}; driver {machine['driver']},",
        f"{machine['nvcc']}, torch {machine['torch']}, {machine['cores']} cores.",
        "Written by `python tools/gpu_check/report.py`.", "",
        f"Test cases on the GPU: {ran}, of which {bad} failed.",
        *[f"- failed: {row['stage']}: {row['case']}" for row in failed], "",
        *table(["stage", "", "s", ""], states), "",
        "## Kernels", KERNEL_NOTE, "",
        *table(KERNEL_HEAD, kernel_rows(lines)), "", *asked_lines(lines), "",
        "## Streams", STREAM_NOTE, "",
        *table(STREAM_HEAD, stream_rows(lines)), "", *[f"- {line}" for line in ratio_lines(lines)],
    ]  # fmt: skip
    return f"gpu-{name_of(machine['device'])}.md", "\n".join(text).rstrip() + "\n"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tools/gpu_check/report.py", description=__doc__)
    parser.add_argument("out", type=Path, nargs="+", help="folders of one or several calls, in order")
    parser.add_argument("--write", type=Path, help="write the page there instead of printing it")
    given = parser.parse_args(arguments)
    lines = [
        json.loads(text)
        for out in given.out
        for text in (out / "results.jsonl").read_text().splitlines()
        if text.endswith("}")  # the last line of a run that was killed may be half a line
    ]
    name, text = page(lines)
    if given.write is None:
        print(text, end="")
    else:
        (given.write / name).write_text(text)
        print(given.write / name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
