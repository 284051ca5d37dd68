"""The ablations of the papers, in kind: `python tools/bench/ablations.py [--out DIR] [--only NAME ...]`.

One table per question a paper asks of its own design, every row at equal bytes on the same streams. --out
keeps what is finished; it can be taken up again. --write writes results/ablations.md beside this file.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

from mosaic_edge.evaluation.runner import evaluate
from mosaic_edge.evaluation.scoring import Row
from mosaic_edge.evaluation.settings import EvalSettings
from mosaic_edge.evaluation.variants import parse_caps, parse_policies, parse_variant

RESULTS = Path(__file__).resolve().parent / "results" / "ablations.md"


@dataclass(frozen=True)
class Ablation:
    """One table: what is asked, the variants, and the paper's order of them, best first."""

    title: str
    variants: tuple[str, ...]
    paper: str
    remark: str
    disk: str | None = None
    columns: tuple[str, ...] = ()


ABLATIONS = {
    "edge": Ablation(
        "edge: members too, all summaries attended, dot-product score, keys alone",
        ("edge", "edge[members=always]", "edge[members=always;share=0.7]", "edge[frames=0]",
         "edge[score=dot]", "edge[value_weight=0]", "mosaic"),
        "",
        "Members in DRAM do not pay for their bytes, nor do more summaries than the best; the "
        "dot product loses 20 points.",
    ),
    "clusters": Ablation(
        "Mosaic: nested clusters against one level or none",
        ("mosaic", "mosaic[levels=semantic]", "mosaic[levels=none]", "mosaic[levels=visual]"),
        "nested 69.0 > semantic 68.6 > none 68.4 > visual 66.8 (MLVU)",
        "The same but for visual and none: a scene of this world is one room, so even the whole "
        "of it belongs together.",
    ),
    "item": Ablation(
        "Mosaic: what is clustered, and how it is scored",
        ("mosaic", "mosaic[item=frame]", "mosaic[score=dot]", "mosaic[value_weight=0]", "mosaic[summaries=0]",
         "mosaic[tau=fixed]", "mosaic[tau=quantile]"),
        "",
        "Single tokens are what matters here: a frame's mean hides its few objects. Score and "
        "tau are within the interval.",
    ),
    "signals": Ablation(
        "InfiniPot-V: TaR, VaN, both, reversed, uniform",
        ("infinipot-v", "infinipot-v[order=tar]", "infinipot-v[order=van]", "infinipot-v[order=van;pool=0]",
         "uniform", "infinipot-v[order=reversed]"),
        "both 65.8 > TaR 64.5 > VaN + pooling 64.1 > VaN 63.0 > uniform 61.5 > reversed 55 (MLVU 6K)",
        "Either signal beats uniform and reversed loses by far, as published; pooling does not "
        "help: it blurs 4 x 4 grids.",
    ),
    "importance": Ablation(
        "MuKV: attention, frequency, both, random",
        ("mukv", "mukv[signal=frequency]", "mukv[signal=attention]", "mukv[signal=random]", "rekv"),
        "both 57.3 > frequency 56.6 > attention 55.9 > ReKV 51.5; random halving 46.7 against 56.1 (RVS-Ego)",
        "Both lead, as published; one alone is chance here, as a frame of 16 tokens keeps two, "
        "and chance finds those too.",
    ),
    "retrieval": Ablation(
        "MuKV: semi-hierarchical, parallel, strict",
        ("mukv", "mukv[retrieval=parallel]", "mukv[retrieval=strict]"),
        "semi-hierarchical 57.9 > parallel 56.5 > strict 52.9 (RVS-Ego)",
        "Parallel leads within the interval: what semi-hierarchical leans on, the mean key of a "
        "segment, points badly here.",
    ),
    "split": Ablation(
        "Mosaic with a disk: deferred against eager split, prefetch on and off",
        ("mosaic", "mosaic[split=eager]", "mosaic[prefetch=0]"),
        "deferred: 42.7 % fewer splits; prefetch: 14.5 % less latency",
        "Fewer splits at the same accuracy, as published; prefetch moves more bytes and the "
        "first token comes sooner.",
        disk="64MiB",
        columns=("splits", "deferred", "moved", "ttft"),
    ),
}  # fmt: skip


