"""A saved session: what the file says of the session it is of, and what must be the same to go on with it.

First a JSON document (model, settings, what Python knows of the stream), then the core's memory, then the
pictures that are held; cpp/memory/snapshot.h has the format of the file.
"""

from __future__ import annotations

import json
import math
import os
import threading
import zlib
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np

from mosaic_edge import __version__, _core
from mosaic_edge.config import SessionConfig
from mosaic_edge.models.vlm import Vlm
from mosaic_edge.shown import shown
from mosaic_edge.threads import started

_TAG = "SESS"
_MOST_BYTES = 1 << 20
_ELSEWHERE = ("spill_dir", "faults", "trace")
"""Fields of SessionConfig that say where things are, or break them: never of the file."""
_OF_PYTHON = ("skip_alike",)
"""Fields that the core does not know: it compares all others that matter."""

_Restored = TypeVar("_Restored")


class Snapshot:
    """The head of a snapshot that is being read; `reader` stands behind it."""

    def __init__(self, descriptor: int) -> None:
        """ValueError for what is no saved session."""
        self.reader: Any = _core.SnapshotReader(descriptor)
        data = self.reader.take(_TAG, _MOST_BYTES)
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            raise ValueError("snapshot: what it says of its session cannot be read") from None
        parts = ("model", "config", "stream")
        if not isinstance(document, dict) or not all(isinstance(document.get(p), dict) for p in parts):
            raise ValueError("snapshot: it does not say what session it is of")
        self.model: dict[str, Any] = document["model"]
        self.stream: dict[str, Any] = document["stream"]
        self.note: Any = document.get("note")
        self._config: dict[str, Any] = document["config"]

    def config(self, config: SessionConfig | None, settings: dict[str, Any]) -> SessionConfig:
        """Settings to restore it with: its own, but for those of `settings`; or `config` with those.
        ValueError for what no session has, or where a policy's object must be given anew."""
        if config is not None:
            given = {f.name: getattr(config, f.name) for f in fields(config)}
        else:
            known = {f.name for f in fields(SessionConfig)} - set(_ELSEWHERE)
            if unknown := sorted(set(self._config) - known):
                raise ValueError(
                    f"snapshot: its session has {unknown[0][:40]!r}, which this version does not know"
                )
            given = dict(self._config)
        given |= settings
        if given.get("policy") is None:
            raise ValueError("snapshot: its policy is an object: give one of its class, policy=")
        return SessionConfig(**given)

    def check(self, model: Vlm, config: SessionConfig) -> None:
        """ValueError where its session is of another model, or has another setting that the core does not
        know."""
        for name, have in identity(model).items():
            _same(
                name, self.model.get(name), have, "Engine.load: restore it with the model it was saved with"
            )
        for name in _OF_PYTHON:
            _same(name, self._config.get(name), getattr(config, name), f"{name}=")


def begin(descriptor: int, model: Vlm, config: SessionConfig, stream: dict[str, Any], note: Any) -> Any:
    """A _core.SnapshotWriter that has written what the session is, and the caller's note."""
    _check_note(note)
    said = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in _ELSEWHERE}
    if not isinstance(config.policy, str):
        said["policy"] = None
    said["kernel_threads"] = config.core_threads(model.spec)  # not of the machine it is restored on
    document = {
        "mosaic_edge": __version__,
        "model": identity(model),
        "config": said,
        "stream": stream,
        "note": note,
    }
    data = json.dumps(document, default=_plain).encode()
    if len(data) > _MOST_BYTES:
        raise ValueError(f"note=: {len(data)} bytes with what is said of the session, expected {_MOST_BYTES}")
    writer: Any = _core.SnapshotWriter(descriptor)
    writer.add(_TAG, data)
    return writer


def _check_note(note: Any) -> None:
    """ValueError where it does not come back as it went."""
    try:
        json.loads(json.dumps(note, default=_plain))
    except Exception as error:  # also what an object in it raises
        why = " ".join(str(error).split())[:100]
        raise ValueError(f"note=: expected plain data, as JSON has it ({why})") from None


def piped(save: Callable[[int], None], restore: Callable[[Snapshot], _Restored]) -> _Restored:
    """What restore() makes of what save() writes meanwhile, in a thread, through a pipe."""
    reads, writes = os.pipe()
    # Files, which close when they are forgotten: where an interrupt comes in between, the thread must not
    # write into a pipe for ever, with the session's lock in its hand.
    source, sink = os.fdopen(reads, "rb", buffering=0), os.fdopen(writes, "wb", buffering=0)
    failed: list[BaseException] = []

    def write() -> None:
        try:
            save(sink.fileno())
        except BaseException as error:
            failed.append(error)
        finally:
            sink.close()  # the end, for the reader: what failed is known by then

    thread = threading.Thread(target=write, name="mosaic-fork", daemon=True)
    try:
        started(thread, "a fork of a session")
        return restore(Snapshot(source.fileno()))
    except BaseException:
        if failed:  # else the reader's own trouble, which the writer is about to hear of
            raise failed[0] from None
        raise
    finally:
        source.close()
        if thread.is_alive():
            thread.join()


def identity(model: Vlm) -> dict[str, Any]:
    """What tells models apart that have one shape: their name, and the embeddings of a few tokens."""
    spec = model.spec
    tokens = model.embed_text([i % spec.vocab_size for i in (0, 1, 2, 5, 11, 23)])
    return {
        "model": spec.name,
        "hidden": spec.hidden,
        "vocab_size": spec.vocab_size,
        "temporal_patch_size": spec.temporal_patch_size,
        "prefix": spec.prefix,
        "weights": f"{zlib.crc32(np.ascontiguousarray(tokens, np.float32).tobytes()):08x}",
    }


def _same(name: str, in_file: Any, here: Any, knob: str) -> None:
    if in_file != here:
        raise ValueError(
            f"snapshot: {name} is {shown(in_file)} in the file and {shown(here)} here. Change {knob}"
        )


def _plain(value: Any) -> Any:
    """Numbers of NumPy among the settings."""
    number = value.item() if hasattr(value, "item") else None
    if isinstance(number, bool | int | float) and math.isfinite(number):
        return number
    raise TypeError(f"a value of type {type(value).__name__} cannot be saved")
