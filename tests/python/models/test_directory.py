"""The door of a model directory: only plain files inside it, JSON as the tables say, errors name the key."""

from __future__ import annotations

import base64
import json
import math
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from mosaic_edge.models import sandbox, schema
from mosaic_edge.models.directory import check_directory, named_file, plain_file, read_json
from mosaic_edge.models.schema import TABLES, Kind
from mosaic_edge.models.tokenizer import TextTokenizer, check_tokenizer
from mosaic_edge.models.tokenizer_growth import check_growth, growth
from mosaic_edge.models.vlm import ModelError

ODD: list[Any] = [
    -1, 0, 1, 7, 1.5, 1e9, 10**9, 10**30, 10**400, math.nan, math.inf, -math.inf, True, "", "x",
    [], [1], [1, 2], ["x"], [0.5, 0.5, 0.5], {}, {"a": 1}, {"height": 7}, [[1]],
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    return made


def keys(table: Any, before: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Kind]]:
    """Every key of a table with its kind, sections followed."""
    found: list[tuple[tuple[str, ...], Kind]] = []
    for key, kind in table.items():
        path = (*before, key)
        found += [(path, kind)] if isinstance(kind, Kind) else keys(kind, path)
    return found


@pytest.mark.parametrize("name", sorted(TABLES))
def test_every_key_takes_what_it_says_and_names_itself_when_it_does_not(folder: Path, name: str) -> None:
    refused = 0
    for path, kind in keys(TABLES[name]):
        for value in ODD:
            document: Any = value
            for key in reversed(path):
                document = {key: document}
            (folder / name).write_text(json.dumps(document))
            if kind.fits(value):
                read_json(folder / name)
                continue
            with pytest.raises(ModelError) as error:
                read_json(folder / name)
            text = str(error.value)
            assert text.startswith(f"{folder / name}: {'.'.join(path)}=") and "expected " in text
            assert len(text) < len(str(folder)) + 400 and "\n" not in text
            refused += 1
    assert refused > 10


def test_sections_are_objects_and_null_is_as_good_as_absent(folder: Path) -> None:
    file = folder / "config.json"
    for value in ODD:
        if isinstance(value, dict):
            continue
        file.write_text(json.dumps({"text_config": {"rope_parameters": value}}))
        with pytest.raises(ModelError, match=r"text_config\.rope_parameters=.*: expected an object"):
            read_json(file)
    file.write_text(
        '{"text_config": null, "hidden_size": null, "other": null, "rope_scaling": {"type": null}}'
    )
    assert read_json(file) == {"other": None, "rope_scaling": {}}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[1]",
        b"null",
        b"{",
        b"[" * 200_000,
        b'{"a":' * 50_000,
        bytes(range(256)),
        b'{"a": 1' + b"0" * 5000,
    ],
)
def test_what_is_no_json_object_is_named(folder: Path, text: bytes) -> None:
    (folder / "config.json").write_bytes(text)
    with pytest.raises(ModelError, match=r"config\.json: (not readable as JSON|expected a JSON object)"):
        read_json(folder / "config.json")


def test_files_that_are_absent_are_empty_and_large_ones_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_json(folder / "config.json") == {}
    (folder / "config.json").write_text('{"a": "' + "x" * 99 + '"}')
    monkeypatch.setattr("mosaic_edge.models.directory._JSON_BYTES", 99)
    with pytest.raises(ModelError, match="bytes of JSON, expected at most 99"):
        read_json(folder / "config.json")


@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "loop", "dangling", "outside"])
def test_only_plain_files_inside_the_directory_are_opened(folder: Path, tmp_path: Path, kind: str) -> None:
    file = folder / "config.json"
    (tmp_path / "secret.json").write_text("{}")
    if kind == "fifo":
        os.mkfifo(file)  # opening it would wait for ever
    elif kind == "folder":
        file.mkdir()
    else:
        target = {"device": "/dev/zero", "loop": str(file), "dangling": str(folder / "no")}
        file.symlink_to(target.get(kind, str(tmp_path / "secret.json")))
    for look in (read_json, lambda path: check_directory(path.parent, ("*.json",)), check_tokenizer):
        with pytest.raises(ModelError, match=r"config\.json: (not a plain file|leads to|cannot be opened)"):
            look(file)


