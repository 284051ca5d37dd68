"""Started by published.py, where torchvision is to be had: `mosaic-edge check` of one folder after the other,
and what AutoProcessor made of each clip. A line of stdin asks (PIXELS.npy, FOLDER, OPTIONS), a line of stdout
answers. The option --write=NAME has checked_models write the folder before, for models that cannot even be
made without."""

from __future__ import annotations

import json
import os
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

# torchvision's compiled operators are built against CUDA and do not load under torch's CPU build. Resizing
# needs none of them, importing needs them to be named.
_operators = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _name):
        _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from mosaic_edge import cli  # noqa: E402
from mosaic_edge.evaluation.check import checkpoint, script  # noqa: E402

WRITE = "--write="


def check(pixels_file: str, folder: str, *options: str) -> int:
    """The command's exit code."""
    for option in (option for option in options if option.startswith(WRITE)):
        getattr(import_module("checked_models"), f"write_{option.removeprefix(WRITE)}")(Path(folder))
    options = tuple(option for option in options if not option.startswith(WRITE))
    made: list[script.Inputs] = []

    def noted(*given: object) -> script.Inputs:
        made.append(script.inputs_of(*given))  # type: ignore[arg-type]
        return made[-1]

    checkpoint.inputs_of = noted
    code = cli.main(["check", "--model", folder, "--device", "cpu", "--json", *options])
    if made:
        np.save(Path(pixels_file), script.pixels_of(made[0]).numpy())
    return code


def answered(request: list[str]) -> dict[str, Any]:
    """Exit code (none: it broke), and what was printed."""
    code = None
    with redirect_stdout(StringIO()) as said, redirect_stderr(StringIO()) as complained:
        try:
            code = check(*request)
        except Exception:
            traceback.print_exc()
    return {"code": code, "said": said.getvalue(), "complained": complained.getvalue()}


def main() -> None:
    """Until stdin ends."""
    torch.set_num_threads(1)
    with os.fdopen(os.dup(1), "w") as replies:
        os.dup2(2, 1)  # an older tokenizers prints a remark on gaps in ids
        for line in sys.stdin:
            print(json.dumps(answered(json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main()
