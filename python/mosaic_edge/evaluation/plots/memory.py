"""The plot of memory over time: what each policy's bytes are used for while the stream runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mosaic_edge.evaluation.plots.style import Panels
from mosaic_edge.evaluation.scoring import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIXED = "window, index, scratch"
LABELS = {
    "exact": "exact pages",
    "packed": "packed pages",
    "disk": "packed pages on disk, outside of the cap",
}
TIERS = {"exact": "#0072B2", "packed": "#56B4E9", "disk": "#E69F00"}


def memory_over_time(rows: list[Row]) -> Figure:
    """A panel per policy, of the longest stream at the middle cap: bytes by tier, stacked, under the cap.

    The fixed parts are taken once; bytes on disk are outside of the cap and stand on top of the rest.
    """
    chosen = choose(rows)
    panels = Panels(chosen, lambda row: f"{row['policy']}, cap {_cap(row)}", 4, (3.7, 2.5), share_y=False)
    labels: list[str] = []
    for row, axes in panels:
        curve = row["memory_curve"]
        minutes = [second / 60 for second in curve["seconds"]]
        parts = {FIXED: ("#BBBBBB", [curve["fixed_bytes"]] * len(minutes))}
        for name, used in curve["tiers"].items():
            kind = "disk" if name.startswith("disk") else "exact" if _is_exact(name) else "packed"
            parts[LABELS[kind]] = (TIERS[kind], used)
        unit, scale = ("MiB", 2**20) if row["cap_bytes"] >= 2**20 else ("KiB", 2**10)
        axes.stackplot(
            minutes,
            [[size / scale for size in used] for _, used in parts.values()],
            labels=list(parts), colors=[colour for colour, _ in parts.values()], linewidth=0,
        )  # fmt: skip
        axes.axhline(row["cap_bytes"] / scale, color="#D00000", linewidth=1.2, label="cap")
        axes.set_ylabel(unit, fontsize=9)
        axes.set_xlim(minutes[0], minutes[-1])
        axes.set_ylim(0, None)
        axes.margins(y=0.08)
        labels += [name for name in [*parts, "cap"] if name not in labels]
    seen = f"{chosen[0]['frames']:,} frames, {chosen[0]['difficulty']}" if chosen else ""
    return panels.finish(f"Memory over time, {seen}", "minutes of stream", "", labels)


def choose(rows: list[Row]) -> list[Row]:
    """Per policy one row: the longest stream, the first world, the middle of the caps that work for all."""
    good = [row for row in rows if "error" not in row]
    good = [row for row in good if row["frames"] == max(r["frames"] for r in good)]
    good = [row for row in good if row["difficulty"] == good[0]["difficulty"]]
    policies = list(dict.fromkeys(row["policy"] for row in good))
    by_policy = {p: {row["cap"]: row for row in good if row["policy"] == p} for p in policies}
    capped = [mine for mine in by_policy.values() if not next(iter(mine.values()))["reference"]]
    shared = [cap for cap in (capped[0] if capped else ()) if all(cap in mine for mine in capped)]
    chosen = []
    for mine in by_policy.values():
        labels = [cap for cap in shared if cap in mine] or list(mine)
        chosen.append(mine[labels[len(labels) // 2]])
    return chosen


def _cap(row: Row) -> str:
    return "as needed" if row["reference"] else str(row["cap"])


def _is_exact(tier: str) -> bool:
    return tier.endswith(("fp16", "fp32"))
