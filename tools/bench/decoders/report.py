"""From finished cells to the tables of docs/results/decoders.md and the rows of decoders.json."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .rungs import FULL, RUNGS

Row = dict[str, Any]
SAME = ("model", "dtype", "base", "form", "sentences", "rung", "policy", "cap_share", "disk", "frames_read")
ANSWERED = {
    "right": "accuracy",
    "nll": "nll",
    "kl": "kl",
    "evidence_named": "evidence_named",
    "evidence_read": "evidence_read",
}
TABLE = (
    ("policy", "policy"),
    ("cap", "cap"),
    ("right", "recall, %"),
    ("nll", "nll"),
    ("kl", "KL"),
    ("seen", "perception, %"),
    ("evidence", "evidence named / read, %"),
    ("read", "tokens read by frames / questions"),
    ("kept", "tokens kept: exact + packed + disk"),
    ("size", "MB"),
    ("time", "attend ms: frame / question"),
)
TITLES = {
    "exact": "Everything kept and read, at 32 bits",
    "kept": "Everything kept, frames and questions read what the policy lets them",
    "chosen": "Kept by the policy, nothing packed",
    "packed": "Kept by the policy and packed: the product",
    "disk": "With a disk",
}


def merged(cells: Iterable[Row]) -> list[Row]:
    """One row for the cells that differ in their seed only."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for cell in cells:
        groups.setdefault(tuple(cell[name] for name in SAME), []).append(cell)
    return [_row(dict(zip(SAME, key, strict=True)), group) for key, group in groups.items()]


def _row(row: Row, cells: list[Row]) -> Row:
    failed = [cell["error"] for cell in cells if "error" in cell]
    row["seeds"] = sorted(cell["seed"] for cell in cells)
    if failed:
        return row | {"error": failed[0]}
    first = cells[0]
    row |= {
        "bytes": _mean(cell["bytes"] for cell in cells),
        "disk_bytes": _mean(cell.get("disk_bytes", 0) for cell in cells),
        "tokens": _mean(cell["stream_tokens"] for cell in cells),
        "tokens_read": _mean(cell["tokens_read"]["questions"] for cell in cells),
        "tokens_read_frames": _mean(cell["tokens_read"]["frames"] for cell in cells),
        "tokens_read_measured": all(cell["tokens_read"]["measured"] for cell in cells),
        "tokens_kept": _mean(cell["tokens_kept"]["total"] for cell in cells),
        "tokens_by_place": {
            place: _mean(cell["tokens_kept"][place] for cell in cells) for place in first["tokens_kept"]
        },
        "attend_ms": {
            kind: round(float(np.mean([cell["attend_ms"][kind] for cell in cells])), 2)
            for kind in first["attend_ms"]
        },
    }
    if row["cap_share"] is None:
        row["cap_share"] = float(np.mean([cell["bytes"] / cell["full_bytes"] for cell in cells]))
        row["own_cap"] = True
    for name in ("frame_ms", "first_token_ms"):
        if all(name in cell for cell in cells):
            row[name] = np.mean([cell[name] for cell in cells], axis=0).round(2).tolist()
    row |= _answers(cells, "recall", "") | _answers(cells, "perception", "perception_")
    return row


def _mean(values: Iterable[float]) -> int:
    return round(float(np.mean(list(values))))


def _answers(cells: list[Row], kind: str, prefix: str) -> Row:
    """Means over the questions of one kind, of all streams."""
    asked = [cell[kind] for cell in cells if kind in cell]
    row: Row = {f"{prefix}questions": sum(one["questions"] for one in asked)}
    for name, called in ANSWERED.items():
        values = [value for one in asked for value in one[name]]
        known = bool(values) and None not in values
        row[f"{prefix}{called}"] = round(float(np.mean(values)), 4) if known else None
    return row


