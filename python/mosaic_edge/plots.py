"""Plots of an evaluation. matplotlib is needed here only (extra `eval`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def plot_accuracy(rows: list[dict[str, Any]], path: Path) -> None:
    """One panel a difficulty, one line a policy, the interval shaded; `full` is a level line.

    Raises ModuleNotFoundError without matplotlib.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    good = [row for row in rows if "error" not in row]
    panels = list(dict.fromkeys(row["difficulty"] for row in rows))
    figure = Figure(figsize=(5.2 * len(panels), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, difficulty in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        here = [row for row in good if row["difficulty"] == difficulty]
        shares = sorted({100 * row["cap_share"] for row in here if row["policy"] != "full"})
        for index, policy in enumerate(dict.fromkeys(row["policy"] for row in rows)):
            mine = [row for row in here if row["policy"] == policy]
            points = sorted(mine, key=lambda row: float(row["cap_share"]))
            colour = f"C{index}"
            if policy == "full" and points:
                level = 100 * points[0]["accuracy"]
                axes.axhline(level, color=colour, linestyle="--", label="full, all of it")
            elif points:
                caps = [100 * row["cap_share"] for row in points]
                axes.plot(caps, [100 * row["accuracy"] for row in points], "o-", color=colour, label=policy)
                low, high = ([100 * row[name] for row in points] for name in ("ci_low", "ci_high"))
                axes.fill_between(caps, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_xscale("log")
        axes.set_xticks(shares, [f"{share:g} %" for share in shares])
        axes.minorticks_off()
        axes.set(title=difficulty, xlabel="cap, share of the full cache", ylabel="right answers, %")
        axes.set_ylim(0, 103)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)
