"""The memories under trained decoders: a narrated stream, what is remembered of it, and what that took.

A frame is a sentence; questions ask at the end where a thing was that one scene had (recall), and in between
where the thing is that is seen now (perception). Every cell is a session of the product with its cap;
finished cells are kept as JSON lines (--log) and not run again while core, model and settings stay, and the
tables are of all that are there. The answers of `full` at 32 bits are cached, KL is against them.

    python tools/bench decoders [--gguf FILE | --model DIR] --sentences 192 --seeds 7,8 --caps 25%,15%,10%
    python tools/bench decoders --policies "full,uniform,uniform=read,window=4,edge[packed=int8]" --disk 1GiB
    python tools/bench decoders --check [--gguf FILE]   # `full` against the cache of transformers, 32 bits
    python tools/bench decoders --join DIR DIR --out DIR   # rows of other runs beside those that are there
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .decoder import DTYPES, Decoder
from .gguf_file import as_directory, default_file
from .join import join
from .product import Variant, parse_caps, parse_variant
from .report import write
from .rungs import FULL, NARROW, NARROW_FRAMES, RUNGS, Cell
from .streams import FORMS, make_stream

RETRIEVE = ("rekv", "mosaic", "edge")
POLICIES = f"full,uniform,uniform=read,window={NARROW_FRAMES},infinipot-v,mukv,rekv,mosaic,edge"
HEAD = """# Memories of trained decoders

Streams of sentences (`tools/bench/decoders/streams.py`), one a frame. `cap`: share of the 16-bit bytes of the
full cache, index and scratch included. `recall`: right among twelve rooms. `KL`: full || policy, of the first
token of an answer to a question about the past. Evidence: the share of questions whose scene was named, and
read token by token. Tokens are those of one layer; `≤`: the most by the plan, where the core does not count.
`uniform=read` keeps as many tokens as the retrieving policy that reads most; `window=4` is the last four
frames (SimpleStream).
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python tools/bench decoders",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model = p.add_mutually_exclusive_group()
    model.add_argument("--gguf", type=Path, help="a llama or qwen2 file; default SmolLM2-135M-Instruct")
    model.add_argument("--model", type=Path, help="a transformers directory of one")
    p.add_argument("--dtype", choices=sorted(DTYPES), default="bf16", help="of linear layers")
    p.add_argument("--sentences", default="192", help="lengths of streams, e.g. 192,768,3072")
    p.add_argument("--seeds", default="7")
    p.add_argument("--form", choices=sorted(FORMS), default="plain", help="wording of the stream")
    p.add_argument(
        "--perception", type=int, default=16, help="questions about what is seen, at most, a stream"
    )
    p.add_argument(
        "--policies", default=POLICIES, help="names, perhaps with settings: edge[key=value;key=value]"
    )
    p.add_argument("--caps", default="25%,15%,10%", help="shares of the full cache's 16-bit bytes")
    p.add_argument("--rungs", default="", help=f"of {', '.join(RUNGS)}; default packed, with --disk disk too")
    p.add_argument("--disk", help="size of the spill file of rung disk, e.g. 1GiB")
    p.add_argument("--codec", help="of packed pages; default the product's")
    p.add_argument(
        "--settings", default="", help="of all sessions: key=value;key=value, e.g. positions=original"
    )
    p.add_argument(
        "--frames-read",
        default="0",
        help="sentences that a frame sees, e.g. 0,16; 0: what the policy lets it",
    )
    p.add_argument(
        "--together", type=int, default=1, help="sessions that share a forward pass; times are then left out"
    )
    p.add_argument("--no-kl", action="store_true", help="do without the full cache's answers (long streams)")
    p.add_argument(
        "--out", type=Path, default=Path("docs/results"), help="folder of decoders.md and decoders.json"
    )
    p.add_argument("--log", type=Path, help="finished cells; default build/decoders.jsonl")
    p.add_argument(
        "--check", action="store_true", help="compare `full` with transformers' own cache, and nothing else"
    )
    p.add_argument(
        "--join",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="put the rows of these runs into --out; run nothing",
    )
    return p