@pytest.mark.parametrize(
    "name", ["../secret.json", "/etc/passwd", "a/../../secret.json", "a\0b", "C:\\x", "no.json", ""]
)
def test_a_file_that_json_names_lies_in_the_directory(folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.json").write_text("{}")
    with pytest.raises(ModelError, match=r"genai_config\.json"):
        named_file(folder, name, "genai_config.json")
    (folder / "a").mkdir()
    (folder / "a" / "b.onnx").touch()
    assert named_file(folder, "a/b.onnx", "genai_config.json") == folder / "a" / "b.onnx"
    (folder / "out").symlink_to(tmp_path)
    with pytest.raises(ModelError, match="out of the model's directory"):
        named_file(folder, "out/secret.json", "genai_config.json")


def test_a_snapshot_of_the_hub_may_link_to_its_blobs_and_a_copy_of_it_may_not(tmp_path: Path) -> None:
    model = tmp_path / "models--who--what"
    snapshot = model / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir()
    (model / "blobs" / "f00").write_text('{"fps": 2.0}')
    (snapshot / "mosaic.json").symlink_to("../../blobs/f00")
    assert read_json(snapshot / "mosaic.json") == {"fps": 2.0}
    (snapshot / "onnx").mkdir()
    (snapshot / "onnx" / "decoder.onnx").symlink_to("../../../blobs/f00")
    plain_file(snapshot / "onnx", snapshot / "onnx" / "decoder.onnx")
    (model / "refs").write_text("{}")
    (snapshot / "config.json").symlink_to("../../refs")
    with pytest.raises(ModelError, match="leads to"):
        plain_file(snapshot, snapshot / "config.json")
    other = tmp_path / "plain" / "snapshots" / "0123abcd"
    other.mkdir(parents=True)
    (other / "mosaic.json").symlink_to(model / "blobs" / "f00")
    with pytest.raises(ModelError, match="leads to"):
        read_json(other / "mosaic.json")


def test_the_directory_itself_may_be_a_link(folder: Path, tmp_path: Path) -> None:
    (folder / "mosaic.json").write_text('{"fps": 2.0}')
    (tmp_path / "link").symlink_to(folder)
    assert read_json(tmp_path / "link" / "mosaic.json") == {"fps": 2.0}


def write_tokenizer(folder: Path, **changes: Any) -> Path:
    document: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "ball": 1}, "unk_token": "<unk>"},
    }  # fmt: skip
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(document | changes))
    return path


def replaced(times: int) -> dict[str, Any]:
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
    return {"type": "Sequence", "normalizers": [step] * times}


def test_a_tokenizer_that_makes_too_much_of_a_text_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_tokenizer(write_tokenizer(folder))
    monkeypatch.setattr(sandbox, "MEMORY_BYTES", 1 << 30)
    path = write_tokenizer(folder, normalizer=replaced(4))  # 10^12 characters for every a: it would abort
    with pytest.raises(ModelError, match=r"tokenizer\.json: not a readable tokenizer"):
        check_tokenizer(path)
    split = {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False}
    path = write_tokenizer(folder, normalizer=replaced(1), pre_tokenizer=split)
    with pytest.raises(ModelError, match=r"makes \d+ tokens of a text of \d+ characters"):
        check_tokenizer(path)


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def doubling(letter: str, rare: str) -> list[dict[str, Any]]:
    """Steps that make 2^40 letters of what stands in few texts."""
    first = {"type": "Replace", "pattern": {"String": rare}, "content": letter}
    again = {"type": "Replace", "pattern": {"String": letter}, "content": letter * 2}
    return [first, *[again] * 40]


def charsmap(letter: str, text: str) -> dict[str, Any]:
    """A step that makes `text` of an ASCII letter, by a trie of that one key as SentencePiece lays it out:
    the root leads to 256 + letter, which has a leaf, and that to the offset 0 of the texts."""
    key = ord(letter)
    units = [0] * 1024
    units[0], units[256 + key] = 256 << 10, (512 << 10) | (1 << 8) | key
    data = struct.pack("<I1024I", 4096, *units) + text.encode() + b"\0"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


