"""`mosaic-edge stress`: what a stress run found, as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mosaic_edge.config import format_bytes


def show_stress(result: dict[str, Any], out: Path, console: Console) -> None:
    """Print what was streamed, answered, kept and lost, and how RSS behaved."""
    memory, rss = result["memory"], result["rss"]
    tokens, events, disk = memory["tokens"], memory["events"], memory["disk"]
    settings = result["settings"]
    faults = f"every {settings['faults']}th page on disk fails" if settings["faults"] else "no faults"
    table = Table(
        title=f"{settings['policy']}, {settings['memory']}, {faults}", title_justify="left", show_header=False
    )
    table.add_column()
    table.add_column(justify="right")
    share = f" ({result['right'] / result['questions']:.0%} right)" if result["questions"] else ""
    table.add_row("frames", f"{result['frames']:,} at {result['frames_per_second']:.0f} a second")
    table.add_row("answers given", f"{result['answers']:,} of {result['questions']:,}{share}")
    table.add_section()
    for place in ("seen", "exact", "quantised", "spilled", "summarised", "dropped"):
        table.add_row(f"tokens {place}", f"{tokens[place]:,}")
    table.add_section()
    table.add_row("pages lost", f"{events['lost_pages']:,}")
    table.add_row("spills failed", f"{events['failed_spills']:,}")
    table.add_row(
        "pauses of the disk", f"{events['spill_pauses']:,} of {events['paused_frames']:,} frames in all"
    )
    table.add_row("pages not read", f"{events['unread_pages']:,}")
    errors = f"{disk['io_errors']:,} / {disk['no_space']:,} / {disk['bad_checksums']:,}"
    table.add_row("disk errors / refusals / bad checksums", errors)
    table.add_section()
    table.add_row(
        "taken of the cap", f"{format_bytes(memory['peak_bytes'])} of {format_bytes(memory['cap_bytes'])}"
    )
    if rss["judged"]:
        table.add_row(
            "RSS after warm-up", f"{format_bytes(rss['warm_bytes'])} at frame {rss['warm_frame']:,}"
        )
    table.add_row(
        "RSS at the end / peak", f"{format_bytes(rss['end_bytes'])} / {format_bytes(rss['peak_bytes'])}"
    )
    if rss["judged"]:
        slope = format_bytes(rss["slope_bytes_per_1000_frames"])
        table.add_row(
            "RSS growth after warm-up", f"{format_bytes(rss['growth_bytes'])}, {slope} per 1,000 frames"
        )
    console.print(table)
    if not rss["judged"]:
        console.print(
            "RSS was not judged: the cap was never full. Raise --frames, or lower --memory.", soft_wrap=True
        )
    console.print(f"memory curve: {out / 'memory.csv'}, {out / 'memory.png'}", soft_wrap=True)
