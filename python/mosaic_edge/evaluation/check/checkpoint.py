"""A checkpoint in the transformers layout against its own script: a session first, then, with the model's
attention given back, generate() of the same model over AutoProcessor's inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mosaic_edge.engine import Engine
from mosaic_edge.evaluation.check import positions
from mosaic_edge.evaluation.check.clip import Clip
from mosaic_edge.evaluation.check.row import NAMES, Row, largest, near, not_compared
from mosaic_edge.evaluation.check.said import ids_rows, logits_row, tokens_row
from mosaic_edge.evaluation.check.script import (
    Answer,
    Heard,
    answer_of,
    hearing,
    ids_of,
    inputs_of,
    pixels_of,
)
from mosaic_edge.evaluation.check.watched import Watched, stream, watching
from mosaic_edge.models.hf.vlm import HfVlm


@dataclass(frozen=True)
class Rounding:
    """What may differ where the library and the memory attend in an order of their own, in a model's type."""

    features: float
    logits: float


_ROUNDING = {torch.float32: Rounding(2e-5, 1e-3), torch.float16: Rounding(5e-3, 0.05)}
_COARSE = Rounding(4e-2, 0.25)  # bfloat16


def check_checkpoint(engine: Engine, clip: Clip, steps: int) -> list[Row]:
    """A row for every one of NAMES. MemoryCapError, ModelError as a session raises them."""
    vlm = engine.model
    assert isinstance(vlm, HfVlm)
    family = vlm.family
    try:
        inputs = inputs_of(Path(family.name), str(family.config.model_type), clip, vlm.spec.system)
    except Exception as error:  # ImportError, a template that refuses, sizes: the library has many
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if isinstance(error, ImportError) and "torchvision" in why.lower():
            why = "it needs torchvision: pip install torchvision"
        return not_compared(NAMES, f"AutoProcessor cannot be used ({why})")
    with watching(vlm) as ours, hearing(family.model) as heard:
        stream(engine, clip, steps)
    vlm.release()
    theirs = answer_of(family.whole, inputs, steps)
    rounding = _ROUNDING.get(family.model.dtype, _COARSE)
    prompt, sizes = ids_rows(ours.prompt, ids_of(inputs, family.config.to_dict()))
    return [
        prompt,
        _pixels_row(heard, inputs, family.whole),
        sizes,
        _features_row(ours, theirs, rounding),
        near(
            "positions",
            positions.difference(engine, ours.pictures, clip, theirs.positions),
            positions.ALLOWED,
            "what a question reads at the script's",
        ),
        logits_row(ours.logits[0], theirs.logits[0], rounding.logits),
        tokens_row(ours, theirs.logits, theirs.tokens, engine.spec.eos_token_ids, rounding.logits),
    ]


def _pixels_row(heard: Heard, inputs: dict[str, Any], model: Any) -> Row:
    theirs = pixels_of(inputs).to(model.dtype).float().numpy()
    ours = np.concatenate([one.reshape(-1, theirs.shape[-1]) for one in heard.pixels])
    if ours.size != theirs.size:
        return Row("pixels", False, f"{ours.size} numbers, the script has {theirs.size}")
    off = largest(ours.reshape(theirs.shape), theirs, 1.0)
    return near("pixels", off, 1e-5, "a number of about 1")


def _features_row(ours: Watched, theirs: Answer, rounding: Rounding) -> Row:
    """All that the decoder reads of prompt and pictures: rows of words are compared as well."""
    script = theirs.heard.embeds[0]
    read = np.concatenate(ours.embeds)[: len(ours.prompt), : script.shape[1]]
    return near(
        "features", largest(read, script, float(np.abs(script).max())), rounding.features, "the largest"
    )
