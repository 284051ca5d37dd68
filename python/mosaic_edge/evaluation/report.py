"""The rows of an evaluation as Markdown: accuracy at a glance, then what each row cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mosaic_edge.config import format_bytes
from mosaic_edge.evaluation.scoring import Row
from mosaic_edge.evaluation.settings import EvalSettings

NONE = "-"


def markdown(rows: Sequence[Row], settings: EvalSettings, jobs: int) -> str:
    """For every length and world a table of accuracy, policies down and caps across, and one of the rest."""
    disk = (
        f"with no disk and, for policies that retrieve, with {settings.disk}" if settings.disk else "no disk"
    )
    lines = [
        f"Worlds at one frame a second, seeds {', '.join(map(str, settings.seeds))}, {disk}, model "
        f"{settings.model}. Cap: of the full 16-bit cache, everything the memory holds counted; `full` gets "
        "what it needs. Accuracy in percent with its 95 % interval; the best of a cap is bold. "
        "Evidence named: the answer's time ranges hit it (of right: among right answers); read: a token of "
        "its frames was attended to, not a summary alone (>=: the table of what was read was full). "
        "KL: of the first answer token, nats.",
    ]
    if jobs > 1:
        lines += ["", f"Times shared the machine with {jobs} processes: take them from --jobs 1."]
    for frames in dict.fromkeys(row["frames"] for row in rows):
        for world in dict.fromkeys(row["difficulty"] for row in rows):
            here = [row for row in rows if row["frames"] == frames and row["difficulty"] == world]
            if here:
                lines += ["", f"## {frames:,} frames, {world}", "", *_accuracy(here), "", *_costs(here)]
                lines += _reasons(here)
    return "\n".join(lines) + "\n"


def _accuracy(rows: list[Row]) -> list[str]:
    """Policies down, caps across; a row that needs no cap of its own (full) stands above with its bytes."""
    capped = [row for row in rows if not _is_full(row)]
    caps = {row["cap"]: row for row in capped}
    lines = []
    for row in rows:
        if _is_full(row):
            said = (
                "cannot run"
                if "error" in row
                else f"**{_interval(row)}** with {format_bytes(row['cap_bytes'])}"
            )
            lines += [f"{row['policy']}: {said}", ""]
    if not capped:
        return lines[:-1]
    best = {
        cap: max(
            (row["accuracy"] for row in capped if row["cap"] == cap and "error" not in row), default=None
        )
        for cap in caps
    }
    heads = [
        cap if "%" not in cap else f"{cap} ({format_bytes(row['cap_bytes'])})" for cap, row in caps.items()
    ]
    lines += [_line("policy", *heads), _rule(len(heads))]
    for policy in dict.fromkeys(row["policy"] for row in capped):
        mine = {row["cap"]: row for row in capped if row["policy"] == policy}
        cells = []
        for cap in caps:
            if cap not in mine:
                cells.append(NONE)
            elif "error" in mine[cap]:
                cells.append("cannot run")
            else:
                text = _interval(mine[cap])
                cells.append(f"**{text}**" if mine[cap]["accuracy"] == best[cap] else text)
        lines.append(_line(policy, *cells))
    return lines


def _costs(rows: list[Row]) -> list[str]:
    """One line a row with everything that is not accuracy."""
    heads = (
        "policy", "cap", "taken", "questions", "evidence named (of right, by chance) / read",
        "KL to full",
        "first token p50 / p95 ms", "frame p50 / p99 ms", "splits", "moved", "GiB/h written",
        "same in any order",
    )  # fmt: skip
    lines = [_line(*heads), _rule(len(heads) - 1)]
    for row in rows:
        if "error" in row:
            continue
        unsure = ">= " if row["retrieval_recall_unsure"] else ""
        lines.append(
            _line(
                row["policy"],
                "all" if _is_full(row) else row["cap"],
                format_bytes(row["taken_bytes"]),
                row["questions"],
                f"{row['evidence_recall']:.0%} ({_number(row['evidence_of_right'], '.0%')}, "
                f"{row['evidence_by_chance']:.0%}) / "
                f"{unsure}{row['retrieval_recall']:.0%}",
                _number(row["kl_to_full"], ".3f"),
                f"{row['first_token_ms_p50']:.1f} / {row['first_token_ms_p95']:.1f}",
                f"{row['frame_ms_p50']:.2f} / {row['frame_ms_p99']:.2f}",
                row["splits"],
                format_bytes(row["bytes_moved"]) if row["disk_bytes"] else NONE,
                f"{row['gib_per_hour_written']:.3f}" if row["disk_bytes"] else NONE,
                _number(row["order_independent"], ".0%"),
            )
        )
    return lines


def _reasons(rows: list[Row]) -> list[str]:
    """Why a row could not run: one line a policy, with the reason at its first cap."""
    failed = [row for row in rows if "error" in row]
    lines = []
    for policy in dict.fromkeys(row["policy"] for row in failed):
        mine = [row for row in failed if row["policy"] == policy]
        lines.append(f"- {policy} cannot run at {', '.join(row['cap'] for row in mine)}: {mine[0]['error']}")
    return ["", *lines] if lines else []


def _is_full(row: Row) -> bool:
    return bool(row.get("reference"))


def _interval(row: Row) -> str:
    return f"{100 * row['accuracy']:.1f} ({100 * row['ci_low']:.0f} to {100 * row['ci_high']:.0f})"


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def _line(*cells: Any) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _rule(numbers: int) -> str:
    return "|---|" + "---:|" * numbers
