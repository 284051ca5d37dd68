"""From the cells of an evaluation to its rows: accuracy, interval, kinds, delays, times, bytes, account."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mosaic_edge.evaluation.bootstrap import bootstrap_interval

Row = dict[str, Any]
Logits = NDArray[np.float32]

DELAYS = (30.0, 120.0, 480.0, 1920.0)
"""Bounds in seconds of the groups of `by_delay`."""


def build_row(cells: list[Row], logits: Sequence[tuple[Logits, Logits]] | None = None) -> Row:
    """Join the cells of one policy, cap, disk, difficulty and length over their streams.

    logits: (of full, of the cell) [questions, vocab] of each stream; None: `full` was not measured.
    """
    first = cells[0]
    same = ("policy", "reference", "difficulty", "frames", "cap", "cap_share", "disk_bytes")
    row: Row = {name: first[name] for name in same}
    row["cap_bytes"] = max(cell["cap_bytes"] for cell in cells)
    row["seeds"] = [cell["seed"] for cell in cells]
    errors = [cell["error"] for cell in cells if "error" in cell]
    if errors:
        return {**row, "error": errors[0]}
    answers = [a for cell in cells for a in cell["answers"]]
    row["taken_bytes"] = max(cell["memory"]["taken_bytes"] for cell in cells)
    return row | _answered(cells, answers) | _divergence(logits) | _times(cells, answers) | _account(cells)


def kl_divergence(reference: Logits, other: Logits) -> NDArray[np.float64]:
    """KL(reference || other) in nats of every row of logits [n, vocab]."""
    p, q = (_log_softmax(x.astype(np.float64)) for x in (reference, other))
    return np.maximum((np.exp(p) * (p - q)).sum(1), 0.0)


def _log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = x - x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def _answered(cells: list[Row], answers: list[Row]) -> Row:
    """What was right, by kind and by delay; what was read; whether the order of questions mattered."""
    low, high = bootstrap_interval([[bool(a["right"]) for a in cell["answers"]] for cell in cells])
    bounds = [0.0, *DELAYS, float("inf")]
    delays = {
        f"{a:g}-{b:g} s" if b < float("inf") else f"over {a:g} s": [
            [q for q in cell["answers"] if a <= q["delay"] < b] for cell in cells
        ]
        for a, b in pairwise(bounds)
    }
    kinds = sorted({a["kind"] for a in answers})
    holds_all = all(
        not cell["selects"]
        and cell["memory"]["tokens"]["collapsed"] + cell["memory"]["tokens"]["dropped"] == 0
        for cell in cells
    )
    turns = [cell["order_independent"] for cell in cells if cell["order_independent"]]
    asked = sum(turn["questions"] for turn in turns)
    right = [a for a in answers if a["right"]]
    return {
        "accuracy": _share(answers, "right"),
        "ci_low": low,
        "ci_high": high,
        "questions": len(answers),
        "evidence_recall": _share(answers, "evidence_read"),
        "evidence_of_right": _share(right, "evidence_read") if right else None,
        "evidence_by_chance": _share(answers, "evidence_by_chance"),
        "retrieval_recall": 1.0 if holds_all else _share(answers, "retrieved"),
        "retrieval_recall_unsure": 0.0 if holds_all else _unsure(answers),
        "order_independent": sum(turn["same"] for turn in turns) / asked if asked else None,
        "by_kind": {kind: _group([[a for a in answers if a["kind"] == kind]]) for kind in kinds},
        "by_delay": {name: _group(streams) for name, streams in delays.items() if any(streams)},
    }


def _unsure(answers: list[Row]) -> float:
    """Share that was not seen to read its evidence while the core's table of what was read was full."""
    return float(np.mean([a["moments_full"] and not a["retrieved"] for a in answers]))


def _divergence(logits: Sequence[tuple[Logits, Logits]] | None) -> Row:
    """Of the first answer token against `full`'s, nats."""
    if not logits:
        return {"kl_to_full": None, "kl_to_full_p95": None}
    every = np.concatenate([kl_divergence(full, mine) for full, mine in logits])
    return {"kl_to_full": float(every.mean()), "kl_to_full_p95": float(np.percentile(every, 95))}


def _times(cells: list[Row], answers: list[Row]) -> Row:
    """Time to first token, also by the frames that had been seen, and time of a frame; ms."""
    first_token = np.percentile([a["first_token_ms"] for a in answers], [50, 95])
    frame = np.percentile(np.concatenate([cell["frame_ms"] for cell in cells]), [50, 99])
    by_frames = {}
    for seen in sorted({a["frames"] for a in answers}):
        mine = [a["first_token_ms"] for a in answers if a["frames"] == seen]
        p50, p95 = np.percentile(mine, [50, 95])
        by_frames[str(seen)] = {"p50": float(p50), "p95": float(p95), "questions": len(mine)}
    return {
        "first_token_ms_p50": float(first_token[0]),
        "first_token_ms_p95": float(first_token[1]),
        "frame_ms_p50": float(frame[0]),
        "frame_ms_p99": float(frame[1]),
        "first_token_ms_by_frames": by_frames,
    }


def _account(cells: list[Row]) -> Row:
    """Where tokens and bytes are, what happened to them, what went to disk and back, memory over time."""
    first = cells[0]["memory"]
    account = {
        part: {name: sum(cell["memory"][part][name] for cell in cells) for name in first[part]}
        for part in ("tokens", "events", "disk")
    }
    tiers = [
        {
            name: value if isinstance(value, str) else max(cell["memory"]["tiers"][i][name] for cell in cells)
            for name, value in tier.items()
        }
        for i, tier in enumerate(first["tiers"])
    ]
    hours = sum(cell["frames"] for cell in cells) / 3600  # one frame a second
    written, read = account["disk"]["bytes_written"], account["disk"]["bytes_read"]
    return {
        **account,
        "tiers": tiers,
        "splits": account["events"]["splits"],
        "bytes_moved": written + read,
        "gib_per_hour_written": written / 2**30 / hours,
        "memory_curve": cells[0]["curve"],
    }


def _share(answers: list[Row], name: str) -> float:
    return float(np.mean([a[name] for a in answers]))


def _group(streams: list[list[Row]]) -> Row:
    """Answers of one group by stream."""
    answers = [a for asked in streams for a in asked]
    low, high = bootstrap_interval([[bool(a["right"]) for a in asked] for asked in streams])
    return {
        "accuracy": _share(answers, "right"), "questions": len(answers), "ci_low": low, "ci_high": high,
    }  # fmt: skip
