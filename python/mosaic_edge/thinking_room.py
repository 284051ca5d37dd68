"""Room for the thoughts of a model that thinks, where a session names none (branch_tokens=)."""

from __future__ import annotations

from typing import Any

from mosaic_edge import _core
from mosaic_edge.models.vlm import VlmSpec
from mosaic_edge.sampling import THINKING_TOKENS

_QUESTION = 512
"""Tokens of question and dialogue beside thought and answer."""
_SHARE = 4
"""What it takes at most: this part of the cap, and half this part of the model's context."""


def room_to_think(arguments: tuple[Any, ...], spec: VlmSpec) -> tuple[Any, ...]:
    """The core's arguments with as much room as a thought may need, where the core would give less; as they
    are where the rest would not fit then."""
    model, memory, *others = arguments
    number = 2 if memory["exact"] == "fp32" else 1
    wish = memory["cap_bytes"] // _SHARE // (spec.kv_bytes_per_token * number)
    wish = min(wish, THINKING_TOKENS + _QUESTION)
    if spec.context:
        wish = min(wish, spec.context // (2 * _SHARE))
    wide = (model, memory | {"branch_tokens": wish}, *others)
    try:
        usual = int(_core.plan(*arguments)["branch_tokens"])
        return wide if usual < wish and _core.plan(*wide) else arguments
    except (_core.MemoryCapError, ValueError):  # said by who opens it
        return arguments