def rarely(rare: str, common: str, *steps: dict[str, Any]) -> dict[str, Any]:
    """Steps that work on what stands in few texts alone: everything else is taken out before them."""
    only = {"type": "Replace", "pattern": {"Regex": f"[^{rare}]"}, "content": ""}
    first = {"type": "Replace", "pattern": {"String": rare}, "content": common}
    return {"type": "Sequence", "normalizers": [only, first, *steps]}


@pytest.mark.parametrize(
    "steps",
    [
        {"normalizer": {"type": "Sequence", "normalizers": doubling("q", "\u20ac")}},
        {"decoder": {"type": "Sequence", "decoders": doubling("q", "ball")}},
        {
            "normalizer": {
                "type": "Sequence",
                "normalizers": [
                    {"type": "Replace", "pattern": {"Regex": "(?=\u20ac)|$"}, "content": "\u20ac"}
                ]
                * 40,
            }
        },
        {"normalizer": rarely("\u20ac", "q", *[charsmap("q", "q" * 10)] * 9)},
        {"normalizer": rarely("\u20ac", "q", charsmap("q", "q" * 3000))},
        {"normalizer": rarely("\u20ac", "\u00e9", *[{"type": "ByteLevel"}] * 40)},
        {"normalizer": rarely("\u20ac", "\ufdfa", *[{"type": "NFKC"}, charsmap(" ", "\ufdfa")] * 9)},
        {"normalizer": rarely("\u20ac", "q", {"type": "Prepend", "prepend": "a" * 2000}, replaced(1))},
        {
            "normalizer": rarely("\u20ac", "q", charsmap("q", "q" * 500)),
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES] * 3},
        },
        {"normalizer": rarely("\u20ac", "q", *[{"pattern": {"String": "q"}, "content": "qq"}] * 40)},
        {"decoder": {"type": "Sequence", "decoders": [{"pattern": {"String": "q"}, "content": "qq"}] * 40}},
        {
            "normalizer": rarely(
                "\u20ac", "q", *[{"type": "Replace", "pattern": {"Regex": "a{3}?"}, "content": "q"}] * 40
            )
        },
    ],
    ids=[
        "of a text",
        "of an answer",
        "between characters",
        "by a charsmap again and again",
        "by a charsmap at once",
        "byte by byte",
        "by Unicode's own forms",
        "of a mark",
        "by both parts of encoding",
        "by steps without a type",
        "by a decoder without types",
        "by what is optional in the dialect",
    ],
)
def test_a_tokenizer_that_makes_too_much_of_a_text_that_nobody_tries_is_refused(
    folder: Path, steps: dict[str, Any]
) -> None:
    with pytest.raises(
        ModelError, match=r"tokenizer\.json: .*(normalizer|decoder|pre_tokenizer) may make more than 2048"
    ):
        check_tokenizer(write_tokenizer(folder, **steps))


