"""Fixtures of the tests of tools/bench/decoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from small_decoders import write_small

ROOT = Path(__file__).resolve().parents[2]
Small = Callable[..., Path]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The bench can be imported, and has a cache of its own."""
    monkeypatch.syspath_prepend(str(ROOT / "tools" / "bench"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def small(bench: None, tmp_path: Path) -> Small:
    """small(family="qwen2", template=None): a directory of a decoder that knows plain streams' words."""
    from decoders.streams import OPENING, SYSTEM, make_stream

    def write(family: str = "qwen2", template: str | None = None) -> Path:
        stream = make_stream(400, 1)
        asks = [f"{q.text} {q.opening} {q.answer}" for q in stream.questions]
        texts = [*stream.sentences, *asks, SYSTEM, OPENING, *stream.rooms]
        return write_small(family, tmp_path / family, texts, template)

    return write