def cells_of(o: argparse.Namespace) -> list[Cell]:
    """What to measure on each stream. Raises ValueError naming the part that is wrong."""
    rungs = [r for r in o.rungs.split(",") if r] or ["packed", *(["disk"] if o.disk else [])]
    unknown = [r for r in rungs if r not in RUNGS]
    if unknown:
        raise ValueError(f"rungs={unknown[0]!r}: there are {', '.join(RUNGS)}")
    if "disk" in rungs and not o.disk:
        raise ValueError("rungs=disk: say how large with --disk")
    shares = [cap.share for cap in parse_caps(o.caps)]
    if None in shares:
        raise ValueError(f"caps={o.caps}: expected shares such as 10%")
    size = next((cap.size or 0 for cap in parse_caps(o.disk)), 0) if o.disk else 0
    cells = []
    for name in re.split(r",(?![^\[]*\])", o.policies):
        cell = _named(name.strip(), o.policies)
        for rung in _rungs_of(cell, rungs):
            one = replace(cell, rung=rung, disk=size if rung == "disk" else 0)
            at = [None] if _alone(cell) or rung in ("exact", "kept") else shares
            cells += [
                replace(one, cap_share=share, frames_read=n)
                for share in at
                for n in map(int, o.frames_read.split(","))
            ]
    return cells


def _rungs_of(cell: Cell, rungs: Sequence[str]) -> list[str]:
    """Of the rungs asked for, those that differ for this cell."""
    if cell.variant.policy == FULL:
        return ["exact"] if "exact" in rungs else ["packed"]
    if _alone(cell) or cell.read_like:
        return ["packed"] if "packed" in rungs else []
    return [rung for rung in rungs if rung != "exact"]


def _alone(cell: Cell) -> bool:
    """Takes the cap that it needs, not one it is given."""
    return cell.variant.policy == FULL or cell.label == f"{NARROW}={NARROW_FRAMES}"


def _named(name: str, policies: str) -> Cell:
    if name == f"{NARROW}={NARROW_FRAMES}":
        return Cell(name, Variant(name, NARROW))
    if name == "uniform=read":
        labels = [part.strip() for part in re.split(r",(?![^\[]*\])", policies)]
        return Cell(
            name, Variant(name, "uniform"), read_like=tuple(x for x in labels if x.startswith(RETRIEVE))
        )
    variant = parse_variant(name)
    return Cell(variant.label, variant)


def _command(arguments: Sequence[str]) -> str:
    """The command as others would give it: without the folders of this machine."""
    kept = [f"--{name}={value}" if value else f"--{name}" for name, value in _pairs(arguments)]
    return shlex.join(["python", "tools/bench", "decoders", *kept])


def _pairs(arguments: Sequence[str]) -> list[tuple[str, str]]:
    given = {k: v for k, v in vars(parser().parse_args(arguments)).items() if v != parser().get_default(k)}
    names = {"gguf": "FILE", "model": "DIR"}
    return [
        (k.replace("_", "-"), names.get(k, "" if v is True else str(v)))
        for k, v in given.items()
        if k not in ("out", "log")
    ]


def _join(p: argparse.ArgumentParser, o: argparse.Namespace) -> int:
    try:
        join(o.out, o.join, HEAD)
    except (OSError, ValueError) as error:  # no such run, a file that is none, seeds that meet in part
        p.error(str(error))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is left of the cells, then write the tables of all that this core has on file."""
    p = parser()
    o = p.parse_args(arguments)
    if o.join:
        return _join(p, o)
    try:
        cells = cells_of(o)
        shared = parse_variant(f"{FULL}[{o.settings}]").session if o.settings else {}
    except ValueError as error:
        p.error(str(error))
    file = None if o.model else o.gguf or default_file()
    folder = o.model if file is None else as_directory(file)
    if o.check:
        from .exact import check

        return check(folder)
    from .runner import Runner

    base = {**shared, **({"packed": o.codec} if o.codec else {})}
    streams = [
        make_stream(int(n), int(seed), o.form, o.perception)
        for n in o.sentences.split(",")
        for seed in o.seeds.split(",")
    ]
    runner = Runner(
        Decoder(folder, o.dtype, file.stem if file else folder.name),
        o.log or Path("build/decoders.jsonl"),
        base,
        o.together,
        not o.no_kl,
        _command(sys.argv[2:] if arguments is None else arguments),
    )
    try:
        runner.run(streams, cells)
    except ValueError as error:  # a setting that no policy knows, a vocabulary without the rooms
        p.error(str(error))
    write(runner.finished(), o.out, HEAD)
    return 0
