"""From the cells of an evaluation to its rows: accuracy, interval, kinds, delays, times, bytes, account."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from mosaic_edge.bootstrap import bootstrap_interval

Row = dict[str, Any]

DELAYS = (30.0, 120.0, 300.0)
"""Bounds in seconds of the groups of `by_delay`."""


def build_row(cells: list[Row], frames: int) -> Row:
    """Join the cells of one policy, difficulty and cap over their streams."""
    first = cells[0]
    row: Row = {"policy": first["policy"], "difficulty": first["difficulty"], "frames": frames}
    row["cap_share"] = first["cap_share"]
    row["cap_bytes"] = max(cell["cap_bytes"] for cell in cells)
    row["seeds"] = [cell["seed"] for cell in cells]
    errors = [cell["error"] for cell in cells if "error" in cell]
    if errors:
        return {**row, "error": errors[0]}
    streams = [[bool(a["right"]) for a in cell["answers"]] for cell in cells]
    answers = [a for cell in cells for a in cell["answers"]]
    low, high = bootstrap_interval(streams)
    ttft = np.percentile([a["ttft_ms"] for a in answers], [50, 95])
    frame = np.percentile(np.concatenate([cell["frame_ms"] for cell in cells]), [50, 99])
    bounds = [0.0, *DELAYS, float("inf")]
    delays = {
        f"{a:g}-{b:g} s" if b < float("inf") else f"over {a:g} s": [q for q in answers if a <= q["delay"] < b]
        for a, b in pairwise(bounds)
    }
    kinds = sorted({a["kind"] for a in answers})
    account = {
        part: {name: sum(cell["memory"][part][name] for cell in cells) for name in first["memory"][part]}
        for part in ("tokens", "events", "disk")
    }
    return row | {
        "peak_bytes": max(cell["memory"]["peak_bytes"] for cell in cells),
        "accuracy": _accuracy(answers),
        "ci_low": low,
        "ci_high": high,
        "questions": len(answers),
        "ttft_ms_p50": float(ttft[0]),
        "ttft_ms_p95": float(ttft[1]),
        "frame_ms_p50": float(frame[0]),
        "frame_ms_p99": float(frame[1]),
        "evidence_recall": float(np.mean([a["evidence_read"] for a in answers])),
        "by_kind": {kind: _group([a for a in answers if a["kind"] == kind]) for kind in kinds},
        "by_delay": {name: _group(asked) for name, asked in delays.items() if asked},
        "tiers": first["memory"]["tiers"],
        **account,
    }


def _accuracy(answers: list[Row]) -> float:
    return float(np.mean([a["right"] for a in answers]))


def _group(answers: list[Row]) -> Row:
    return {"accuracy": _accuracy(answers), "questions": len(answers)}
