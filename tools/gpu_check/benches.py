"""Parts of tools/bench/gpu.py, whose rows become lines of results as they are measured."""

from __future__ import annotations

import json

from check import ROOT, Check, StageError


def play(check: Check, part: str, limit: float, *options: str) -> None:
    lines = check.work / f"{part}.jsonl"
    lines.unlink(missing_ok=True)
    command = [check.python, ROOT / "tools/bench/gpu.py", "--only", part, "--lines", lines, *options]
    done = check.run(part, [*command, *(["--rehearse"] if check.cpu else [])], limit)
    rows = lines.read_text().splitlines() if lines.exists() else []
    for text in rows:
        try:
            row = json.loads(text)
        except ValueError:  # cut off with the process that wrote it
            continue
        check.write("row", **row)
    if done.code != 0:
        raise StageError(f"{part}: {done.ended(limit)}, {len(rows)} rows before", done.tail())
