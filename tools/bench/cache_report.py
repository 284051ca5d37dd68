"""The table and the plot of caches.py."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from cache_model import Size

from mosaic_edge.evaluation.plots.style import COLOURS, MARKERS, Panels, Style

if TYPE_CHECKING:
    from caches import Row

MIB = 1 << 20
HEADER = (
    "| frames | method | frame ms: median | p95 | CPU | first token ms | CPU | tokens/s | cache MiB "
    "| cap MiB | RSS growth MiB |\n|---|---|---|---|---|---|---|---|---|---|---|"
)
PANELS = {
    "cache_bytes": ("bytes of the cache, MiB", MIB),
    "first_token_cpu_ms": ("time to the first token, CPU ms", 1),
    "frame_cpu_ms": ("time of a frame, CPU ms (median)", 1),
}


def write_report(
    rows: Sequence[Row], size: Size, facts: dict[str, Any], command: str, out: Path | None
) -> str:
    """The Markdown; with `out` it becomes caches.md there, beside caches.png."""
    cap = int(facts["cap_bytes"])
    loads = sorted(row.load for row in rows)
    text = [
        "# Caches side by side",
        "",
        f"`{command}`",
        "",
        f"One model with random weights in the architecture of Qwen2.5-VL ({size.words}; "
        f"{str(size.dtype).removeprefix('torch.')}), {size.tokens} tokens a frame, the same frames and "
        f"question for all, {_machine()}, OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY')}; "
        f"other work ran beside it (load average {loads[0]:.1f} to {loads[-1]:.1f}): compare CPU times. "
        f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}{_quanto()}. "
        f"The cap of ours is {cap / MIB:.1f} MiB at every length, what {facts['cap_frames']:.0f} frames take "
        "in the library's cache.",
        "",
        "Times are of decoder and cache, those of frames over the last frames before the question. The "
        f"vision tower ran before, once for all ({facts['vision_ms']:.0f} ms a frame, "
        f"{facts['vision_cpu_ms']:.0f} CPU ms). CPU times are of all threads. Cache: the most "
        "that was taken of the cap, or bytes of the tensors of the library's cache. RSS growth: the most "
        "while frames came in, activations included. The offloaded cache keeps its bytes in host memory "
        "and moves one layer at a time to a GPU; on a CPU it cannot be made. With a block of several tokens "
        "the library's SDPA writes keys and values out once for every query head.",
        "",
        _headline(rows),
        "",
        HEADER,
    ]
    text += [_line(row) for row in sorted(rows, key=lambda row: row.frames)]
    text += ["", "![bytes and times against frames](caches.png)", ""]
    page = "\n".join(text)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "caches.md").write_text(page, encoding="utf-8")
        _plot(rows, out / "caches.png", cap)
    return page


def _headline(rows: Sequence[Row]) -> str:
    """The library's full cache over `edge`, at the longest stream that both came to the end of."""
    measured = {(row.method, row.frames): row for row in rows if not row.stopped}
    edge = next((row.method for row in rows if row.method.startswith("edge")), "edge")
    shared = [n for m, n in measured if m == edge and ("DynamicCache", n) in measured]
    if not shared:
        return f"No length was reached by both `{edge}` and DynamicCache."
    ours, full = measured[edge, max(shared)], measured["DynamicCache", max(shared)]
    return (
        f"DynamicCache over `{edge}` at {max(shared)} frames, the longest both reached: "
        f"{full.cache_bytes / ours.cache_bytes:.1f} times the bytes, "
        f"{full.first_token_cpu_ms / ours.first_token_cpu_ms:.1f} times the CPU time to the first token, "
        f"{full.frame_cpu_ms / ours.frame_cpu_ms:.1f} times that of a frame. It reads everything and forgets "
        "nothing; weights are random, so this table says nothing about answers."
    )


def _line(row: Row) -> str:
    if row.stopped:
        return f"| {row.frames} | {row.method} | {row.stopped} | | | | | | | | |"
    cap = f"{row.cap_bytes / MIB:.1f}" if row.cap_bytes else "none"
    times = (row.frame_ms, row.frame_p95_ms, row.frame_cpu_ms, row.first_token_ms, row.first_token_cpu_ms)
    digits = 0 if min(times) >= 10 else 1
    shown = " | ".join(f"{value:,.{digits}f}" for value in times)
    return (
        f"| {row.frames} | {row.method} | {shown} | {row.tokens_per_s:.1f} | {row.cache_bytes / MIB:.1f} "
        f"| {cap} | {row.rss_growth_bytes / MIB:.0f} |"
    )


def _plot(rows: Sequence[Row], path: Path, cap: int) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    measured = [row for row in rows if not row.stopped]
    methods = list(dict.fromkeys(row.method for row in measured))
    panels = Panels(list(PANELS), lambda key: PANELS[key][0], 3, share_y=False)
    for key, axes in panels:
        for i, method in enumerate(methods):
            mine = [row for row in measured if row.method == method]
            style = Style(method, COLOURS[i % 10], MARKERS[i % 10], disk=not mine[0].cap_bytes)
            values: list[Any] = [getattr(row, key) / PANELS[key][1] for row in mine]
            axes.plot([row.frames for row in mine], values, label=method, **style.points)
        if key == "cache_bytes" and cap:
            axes.axhline(cap / MIB, color="#D00000", linewidth=1.2, label="cap")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xticks(
            sorted({row.frames for row in measured}), sorted({row.frames for row in measured}), minor=False
        )
    figure = panels.finish("One cap, or a cache that grows", "frames seen", "", [*methods, "cap"])
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120)


def _machine() -> str:
    """Cores and kind of processor, in words."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = names[0].partition(":")[2].strip() if names else platform.machine()
    return f"{os.cpu_count()} cores of an {name} ({torch.get_num_threads()} threads for torch)"


def _quanto() -> str:
    try:
        from importlib.metadata import version

        return f", optimum-quanto {version('optimum-quanto')}"
    except ImportError:
        return ""
