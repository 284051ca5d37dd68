#!/usr/bin/env python3
"""What `mosaic-edge check` says of every family:
python tools/bench/families_checked.py > docs/results/published.md

Checkpoints with random weights: of published configuration files where those are to be had (beside the
repository, or in MOSAIC_PUBLISHED; `tools/setup published` gets what AutoProcessor needs), else of our own;
exports that onnxruntime-genai's builder made. What a family said is kept in --keep DIR and taken from there.
Exit code 1 when a row differs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COLUMNS = ("prompt", "pixels", "tokens a frame", "features", "positions", "logits", "greedy tokens")
STAMPS = (
    "its processor shares pixels between all frames of a video: here each picture is bounded as the first"
)
INTRO = (
    "the intro counts frames and length of the video, which a stream does not know: left without the numbers"
)
IMAGES = "no video processor: a frame is an image, without tiles"
OWN = "configuration of our own"
WHOLE = "its processor leaves out tokens that equal those of the frame before: here all are read"
EXCEPTIONS = {
    "qwen3_vl": STAMPS,
    "smolvlm": INTRO,
    "idefics3_granite_docling": IMAGES,
    "llava": IMAGES,
    "ovis2": f"{IMAGES}; {OWN}",
    "llava_next_video": OWN,
    "video_llama_3": f"{WHOLE}; {OWN}",
    "perception_lm": OWN,
    "ONNX llava": f"{OWN}, no processor in it",
    "ONNX qwen2.5-vl": f"{OWN}, no processor in it",
    "ONNX qwen3-vl": f"{OWN}, no processor in it; without DeepStack, which graphs cannot have",
}
"""By family: what cannot be in a stream, or is not as published."""


@dataclass(frozen=True)
class Family:
    """What the command said of one."""

    name: str
    said: dict[str, Any]

    def line(self) -> str:
        """A row of the table."""
        rows = {row["what"]: row for row in self.said.get("rows", [])}
        cells = [cell(rows[name]) for name in COLUMNS] if rows else ["-"] * len(COLUMNS)
        loads = "yes" if rows else f"no: {self.said.get('error')}"
        return f"| {' | '.join([self.name, loads, *cells, EXCEPTIONS.get(self.name, '')])} |"


def cell(row: dict[str, Any]) -> str:
    """= or what differs; how far from equal numbers are, and how many tokens are the same."""
    if row["equal"] is None:
        return "-"
    if not row["equal"]:
        return f"**{row['detail']}**"
    if row["what"] == "greedy tokens":
        return f"= ({row['detail'].split()[0]})"
    return f"= ({row['difference']:.0e})" if row["difference"] else "="


HEAD = """# Families against their own scripts

`python tools/bench/families_checked.py`: what `mosaic-edge check` says of checkpoints with random weights in
float32, {steps} greedy steps. Six frames (LLaVA 1.5: five, its context is full) and a question go to a
session whose cap holds everything, and to the plain script of the library: AutoProcessor and `generate` of
transformers; for ONNX the decoder's graph as it was exported, with a cache of its own.

`=`: equal; in brackets the largest difference, as a share of the largest feature, of what a question reads,
of the spread of the logits. `-`: not compared; prompts and pixels of ONNX directories are compared in
`tests/python/onnx/test_check.py`, on one with a processor.

"""

TAIL = """
The first nine are a test (`tests/python/hf/test_published.py`), also under older transformers (`tools/test
--matrix`). What differs there:

- 4.57 and 5.2, smolvlm: pixels, and so features and logits. Its video processor resizes bicubically, its
  image processor, which a stream's frames go through, by Lanczos, as it was published.
- 4.57, llava_onevision: pixels, and so features, by rounding (a level of 255 here and there): its image
  processor there resizes by Pillow, its video processor by torchvision. Logits are equal, to 1e-3 of their
  spread instead of 1e-4.
- 5.2, idefics3_granite_docling: greedy tokens. `generate` goes on from the second token otherwise than the
  same model does without a cache.
- video_llama_3 and perception_lm came with transformers 5; perception_lm does not run with 5.2.
"""


def page(found: list[Family], steps: int) -> str:
    """The page as it is committed."""
    head = ["family", "loads", *COLUMNS, "what cannot be in a stream, or is not as published"]
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(family.line() for family in found)]
    return HEAD.format(steps=steps) + "\n".join(rows) + "\n" + TAIL


def checks(root: Path, keep: Path | None, steps: int) -> Iterator[Family]:
    """Every family, as it is done; what `keep` has is not done again."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "material"))
    import checked_models
    from exported_models import Exporter
    from published import SOURCES, checked, write_published

    def done(name: str, options: list[str], write: Any, own_process: bool = True) -> Family:
        kept = keep and keep / f"{name.replace(' ', '_')}.json"
        if kept and kept.exists():
            return Family(name, json.loads(kept.read_text()))
        folder = write(root / name.replace(" ", "_"))
        options = [*options, "--steps", str(steps)]
        said = (
            checked(folder, root, "--dtype", "fp32", *options).said
            if own_process
            else command(folder, options)
        )
        if kept:
            kept.write_text(json.dumps(said))
        return Family(name, said)

    for kind in SOURCES:
        limit = ["--tokens-per-frame", "64"] if kind.startswith("qwen") else []
        yield done(kind, limit, lambda folder, kind=kind: write_published(kind, folder))
    yield done("llava_next_video", [], checked_models.write_llava_next_video)
    yield done("ovis2", [], checked_models.write_ovis2)
    yield done("video_llama_3", [], checked_models.write_video_llama3)
    yield done("perception_lm", ["--write=perception_lm"], lambda folder: folder)
    (root / "exports").mkdir()
    exporter = Exporter(root / "exports")
    ask = ["--ask", "w11 w13 w90"]
    small = ["--tokens-per-frame", "12"]
    genai = ("qwen3-vl", "genai", "int4", "accuracy_level=1")
    yield done("ONNX llava", ask, lambda _: exporter("llava"), False)
    yield done("ONNX qwen2.5-vl", [*ask, *small], lambda _: exporter("qwen2.5-vl"), False)
    yield done("ONNX qwen3-vl", [*ask, *small], lambda _: exporter(*genai), False)


def command(folder: Path, options: list[str]) -> dict[str, Any]:
    """What `mosaic-edge check --json` prints."""
    from mosaic_edge import cli

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        cli.main(["check", "--json", "--model", str(folder), *options])
    said: dict[str, Any] = json.loads(out.getvalue())
    return said


def main() -> int:
    """The page on stdout, a line per family on stderr."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--keep", type=Path, help="a folder for what each family said")
    args = parser.parse_args()
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    found = []
    with tempfile.TemporaryDirectory() as root:
        for family in checks(Path(root), args.keep, args.steps):
            print(family.line(), file=sys.stderr, flush=True)
            found.append(family)
    print(page(found, args.steps), end="")
    return 0 if all(family.said.get("equal") for family in found) else 1


if __name__ == "__main__":
    sys.exit(main())
