"""Cut decoders on disk: read back whole, made again when anything about them is not as it was."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from fixtures_models import HIDDEN, Handmade
from mosaic_edge.models.cache_folder import MARKER, remove
from mosaic_edge.models.onnx import cut_cache
from mosaic_edge.models.onnx.cut import CutGraph
from mosaic_edge.models.onnx.cut_cache import CachedCut, open_pieces
from mosaic_edge.models.onnx.decoder import CutDecoder
from mosaic_edge.models.onnx.graph_file import data_folder
from mosaic_edge.models.vlm import ModelError


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MOSAIC_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    return tmp_path / "user" / "mosaic_edge" / "cuts"


def write(folder: Path, external: bool = False, **made: object) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "decoder.onnx"
    if external:
        onnx.save(Handmade(**made).build(), path, save_as_external_data=True, location="decoder.onnx_data")  # type: ignore
    else:
        onnx.save(Handmade(**made).build(), path)  # type: ignore[arg-type]
    return path


def logits(pieces: CutGraph | CachedCut, decoder: Path) -> np.ndarray:
    embeds = np.random.default_rng(0).standard_normal((5, HIDDEN)).astype(np.float32)
    run = CutDecoder(pieces, "test", 1, str(data_folder(decoder))).run(embeds, lambda layer, q, k, v: q)
    assert run is not None
    return run


def entries(place: Path) -> list[Path]:
    return sorted(place.iterdir()) if place.is_dir() else []


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("form", ["gqa", "heads"])
def test_a_cut_read_back_is_the_cut_that_was_made(
    tmp_path: Path, place: Path, external: bool, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = write(
        tmp_path / "model", external, form=form, rotary="inside" if form == "gqa" else "onnx", layers=3
    )
    fresh = open_pieces(decoder, {})
    assert isinstance(fresh, CutGraph) and not entries(place), "a small decoder is cut in memory"
    made = open_pieces(decoder, {}, least_bytes=0)
    monkeypatch.setattr(cut_cache, "cut", None)  # what is read back is not cut again
    monkeypatch.setattr(cut_cache, "read_graph", None)
    found = open_pieces(decoder, {}, least_bytes=0)
    assert isinstance(made, CachedCut) and found == made and len(entries(place)) == 1
    assert (found.facts, found.heads_first, found.heads_apart) == (
        fresh.facts,
        fresh.heads_first,
        fresh.heads_apart,
    )
    np.testing.assert_array_equal(logits(found, decoder), logits(fresh, decoder))


def test_external_weights_are_not_copied(tmp_path: Path, place: Path) -> None:
    decoder = write(tmp_path / "model", external=True)
    found = open_pieces(decoder, {}, least_bytes=0)
    assert isinstance(found, CachedCut) and all(s.external for s in found.segments)
    assert sum(p.stat().st_size for p in entries(place)[0].iterdir()) < 40_000
    assert (decoder.parent / "decoder.onnx_data").stat().st_size > 100_000


@pytest.mark.parametrize(
    "damage", ["flip", "truncate", "segment gone", "no json", "half json", "other json", "facts"]
)
def test_a_damaged_entry_is_made_again(tmp_path: Path, place: Path, damage: str) -> None:
    decoder = write(tmp_path / "model")
    want = logits(open_pieces(decoder, {}, least_bytes=0), decoder)
    (entry,) = entries(place)
    segment, said = entry / "segment_1.onnx", entry / "cut.json"
    data = bytearray(segment.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        segment.write_bytes(data)
    elif damage == "truncate":
        segment.write_bytes(data[:-9])
    elif damage == "segment gone":
        segment.unlink()
    elif damage == "no json":
        said.unlink()
    elif damage == "half json":
        said.write_text(said.read_text()[:99])
    elif damage == "other json":
        said.write_text("[]")
    else:
        said.write_text(json.dumps(json.loads(said.read_text()) | {"facts": {"layers": 2}}))
    found = open_pieces(decoder, {}, least_bytes=0)
    assert isinstance(found, CachedCut) and entries(place) == [entry]
    np.testing.assert_array_equal(logits(found, decoder), want)
    segments = [f"segment_{i}.onnx" for i in range(3)]
    assert sorted(p.name for p in entry.iterdir()) == ["cut.json", MARKER, *segments]


def test_another_graph_other_hints_or_other_weights_are_another_cut(tmp_path: Path, place: Path) -> None:
    decoder = write(tmp_path / "model", external=True)
    before = open_pieces(decoder, {}, least_bytes=0)
    first = logits(before, decoder)
    (old,) = entries(place)
    data = decoder.parent / "decoder.onnx_data"
    weights = np.frombuffer(data.read_bytes(), np.float32) * np.float32(1.5)
    data.write_bytes(weights.tobytes())
    other = open_pieces(decoder, {}, least_bytes=0)  # the rotary tables are in there too: it was read again
    assert other.facts.rope != before.facts.rope and len(entries(place)) == 1
    assert not np.array_equal(first, logits(other, decoder))
    write(decoder.parent, external=True, layers=3)
    second = open_pieces(decoder, {}, least_bytes=0)
    assert second.facts.layers == 3 and old not in entries(place) and len(entries(place)) == 1
    assert not np.array_equal(first, logits(second, decoder))
    with pytest.raises(ModelError, match=r"config\.json says 2e\+06"):
        open_pieces(decoder, {"rope_theta": 2e6}, least_bytes=0)


def test_missing_external_data_is_named_even_if_the_cut_is_there(tmp_path: Path, place: Path) -> None:
    decoder = write(tmp_path / "model", external=True)
    open_pieces(decoder, {}, least_bytes=0)
    (decoder.parent / "decoder.onnx_data").unlink()
    with pytest.raises(ModelError, match=r"decoder\.onnx: its external data decoder\.onnx_data is missing"):
        open_pieces(decoder, {}, least_bytes=0)


def test_what_a_crash_left_half_written_is_no_entry(tmp_path: Path, place: Path) -> None:
    decoder = write(tmp_path / "model")
    open_pieces(decoder, {}, least_bytes=0)
    (entry,) = entries(place)
    part = entry.with_name(f"{entry.name}.abc.part")
    shutil.copytree(entry, part)
    shutil.rmtree(entry)
    old = shutil.copytree(part, entry.with_name(f"{entry.name}.old.part"))
    os.utime(old, (0, 0))
    found = open_pieces(decoder, {}, least_bytes=0)
    assert isinstance(found, CachedCut) and found.segments[0].path.parent == entry
    assert entries(place) == [entry, part], "another process may be writing a part; nobody writes an old one"


def test_the_place_is_the_users_cache_or_as_said_or_none_and_never_the_models(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = write(tmp_path / "model")
    victim = tmp_path / "victim"
    (victim / "mine").mkdir(parents=True)
    (decoder.parent / ".mosaic_edge").symlink_to(victim)
    found = open_pieces(decoder, {}, least_bytes=0)
    assert isinstance(found, CachedCut) and found.segments[0].path.parents[1] == place
    assert sorted(p.name for p in decoder.parent.iterdir()) == [".mosaic_edge", "decoder.onnx"]
    assert [p.name for p in victim.iterdir()] == ["mine"]
    monkeypatch.setenv("MOSAIC_CACHE_DIR", str(tmp_path / "mine"))
    found = open_pieces(decoder, {}, least_bytes=0)
    assert isinstance(found, CachedCut) and found.segments[0].path.parents[1] == tmp_path / "mine" / "cuts"
    (tmp_path / "file").write_text("a file: nothing can be written under it")
    monkeypatch.setenv("MOSAIC_CACHE_DIR", str(tmp_path / "file"))
    assert isinstance(open_pieces(decoder, {}, least_bytes=0), CutGraph)


def test_a_user_without_a_home_has_cuts_in_memory(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = write(tmp_path / "model")
    monkeypatch.delenv("XDG_CACHE_HOME")

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert isinstance(open_pieces(decoder, {}, least_bytes=0), CutGraph)


def test_nothing_is_deleted_that_the_cache_did_not_write(tmp_path: Path, place: Path) -> None:
    decoder = write(tmp_path / "model")
    open_pieces(decoder, {}, least_bytes=0)
    (old,) = entries(place)
    precious = tmp_path / "precious"
    shutil.copytree(old, precious)  # marker and all, but not in the cache: only a link to it is
    (place / "linked").symlink_to(precious)
    unmarked = shutil.copytree(old, place / "unmarked")
    (unmarked / MARKER).unlink()
    linked_marker = shutil.copytree(old, place / "linked-marker")
    (linked_marker / MARKER).unlink()
    (linked_marker / MARKER).symlink_to(precious / MARKER)
    kept = [precious, unmarked, linked_marker]
    before = [sorted(p.name for p in folder.iterdir()) for folder in kept]
    (old / "folder").mkdir()  # someone put something into ours
    write(decoder.parent, layers=3)
    open_pieces(decoder, {}, least_bytes=0)  # every one of them is of this decoder, as it was
    assert [sorted(p.name for p in folder.iterdir()) for folder in kept] == before
    assert (old / "folder").is_dir() and (old / "cut.json").is_file()
    (old / "folder").rmdir()
    remove(old)
    assert not old.exists()


def test_an_entry_that_lies_about_its_decoder_is_made_again(tmp_path: Path, place: Path) -> None:
    decoder = write(tmp_path / "model")
    want = open_pieces(decoder, {}, least_bytes=0)
    said = entries(place)[0] / "cut.json"
    document = json.loads(said.read_text())
    for lie in ({"layers": 10**9}, {"scale": float("nan")}, {"head_dim": None}, {"q_heads": 8}):
        said.write_text(json.dumps(document | {"facts": document["facts"] | lie}))
        assert open_pieces(decoder, {}, least_bytes=0) == want
    said.write_text("[" * 200_000)
    assert open_pieces(decoder, {}, least_bytes=0) == want


@pytest.mark.parametrize(
    "text", ["[" * 200_000, "[]", "3", '{"segments": 3}', '{"segments": [3]}', '{"segments": []}']
)
def test_an_entry_that_is_whole_and_no_cut_is_made_again(tmp_path: Path, place: Path, text: str) -> None:
    decoder = write(tmp_path / "model")
    want = open_pieces(decoder, {}, least_bytes=0)
    (entry,) = entries(place)
    (entry / "cut.json").write_text(text)
    (entry / MARKER).write_text(hashlib.blake2b(text.encode(), digest_size=16).hexdigest())
    assert open_pieces(decoder, {}, least_bytes=0) == want
    assert entries(place) == [entry]


def test_a_disk_that_fills_up_leaves_nothing_and_the_model_loads(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = write(tmp_path / "model")
    write_bytes, written = Path.write_bytes, []

    def failing(path: Path, data: bytes) -> int:
        written.append(path)
        if path.name == "segment_1.onnx":
            raise OSError(28, "No space left on device")
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", failing)
    assert isinstance(open_pieces(decoder, {}, least_bytes=0), CutGraph)
    assert len(written) == 2 and not entries(place)


def test_a_decoder_is_known_by_its_bytes_and_not_by_its_name(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = write(tmp_path / "model")
    made = open_pieces(decoder, {}, least_bytes=0)
    renamed = decoder.rename(decoder.with_name("text_model_q4.onnx"))
    monkeypatch.setattr(cut_cache, "cut", None)  # what is read back is not cut again
    assert open_pieces(renamed, {}, least_bytes=0) == made
    assert len(entries(place)) == 1


def test_another_decoder_of_the_folder_keeps_its_cut(tmp_path: Path, place: Path) -> None:
    decoder = write(tmp_path / "model")
    open_pieces(decoder, {}, least_bytes=0)
    other = decoder.rename(decoder.with_name("decoder_fp16.onnx"))
    open_pieces(write(decoder.parent, layers=3), {}, least_bytes=0)
    open_pieces(other, {}, least_bytes=0)
    open_pieces(write(decoder.parent, layers=4), {}, least_bytes=0)
    assert len(entries(place)) == 2, "of the decoder that changed the old cut is gone, the other's is there"


@pytest.mark.parametrize("kept", [False, True])
def test_a_graph_and_its_data_may_be_links_of_the_hubs_cache(tmp_path: Path, place: Path, kept: bool) -> None:
    plain = write(tmp_path / "plain", external=True, layers=3)
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123"
    shutil.copytree(plain.parent, blobs)
    snapshot.mkdir(parents=True)
    for number, name in enumerate(["decoder.onnx", "decoder.onnx_data"]):
        (blobs / name).rename(blobs / f"{number:064x}")
        (snapshot / name).symlink_to(f"../../blobs/{number:064x}")
    linked = snapshot / "decoder.onnx"
    least = 0 if kept else None
    made = logits(open_pieces(linked, {}, least), linked)
    np.testing.assert_array_equal(made, logits(open_pieces(plain, {}), plain))
    again = open_pieces(linked, {}, least)
    assert isinstance(again, CachedCut if kept else CutGraph)
    np.testing.assert_array_equal(logits(again, linked), made)