def tables(rows: list[Row]) -> str:
    """A table for each model, length of stream and rung."""
    parts = []
    order = {name: i for i, name in enumerate(RUNGS)}
    kinds = sorted({(r["model"], r["dtype"], r["form"], r["sentences"], order[r["rung"]]) for r in rows})
    for kind in kinds:
        mine = [
            r for r in rows if (r["model"], r["dtype"], r["form"], r["sentences"], order[r["rung"]]) == kind
        ]
        model, dtype, form, sentences, rung = kind
        seeds = sorted({seed for row in mine for seed in row["seeds"]})
        asked = max((row.get("questions", 0) for row in mine), default=0)
        parts.append(
            f"## {TITLES[RUNGS[rung]]}: {model} ({dtype}), {sentences} sentences, {form}\n\n"
            f"Seeds {', '.join(map(str, seeds))}; {asked} questions about the past a row.\n\n"
            + _table(sorted(mine, key=lambda r: (r["policy"] != FULL, -(r["cap_share"] or 0))))
        )
    return "\n".join(parts)


def _table(rows: list[Row]) -> str:
    lines = ["| " + " | ".join(title for _, title in TABLE) + " |", "|" + "---|" * len(TABLE)]
    for row in rows:
        cells = _cells(row)
        lines.append("| " + " | ".join(cells.get(name, "") for name, _ in TABLE) + " |")
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> dict[str, str]:
    """The row as text; a cell that could not be made says why."""
    name = row["policy"] + (" + disk" if row["disk"] else "")
    name += "".join(f"; {key}={value}" for key, value in json.loads(row["base"]).items())
    name += f", frames read {row['frames_read']}" if row["frames_read"] else ""
    if "error" in row:
        return {"policy": name, "cap": _percent(row["cap_share"]), "right": row["error"]}
    place, most = row["tokens_by_place"], "" if row["tokens_read_measured"] else "≤ "
    return {
        "policy": name,
        "cap": _percent(row["cap_share"]) + (" (its own)" if row.get("own_cap") else ""),
        "right": _percent(row["accuracy"]),
        "nll": _number(row["nll"]),
        "kl": _number(row["kl"]),
        "seen": _percent(row["perception_accuracy"]),
        "evidence": f"{_percent(row['evidence_named'])} / {_percent(row['evidence_read'])}",
        "read": f"{most}{row['tokens_read_frames']} / {most}{row['tokens_read']}",
        "kept": f"{row['tokens_kept']} of {row['tokens']}: "
        + " + ".join(str(place[name]) for name in ("exact", "quantised", "spilled")),
        "size": f"{row['bytes'] / 1e6:.2f}",
        "time": f"{row['attend_ms']['frame']:.1f} / {row['attend_ms']['question']:.1f}",
    }


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def write(cells: list[Row], folder: Path, head: str) -> None:
    """docs: decoders.md, and decoders.json with the product's rows apart from the other rungs."""
    rows = merged(cells)
    product = [r for r in rows if r["rung"] in ("packed", "disk")]
    ladder = [r for r in rows if r["rung"] not in ("packed", "disk")]
    commands = list(dict.fromkeys(cell["command"] for cell in cells))
    data = {"commands": commands, "rows": product, "ladder": ladder}
    save(folder, data, page(head, commands, rows))


def save(folder: Path, data: dict[str, Any], text: str) -> None:
    """decoders.json and decoders.md, both or neither: a full disk leaves those of before."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"decoders.json": json.dumps(data, indent=1) + "\n", "decoders.md": text}
    aside = {name: folder / f".{name}.part" for name in files}
    try:
        for name, part in aside.items():
            part.write_text(files[name])
        for name, part in aside.items():
            part.replace(folder / name)
    finally:
        for part in aside.values():
            part.unlink(missing_ok=True)


def page(head: str, commands: Iterable[str], rows: list[Row]) -> str:
    """decoders.md: what it is about, how it was measured, and the tables."""
    said = "\n".join(f"    {command}" for command in commands)
    return f"{head}\n{said}\n\n{tables(rows)}"