def test_the_steps_of_published_tokenizers_make_little_of_a_character() -> None:
    spaces = {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "}
    mark = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    prepend = {"type": "Prepend", "prepend": "\u2581"}
    assert growth({"type": "Sequence", "normalizers": [prepend, mark, {"type": "NFKC"}, spaces]}) == 2 * 18
    assert growth({"type": "Sequence", "decoders": [mark, {"type": "ByteFallback"}, {"type": "Fuse"}]}) == 1
    assert growth(None) == 1
    charsmap_of_18 = charsmap("q", "\u0635" * 18)
    albert = [mark, {"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"}, charsmap_of_18, spaces]
    check_growth(
        {"normalizer": {"type": "Sequence", "normalizers": albert}, "pre_tokenizer": {"type": "Metaspace"}}
    )


def test_a_charsmap_makes_of_a_letter_what_its_texts_say(folder: Path) -> None:
    step = charsmap("q", "ball")
    assert growth(step) == 4
    assert TextTokenizer(write_tokenizer(folder, normalizer=step)).encode("q q") == [1, 1]
    for damaged in ("", "?", "AAAA", base64.b64encode(b"\xff\xff\xff\xff").decode()):
        assert growth({"type": "Precompiled", "precompiled_charsmap": damaged}) == 1


def test_a_step_that_panics_at_an_answer_is_a_named_error(folder: Path) -> None:
    strip = {"type": "Strip", "content": "b", "start": 0, "stop": 5}
    words = {"type": "WordLevel", "vocab": {"<unk>": 0, "bb": 1}, "unk_token": "<unk>"}
    tokenizer = TextTokenizer(write_tokenizer(folder, decoder=strip, model=words))
    with pytest.raises(ValueError, match="the tokenizer cannot write its tokens as text"):
        tokenizer.decode(tokenizer.encode("bb"))


def test_a_tokenizer_whose_ids_nobody_could_write_down_is_refused(folder: Path) -> None:
    vocabulary = {"<unk>": 0, "ball": 4_294_967_295}
    path = write_tokenizer(folder, model={"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"})
    with pytest.raises(ModelError, match="has a token of id 4294967295, expected less than 16777216"):
        check_tokenizer(path)


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize(("length", "decoder"), [(100_000, None), (1000, "Replace")])
def test_a_tokenizer_that_writes_too_much_for_a_token_is_refused(
    folder: Path, length: int, decoder: str | None, added: bool
) -> None:
    """An answer is hundreds of them."""
    vocabulary = {"<unk>": 0, "ball": 1} | ({} if added else {"q" * length: 2})
    token = {"id": 2, "content": "q" * length, "special": False, "normalized": False}
    token |= {"single_word": False, "lstrip": False, "rstrip": False}
    step = {"type": decoder, "pattern": {"String": "q"}, "content": "a" * 100}
    path = write_tokenizer(
        folder,
        model={"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
        added_tokens=[token] if added else [],
        decoder=step if decoder else None,
    )
    with pytest.raises(ModelError, match="may write 100000 characters for one token, expected at most 65536"):
        check_tokenizer(path)


def test_what_does_not_end_in_the_child_is_ended_by_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "CPU_SECONDS", 2)
    template = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(ModelError, match=r"its template: takes too long \(2 s and"):
        sandbox.limited("its template", "chat_template", template, [[]], {})


def test_the_wording_of_a_kind_says_both_of_two() -> None:
    assert (
        schema.whole(1, 3) | schema.text(5)
    ).need == "a whole number from 1 to 3, or text of at most 5 characters"


def test_a_tokenizer_without_a_word_for_unknown_ones_loads_and_names_what_it_cannot_read(
    folder: Path,
) -> None:
    model = {"type": "WordLevel", "vocab": {"ball": 0}, "unk_token": "<unk>"}
    tokenizer = TextTokenizer(write_tokenizer(folder, model=model))
    assert tokenizer.encode("ball ball") == [0, 0]
    with pytest.raises(ValueError, match="the tokenizer cannot read this text"):
        tokenizer.encode("zorg")


PUBLISHED = Path(__file__).resolve().parents[3].parent / "shared" / "configs"


@pytest.mark.skipif(
    not PUBLISHED.is_dir(), reason="the published configs lie beside the repository, not in it"
)
def test_published_configs_are_as_the_tables_say_and_their_templates_are_rendered(tmp_path: Path) -> None:
    checked = rendered = 0
    content = [{"type": "video"}, {"type": "image"}, {"type": "text", "text": "why?"}]
    for source in sorted(PUBLISHED.glob("*/*")):
        if source.name in TABLES:
            copy = tmp_path / source.name
            copy.write_bytes(source.read_bytes())
            read_json(copy)
            checked += 1
        elif source.suffix == ".jinja":
            conversation = [{"role": "user", "content": content}]
            made = sandbox.limited(source.name, "chat_template", source.read_text(), [conversation], {})
            assert made["error"] is None and "why?" in made["texts"][0], source
            rendered += 1
    assert checked > 20 and rendered > 2
