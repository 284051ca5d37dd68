"""Keep cut graphs on disk, so that the next load neither parses nor copies a large decoder's weights.

    <cuts>/<hash>/cut.json      facts, the segments' tensors, sizes and digests
                   segment_N.onnx

The hash is of the decoder's bytes and folder, the hints and CUTTER_VERSION, whatever the file is called.
Weights in external data stay where they are: cut.json has the size and time of those files, and a change
makes a new cut. <cuts> is `cuts` in the user's cache directory (cache_folder.py), never the model's: that
may be anyone's. An entry appears whole (written aside, then renamed) or not at all, and a damaged one is made
again. Nothing here fails a load: where it cannot write the segments are cut in memory, one at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mosaic_edge.models.cache_folder import MARKER, cache_folder, is_abandoned, make_aside, ours, remove
from mosaic_edge.models.onnx.cut import CUTTER_VERSION, CutGraph, cut
from mosaic_edge.models.onnx.facts import DecoderFacts
from mosaic_edge.models.onnx.files import bytes_on_disk
from mosaic_edge.models.onnx.graph_file import data_folder, external_files, read_graph
from mosaic_edge.models.vlm import RopeSpec

LEAST_BYTES = 64 << 20
"""Decoders with fewer bytes, external data included, are cut again at every load: it takes no time."""
_CHUNK = 1 << 20


@dataclass(frozen=True)
class CachedSegment:
    """A segment as a file; the same face as cut.Segment."""

    path: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    external: bool
    """Its weights lie in the decoder's folder, so ONNX Runtime gets the bytes and that folder instead of a
    path.
    """

    def source(self) -> bytes | str:
        """What an inference session is made of."""
        return self.path.read_bytes() if self.external else str(self.path)


@dataclass(frozen=True)
class CachedCut:
    """A cut read back; the same face as cut.CutGraph."""

    segments: tuple[CachedSegment, ...]
    facts: DecoderFacts
    heads_first: bool
    heads_apart: tuple[bool, ...]


def open_pieces(
    decoder: Path, hints: Mapping[str, object], least_bytes: int | None = None
) -> CutGraph | CachedCut:
    """The cut of a decoder file, from the cache if it is there. ModelError as read_graph() and cut() raise
    it.
    """
    if bytes_on_disk(decoder) < (LEAST_BYTES if least_bytes is None else least_bytes):
        return cut(read_graph(decoder), hints, str(data_folder(decoder)))
    try:
        cuts = cache_folder() / "cuts"
    except OSError:
        return cut(read_graph(decoder), hints, str(data_folder(decoder)))
    entry = cuts / _key(decoder, hints)
    if (found := _read(entry, decoder)) is not None:
        return found
    graph = cut(read_graph(decoder), hints, str(data_folder(decoder)))
    with suppress(OSError):
        _write(entry, decoder, graph)
        _remove_stale(entry, decoder)
        return _read(entry, decoder) or graph
    return graph


def _key(decoder: Path, hints: Mapping[str, object]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    # The folder: equal graphs over other external data do not share an entry of a common cache.
    where = str(decoder.parent.resolve())
    digest.update(json.dumps([CUTTER_VERSION, where, dict(hints)], sort_keys=True).encode())
    _add_file(digest, decoder)
    return digest.hexdigest()


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    _add_file(digest, path)
    return digest.hexdigest()


def _digest_of(text: bytes) -> str:
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def _add_file(digest: hashlib.blake2b, path: Path) -> None:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)


def _identity(decoder: Path, names: Sequence[str]) -> list[list[object]]:
    """Name, bytes and time of the external data files; a missing one makes the identity differ."""
    stats = [(name, data_folder(decoder) / name) for name in sorted(names)]
    return [[n, p.stat().st_size, p.stat().st_mtime_ns] if p.is_file() else [n, -1, 0] for n, p in stats]


def _read(entry: Path, decoder: Path) -> CachedCut | None:
    """An entry, or None if it is absent, damaged, or of other external data."""
    try:
        text = (entry / "cut.json").read_bytes()
        if (entry / MARKER).read_text(encoding="utf-8") != _digest_of(text):
            return None
        said: dict[str, Any] = json.loads(text)
        segments = []
        for i, piece in enumerate(said["segments"]):
            path = entry / f"segment_{i}.onnx"
            if _digest(path) != piece["digest"]:
                return None
            external = bool(piece["external"])
            segments.append(CachedSegment(path, tuple(piece["inputs"]), tuple(piece["outputs"]), external))
        if said["external_data"] != _identity(decoder, [name for name, *_ in said["external_data"]]):
            return None
        facts = said["facts"]
        facts["rope"] |= {key: tuple(facts["rope"].get(key, ())) for key in ("sections", "frequencies")}
        facts["rope"] = RopeSpec(**facts["rope"])
        return CachedCut(
            tuple(segments), DecoderFacts(**facts), said["heads_first"], tuple(said["heads_apart"])
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _write(entry: Path, decoder: Path, graph: CutGraph) -> None:
    """Write an entry aside and rename it into place. OSError if that cannot be."""
    aside = make_aside(entry.parent, entry.name)
    try:
        pieces = []
        names: set[str] = set()
        for i, segment in enumerate(graph.segments):
            model = segment.model
            used = set(external_files(model))
            names |= used
            path = aside / f"segment_{i}.onnx"
            path.write_bytes(model.SerializeToString())
            pieces.append(
                {
                    "inputs": segment.inputs,
                    "outputs": segment.outputs,
                    "external": bool(used),
                    "digest": _digest(path),
                }
            )
        said = {
            "decoder": str(decoder.resolve()),
            "facts": asdict(graph.facts),
            "heads_first": graph.heads_first,
            "heads_apart": graph.heads_apart,
            "segments": pieces,
            "external_data": _identity(decoder, sorted(names)),
        }
        text = json.dumps(said).encode()
        (aside / "cut.json").write_bytes(text)
        (aside / MARKER).write_text(_digest_of(text), encoding="utf-8")
        if _read(entry, decoder) is not None:  # another load was quicker, and may be reading it
            return
        remove(entry)  # damaged
        aside.rename(entry)
    finally:
        remove(aside)


def _remove_stale(entry: Path, decoder: Path) -> None:
    """Cuts of earlier contents of this decoder or by an earlier cutter, and what a crash left an hour ago."""
    where = str(decoder.resolve())
    for other in ours(entry.parent):
        if is_abandoned(other) or (other.name != entry.name and _decoder_of(other) == where):
            remove(other)


def _decoder_of(entry: Path) -> str | None:
    """The decoder file that an entry was cut from; None for what is not written yet."""
    if entry.suffix == ".part":
        return None
    try:
        said = json.loads((entry / "cut.json").read_text(encoding="utf-8"))
        return str(said["decoder"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
