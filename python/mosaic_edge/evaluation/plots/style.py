"""How the plots look: one colour and marker per policy, panels in a grid, one legend for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mosaic_edge.evaluation.scoring import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito: told apart by those who see fewer colours; then more for longer lists.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F3C8D", "#8C6D31",
    "#666666", "#B0C400",
)  # fmt: skip
MARKERS = "osD^vP*Xhd"


@dataclass(frozen=True)
class Style:
    """Of one policy; with a disk the line is dashed and the marker hollow."""

    name: str
    colour: str
    marker: str
    disk: bool

    @property
    def line(self) -> dict[str, Any]:
        """Arguments of a line without markers."""
        return {"color": self.colour, "linestyle": "-", "linewidth": 1.5}

    @property
    def points(self) -> dict[str, Any]:
        """Arguments of a line with markers."""
        return {
            "color": self.colour, "marker": self.marker, "markersize": 5.5, "linewidth": 1.5,
            "linestyle": "--" if self.disk else "-", "markerfacecolor": "white" if self.disk else self.colour,
        }  # fmt: skip


def styles(rows: Sequence[Row]) -> dict[str, Style]:
    """Label of a row -> its style; the reference is black, a policy with disk keeps its colour."""
    found: dict[str, Style] = {}
    seen: dict[str, int] = {}
    for row in rows:
        label, base = row["policy"], row["policy"].removesuffix(" + disk")
        if label in found:
            continue
        if row["reference"]:
            found[label] = Style(f"{label} (all of it)", "black", "", False)
            continue
        i = seen.setdefault(base, len(seen))
        found[label] = Style(label, COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], label != base)
    return found


class Panels:
    """A grid of plots, one per key, row by row; iterate to fill them, then finish()."""

    def __init__(
        self,
        keys: Sequence[Any],
        title: Callable[[Any], str],
        columns: int,
        size: tuple[float, float] = (4.4, 3.2),
        share_y: bool = True,
    ) -> None:
        from matplotlib.figure import Figure

        columns = max(1, min(columns, len(keys)))
        lines = max(1, -(-len(keys) // columns))
        self.figure = Figure(
            figsize=(max(size[0] * columns, 7.0), size[1] * lines + 1.2), layout="constrained"
        )
        self.axes = self.figure.subplots(lines, columns, squeeze=False, sharey=share_y).flatten().tolist()
        self._columns, self._keys, self._title = columns, list(keys), title
        for axes in self.axes[len(keys) :]:
            axes.set_axis_off()

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for key, axes in zip(self._keys, self.axes, strict=False):
            axes.set_title(self._title(key), fontsize=10)
            axes.grid(alpha=0.25, linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8.5, labelleft=True)
            yield key, axes

    def finish(self, title: str, x: str, y: str, legend: Sequence[str]) -> Figure:
        """Title, axis labels on the outer panels, and one legend below all, in the order given."""
        self.figure.suptitle(title, fontsize=12, fontweight="bold")
        for index, axes in enumerate(self.axes[: len(self._keys)]):
            if index % self._columns == 0 and y:
                axes.set_ylabel(y, fontsize=9)
            if index + self._columns >= len(self._keys):
                axes.set_xlabel(x, fontsize=9)
        handles = {
            label: handle
            for panel in self.axes
            for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        names = [name for name in legend if name in handles]
        if names:
            room = int(self.figure.get_figwidth() / (0.085 * max(len(name) for name in names) + 0.6))
            self.figure.legend(
                [handles[name] for name in names], names, loc="outside lower center", fontsize=9,
                frameon=False, ncols=max(1, min(len(names), room, 6)),
            )  # fmt: skip
        return self.figure
