"""Plots of an evaluation; every policy keeps its colour and marker. matplotlib is needed for them only.

Each function takes the rows and returns a figure, which `draw` writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosaic_edge.config import format_bytes
from mosaic_edge.evaluation.plots.memory import memory_over_time
from mosaic_edge.evaluation.plots.style import Panels, styles
from mosaic_edge.evaluation.scoring import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


LEAST = 10
"""Questions of a group of delays that is drawn."""


def accuracy_against_cap(rows: list[Row]) -> Figure:
    """Lengths down, worlds across; a line per policy with its interval, side by side; `full` is level."""
    look = styles(rows)
    keys = list(dict.fromkeys((row["frames"], row["difficulty"]) for row in rows))
    panels = Panels(
        keys, lambda key: f"{key[0]:,} frames, {key[1]}", len({world for _, world in keys}), (5.6, 3.4)
    )
    for key, axes in panels:
        here = [row for row in rows if (row["frames"], row["difficulty"]) == key]
        sizes = dict(sorted({row["cap_bytes"]: row["cap"] for row in here if not row["reference"]}.items()))
        column = {size: i for i, size in enumerate(sizes)}
        lines = list(_lines([row for row in here if "error" not in row], "cap_bytes"))
        for index, (policy, points) in enumerate(lines):
            if points[0]["reference"]:
                axes.axhline(100 * points[0]["accuracy"], **look[policy].line, label=look[policy].name)
                continue
            # Side by side, so that intervals do not hide one another.
            beside = min(0.6, 0.08 * len(lines)) * ((index + 0.5) / len(lines) - 0.5)
            errors = [
                [100 * abs(row[end] - row["accuracy"]) for row in points] for end in ("ci_low", "ci_high")
            ]
            axes.errorbar(
                [column[row["cap_bytes"]] + beside for row in points],
                [100 * row["accuracy"] for row in points],
                yerr=errors, elinewidth=0.7, **look[policy].points, label=look[policy].name,
            )  # fmt: skip
        axes.set_xticks(range(len(sizes)), [_cap_tick(size, cap) for size, cap in sizes.items()])
        axes.set_ylim(0, 102)
    return panels.finish(
        "Accuracy against the cap (bars: 95 % interval)", "cap: share of the full cache, bytes",
        "right answers (%)", [style.name for style in look.values()],
    )  # fmt: skip


def accuracy_against_delay(rows: list[Row]) -> Figure:
    """Lengths down, caps across, worlds together; groups of seconds since the evidence was last seen."""
    look = styles(rows)
    good = [row for row in rows if "error" not in row]
    caps = _caps(good)
    keys = [(frames, cap) for frames in dict.fromkeys(row["frames"] for row in good) for cap in caps]
    panels = Panels(keys, lambda key: f"{key[0]:,} frames, cap {key[1]}", len(caps), (3.7, 3.2))
    for (frames, cap), axes in panels:
        here = [row for row in good if row["frames"] == frames and (row["reference"] or row["cap"] == cap)]
        lines = dict(_lines(here, "cap_bytes"))
        names = sorted({name for row in here for name in row["by_delay"]}, key=_seconds)
        joined = {
            p: {n: _join(row["by_delay"].get(n) for row in mine) for n in names} for p, mine in lines.items()
        }
        counts = {name: max(groups[name][1] for groups in joined.values()) for name in names}
        enough = [name for name in names if counts[name] >= LEAST]
        for policy, groups in joined.items():
            right = [100 * groups[name][0] for name in enough]
            axes.plot(range(len(enough)), right, **look[policy].points, label=look[policy].name)
        axes.set_xticks(range(len(enough)), [f"{_bin(name)}\n({counts[name]})" for name in enough])
        axes.set_ylim(0, 102)
    return panels.finish(
        f"Accuracy against delay (groups of under {LEAST} questions left out)",
        "seconds since the evidence (questions)", "right answers (%)",
        [style.name for style in look.values()],
    )  # fmt: skip


def first_token_against_length(rows: list[Row]) -> Figure:
    """Median above, 95th percentile below, caps across: time to first token against the frames seen."""
    look = styles(rows)
    good = [row for row in rows if "error" not in row]
    caps = _caps(good)
    keys = [(name, cap) for name in ("p50", "p95") for cap in caps]
    words = {"p50": "median", "p95": "95th percentile"}
    panels = Panels(keys, lambda key: f"{words[key[0]]}, cap {key[1]}", len(caps), (3.7, 3.2))
    for (name, cap), axes in panels:
        here = [row for row in good if row["reference"] or row["cap"] == cap]
        ticks = set()
        for policy, mine in _lines(here, "frames"):
            seen: dict[int, list[float]] = {}
            for row in mine:
                # A share of a longer stream is a larger cap: of longer streams only the end counts.
                shortest = row["frames"] == min(r["frames"] for r in mine)
                for frames, times in row["first_token_ms_by_frames"].items():
                    if shortest or int(frames) == row["frames"]:
                        seen.setdefault(int(frames), []).append(times[name])
            x = sorted(seen)
            ticks |= set(x)
            axes.plot(
                x, [sum(seen[f]) / len(seen[f]) for f in x], **look[policy].points, label=look[policy].name
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(_apart(ticks), [f"{tick:,}" for tick in _apart(ticks)])
        axes.minorticks_off()
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else "")
        axes.tick_params(axis="y", which="minor", labelsize=8, labelleft=True)
    return panels.finish(
        "Time to first token against stream length", "frames seen (one a second)", "time to first token (ms)",
        [style.name for style in look.values()],
    )  # fmt: skip


PLOTS: dict[str, Callable[[list[Row]], Figure]] = {
    "accuracy": accuracy_against_cap,
    "delay": accuracy_against_delay,
    "first_token": first_token_against_length,
    "memory": memory_over_time,
}
"""File name -> plot."""


def draw(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120)


def _caps(rows: list[Row]) -> list[str]:
    """Labels of the caps, largest first; the reference alone has its own."""
    capped = [row for row in rows if not row["reference"]] or rows
    return list(dict.fromkeys(row["cap"] for row in sorted(capped, key=lambda row: -float(row["cap_bytes"]))))


def _apart(ticks: Iterable[int]) -> list[int]:
    """Those of `ticks` that have room for a label, from the largest down."""
    kept: list[int] = []
    for tick in sorted(ticks, reverse=True):
        if not kept or tick <= kept[-1] / 1.4:
            kept.append(tick)
    return kept


def _lines(rows: list[Row], along: str) -> Iterable[tuple[str, list[Row]]]:
    for policy in dict.fromkeys(row["policy"] for row in rows):
        yield (
            policy,
            sorted((row for row in rows if row["policy"] == policy), key=lambda row: float(row[along])),
        )


def _cap_tick(size: int, cap: str) -> str:
    return f"{cap}\n{format_bytes(size)}" if "%" in cap else cap


def _join(groups: Iterable[Any]) -> tuple[float, int]:
    """Accuracy and count of a group over rows (the worlds)."""
    found = [(group["accuracy"], group["questions"]) for group in groups if group]
    asked = sum(n for _, n in found)
    return (sum(share * n for share, n in found) / asked if asked else 0.0), asked


def _seconds(name: str) -> float:
    """The lower bound of a group of by_delay."""
    return float(name.removeprefix("over ").split("-")[0].removesuffix(" s"))


def _bin(name: str) -> str:
    return name.removesuffix(" s").replace("over ", "> ")
