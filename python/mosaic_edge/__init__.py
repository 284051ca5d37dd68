"""Streaming video memory for vision-language models under a hard memory cap."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
DEFAULT_POLICY = "edge"

# Public name -> the module that defines it. Nothing is imported before it is used.
_HOME = {
    "Engine": "engine",
    "AsyncSession": "async_session",
    "Session": "session",
    "Reply": "reply",
    "ReplyStream": "reply",
    "SamplingParams": "sampling",
    "SessionConfig": "config",
    "Policy": "_core",
    "Eviction": "_core",
    "TimeRange": "evidence",
    "MemoryCapError": "errors",
    "InvalidInput": "errors",
    "SpillError": "errors",
    "InvariantError": "errors",
    "ModelError": "models.vlm",
    "Frame": "sources",
    "FrameSource": "sources",
    "LiveSource": "sources",
    "SourceError": "sources",
    "VideoSource": "sources",
    "frames_from_arrays": "sources",
    "open_live": "sources",
    "open_source": "sources",
    "stream_live": "serve",
}
__all__ = [*sorted(_HOME), "DEFAULT_POLICY", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mosaic_edge' has no attribute '{name}'")
    return getattr(import_module(f"mosaic_edge.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
