"""Run by published.py in a process of its own, where torchvision is to be had: `mosaic-edge check` of a
folder, and what AutoProcessor made of the clip: published_check.py PIXELS.npy FOLDER OPTIONS. The option
--write=NAME has checked_models write the folder before, for models that cannot even be made without."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

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


def main(pixels_file: str, folder: str, *options: str) -> int:
    """The command's exit code."""
    torch.set_num_threads(1)
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


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
