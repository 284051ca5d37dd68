"""The memory curve of a stress run. matplotlib is needed here only (extra `eval`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def plot_stress(curve: dict[str, Any], warm_frame: int | None, path: Path) -> None:
    """RSS and our own account over the frames, and below where the tokens are; a line where warm-up ended.

    Raises ModuleNotFoundError without matplotlib.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    bytes_axes, token_axes = figure.subplots(2, 1, sharex=True)
    frames = curve["frame"]
    for name, label, style in (
        ("rss_bytes", "RSS of the process", "-"),
        ("cap_bytes", "cap", "--"),
        ("taken_bytes", "taken of the cap", "-"),
        ("dram_used_bytes", "pages in DRAM", "-"),
        ("disk_used_bytes", "pages on disk", ":"),
    ):
        bytes_axes.plot(frames, curve[name] / (1 << 20), style, label=label)
    if warm_frame is not None:
        bytes_axes.axvline(warm_frame, color="grey", linewidth=0.8, label="warm-up ends")
    kinds = ("exact", "quantised", "spilled", "collapsed", "dropped")
    token_axes.stackplot(frames, [curve[kind] / 1e6 for kind in kinds], labels=kinds)
    bytes_axes.set(ylabel="MiB", ylim=(0, None))
    token_axes.set(ylabel="tokens of all layers, millions", xlabel="frames")
    for axes in (bytes_axes, token_axes):
        axes.grid(alpha=0.3)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    figure.savefig(path, dpi=120)
