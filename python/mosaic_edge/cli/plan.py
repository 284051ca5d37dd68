"""`mosaic-edge plan`: how a cap would be split, without allocating it."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from mosaic_edge.cli import command
from mosaic_edge.cli.options import Json, ModelOptions, SessionOptions
from mosaic_edge.cli.output import console, print_json
from mosaic_edge.config import format_bytes
from mosaic_edge.spill_folder import memory_kind, spill_folder


@command
def plan(model: ModelOptions, session: SessionOptions, json: Json = False) -> None:
    """Show how a cap would be split, without allocating it."""
    result = make_plan(model, session)
    if json:
        print_json(result)
    else:
        show_plan(result, console())


def make_plan(model: ModelOptions, session: SessionOptions) -> dict[str, Any]:
    """The plan of a session as plain data. Raises MemoryCapError."""
    engine = model.load()
    plan = engine.plan(**session.keywords())
    plan["parts"] = [{"name": name, "bytes": size} for name, size in plan["parts"]]
    plan["model"] = engine.spec.name
    plan["policy"] = session.policy
    disk = session.keywords().get("disk")
    if disk is not None:
        folder = spill_folder(session.keywords().get("spill_dir"))
        plan["spill"] = {"folder": folder, "in_ram": memory_kind(folder)}
    page_tokens = 16
    layers = engine.spec.layers
    for tier in plan["tiers"]:
        tier["bytes"] = tier["pages"] * tier["page_bytes"]
        tier["frames"] = tier["pages"] * page_tokens // layers // engine.spec.tokens_per_frame
    return plan


def show_plan(plan: dict[str, Any], console: Console) -> None:
    """Print the split of the cap and the tiers."""
    cap = plan["cap_bytes"]
    parts = Table(
        title=f"{plan['model']}, policy {plan['policy']}, cap {format_bytes(cap)}", title_justify="left"
    )
    parts.add_column("part")
    parts.add_column("bytes", justify="right")
    parts.add_column("share", justify="right")
    for part in (part for part in plan["parts"] if part["bytes"]):
        parts.add_row(part["name"], format_bytes(part["bytes"]), f"{part['bytes'] / cap:.1%}")
    parts.add_section()
    parts.add_row("all", format_bytes(plan["total_bytes"]), f"{plan['total_bytes'] / cap:.1%}")
    console.print(parts)
    tiers = Table(title="tiers of the pages", title_justify="left")
    for name in ("medium", "codec", "pages", "page", "bytes", "frames if full"):
        tiers.add_column(name, justify="left" if name in ("medium", "codec") else "right")
    for tier in plan["tiers"]:
        sizes = format_bytes(tier["page_bytes"]), format_bytes(tier["bytes"])
        tiers.add_row(tier["medium"], tier["codec"], f"{tier['pages']:,}", *sizes, f"{tier['frames']:,}")
    console.print(tiers)
    if spill := plan.get("spill"):
        where = f", which is in RAM ({spill['in_ram']})" if spill["in_ram"] else ""
        console.print(f"spill file in {spill['folder']}{where}", soft_wrap=True)
    console.print(
        f"window {plan['window_frames']} frames, {plan['clusters']:,} clusters a layer, "
        f"{plan['scenes']} scenes; "
        f"a question has {plan['branch_tokens']} tokens and reads {plan['retrieve_tokens']:,} a layer",
        soft_wrap=True,
    )
    said = "the model thinks: thought and answer have" if plan["thinks"] else "an answer has"
    console.print(f"{said} at most {plan['max_tokens']:,} tokens", soft_wrap=True)
    if plan["left_out"]:
        console.print(f"left out of the prompt: {plan['left_out']}", soft_wrap=True)