def cell(row: Row | None) -> str:
    """Accuracy with its interval, or why there is none."""
    if row is None:
        return "-"
    if "error" in row:
        return "cannot run"
    return f"{100 * row['accuracy']:.1f} ({100 * row['ci_low']:.0f} to {100 * row['ci_high']:.0f})"


def costs(row: Row, columns: tuple[str, ...]) -> list[str]:
    """What the question of the table is about besides accuracy."""
    found = {
        "splits": f"{row['splits']:.0f}",
        "deferred": f"{row['events']['deferred_splits']:.0f}",
        "moved": f"{row['bytes_moved'] / (1 << 20):.1f} MiB",
        "ttft": f"{row['first_token_ms_p50']:.2f} / {row['first_token_ms_p95']:.2f} ms",
    }
    return [found[name] for name in columns]


def table(name: str, ablation: Ablation, rows: list[Row], caps: list[str]) -> list[str]:
    """Markdown of one ablation: variants down, caps and worlds across."""
    rows = [row for row in rows if ablation.disk is None or row["disk_bytes"] > 0]
    worlds = list(dict.fromkeys(row["difficulty"] for row in rows))
    heads = [f"{world} {cap}" for world in worlds for cap in caps]
    extra = [f"{column} ({caps[-1]}, {worlds[-1]})" for column in ablation.columns]
    lines = [
        f"## {ablation.title}",
        "",
        (f"Published: {ablation.paper}. " if ablation.paper else "") + ablation.remark,
        "",
    ]
    lines += ["| variant | " + " | ".join(heads + extra) + " |", "|---" * (1 + len(heads + extra)) + "|"]
    for label in ablation.variants:
        named = parse_variant(label).label
        mine = {
            (row["difficulty"], row["cap"]): row for row in rows if row["policy"].split(" + ")[0] == named
        }
        last = mine.get((worlds[-1], caps[-1]))
        more = (
            costs(last, ablation.columns) if last is not None and "error" not in last else ["-"] * len(extra)
        )
        lines.append(
            "| " + " | ".join([label, *(cell(mine.get((w, c))) for w in worlds for c in caps), *more]) + " |"
        )
    return [*lines, ""]


def main() -> None:
    """Run the tables that were asked for and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("ablations"), help="folder of finished cells")
    parser.add_argument("--only", nargs="+", choices=tuple(ABLATIONS), default=list(ABLATIONS))
    parser.add_argument("--caps", default="10%,5%")
    parser.add_argument("--frames", type=int, default=1024)
    parser.add_argument("--seeds", default="7,8,9,10")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name} too")
    args = parser.parse_args()
    caps = args.caps.split(",")
    lines = [
        "# Ablations",
        "",
        f"`python tools/bench/ablations.py --caps {args.caps} --frames {args.frames} --seeds {args.seeds}`: "
        f"mosaic-tiny on streams of {args.frames:,} frames, percent right with the 95 % interval, caps in "
        "bytes as shares of the full 16-bit cache, no disk unless it says so.",
        "",
    ]
    with Progress() as bar:
        for name in args.only:
            ablation = ABLATIONS[name]
            task = bar.add_task(name)
            settings = EvalSettings(
                policies=parse_policies(",".join(ablation.variants)), caps=parse_caps(args.caps),
                lengths=(args.frames,), seeds=tuple(int(seed) for seed in args.seeds.split(",")),
                disk=ablation.disk,
            )  # fmt: skip
            rows = evaluate(
                settings, args.out, jobs=args.jobs,
                progress=lambda done, total, what, task=task: bar.update(task, completed=done, total=total),  # type: ignore[misc]
            )  # fmt: skip
            lines += table(name, ablation, rows, caps)
    print("\n".join(lines))
    if args.write:
        RESULTS.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
