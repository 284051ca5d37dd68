"""How a model's makers have its answers drawn: what generation_config.json says, in the words of
SamplingParams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def sampling_said(generation: Mapping[str, Any]) -> dict[str, float | int]:
    """Fields of SamplingParams that a generation_config.json gives, with the library's defaults where it
    draws."""
    said: dict[str, float | int] = {}
    if (penalty := generation.get("repetition_penalty")) is not None:
        said["repetition_penalty"] = float(penalty)
    if generation.get("do_sample"):
        temperature, top_k, top_p = (generation.get(name) for name in ("temperature", "top_k", "top_p"))
        said["temperature"] = min(max(float(1.0 if temperature is None else temperature), 1e-6), 1e6)
        said["top_k"] = int(50 if top_k is None else top_k)
        said["top_p"] = float(1.0 if top_p is None else top_p)
    return said
