"""Rows of several runs in one table: a run of two seeds now, and of two others another day."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from .report import ANSWERED, SAME, Row, page, save

COUNTS = ("bytes", "disk_bytes", "tokens", "tokens_read", "tokens_read_frames", "tokens_kept")
PARTS = {"tokens_by_place": 0, "attend_ms": 2}  # and to how many decimals


def join(folder: Path, others: Iterable[Path], head: str) -> None:
    """Put what `others` measured into decoders.json and decoders.md of `folder`; a head that is there stays.

    Cells that differ in their seeds become one row: answers weigh by their questions, all else by streams.
    A run takes the place of rows whose seeds it has all of. Raises ValueError where it has some of them.
    """
    data, table = folder / "decoders.json", folder / "decoders.md"
    found = [json.loads((other / "decoders.json").read_text()) for other in others]
    if data.exists():
        found.insert(0, json.loads(data.read_text()))
        head = table.read_text().split("\n    python tools/bench", 1)[0]
    commands = list(dict.fromkeys(command for one in found for command in one["commands"]))
    joined = {kind: rows_of(row for one in found for row in one[kind]) for kind in ("rows", "ladder")}
    text = page(head, commands, joined["rows"] + joined["ladder"])
    save(folder, {"commands": commands, **joined}, text)


def rows_of(found: Iterable[Row]) -> list[Row]:
    """One row a cell, whatever its seeds; later ones count where seeds are the same."""
    rows: dict[tuple[str, ...], Row] = {}
    for row in found:
        key = tuple(
            "its own" if name == "cap_share" and row.get("own_cap") else str(row[name]) for name in SAME
        )
        old = rows.get(key)
        if old is None or set(old["seeds"]) <= set(row["seeds"]):
            rows[key] = row
        elif set(old["seeds"]) & set(row["seeds"]):
            raise ValueError(
                f"{row['policy']} at {row['sentences']} sentences: seeds {row['seeds']} beside "
                f"{old['seeds']}; some are in both, so run all of {old['seeds']} or none"
            )
        else:
            rows[key] = _both(old, row)
    return list(rows.values())


def _both(a: Row, b: Row) -> Row:
    failed = next((row for row in (a, b) if "error" in row), None)
    row = dict(failed or a) | {"seeds": sorted(a["seeds"] + b["seeds"])}
    if failed is not None:
        return row
    streams = len(a["seeds"]), len(b["seeds"])
    for name in COUNTS:
        row[name] = round(_mean(a[name], b[name], streams))
    for name, digits in PARTS.items():
        row[name] = {part: round(_mean(a[name][part], b[name][part], streams), digits) for part in a[name]}
        if digits == 0:
            row[name] = {part: int(value) for part, value in row[name].items()}
    row["tokens_read_measured"] = a["tokens_read_measured"] and b["tokens_read_measured"]
    row["cap_share"] = _mean(a["cap_share"], b["cap_share"], streams)
    for prefix in ("", "perception_"):
        asked = a[f"{prefix}questions"], b[f"{prefix}questions"]
        row[f"{prefix}questions"] = sum(asked)
        for name in (f"{prefix}{called}" for called in ANSWERED.values()):
            known = a[name] is not None and b[name] is not None
            row[name] = round(_mean(a[name], b[name], asked), 4) if known else None
    for name in ("frame_ms", "first_token_ms"):  # percentiles do not add up
        row.pop(name, None)
    return row


def _mean(a: float, b: float, weights: tuple[int, int]) -> float:
    return (a * weights[0] + b * weights[1]) / sum(weights)
