"""A case of model directories: files of the embedded model, bytes, values and structure changed by chance.

Most mutations meet the door alone (models/directory.py, schema.py), a few thousand a second; some are loaded
whole, streamed into and asked. What is wrong with a file is a ModelError of one line; nothing is ever written
into the directory.
"""

from __future__ import annotations

import json
import random
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cases import must

import mosaic_edge.models
from mosaic_edge.models import load_model
from mosaic_edge.models.directory import read_json
from mosaic_edge.models.schema import TABLES
from mosaic_edge.models.vlm import ModelError

AT_THE_DOOR = 300
"""Mutations of a case that only the door reads; one more is loaded."""
JSON = ("config.json", "mosaic.json", "genai_config.json", "preprocessor_config.json", "tokenizer.json")
GRAPHS = ("decoder_model_merged_q4.onnx", "embed_tokens.onnx", "vision_encoder.onnx")


def play(seed: int, folder: Path) -> Counter[str]:
    rng = random.Random(seed)
    done: Counter[str] = Counter()
    source = Path(mosaic_edge.models.__file__).parent / "tiny"
    originals = {name: json.loads((source / name).read_text()) for name in JSON}
    for _ in range(AT_THE_DOOR):
        name = rng.choice([*JSON[:4], *TABLES])
        value = originals.get(name) or rng.choice(list(originals.values()))
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(mutated_json(rng, value))
        try:
            read_json(folder / name)
            done["passed the door"] += 1
        except ModelError as error:
            must("\n" not in str(error) and name in str(error), error)
            done["stopped at the door"] += 1
        done["mutations"] += 1
    copy = folder / "model"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("float", "__pycache__", "*.py"))
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        mutate_a_file(rng, copy, originals)
    done[try_model(copy)] += 1
    done["mutations"] += 1
    done["operations"] += AT_THE_DOOR + 1
    return done


def try_model(copy: Path) -> str:
    before = sorted((str(p), p.lstat().st_size) for p in copy.rglob("*"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from mosaic_edge.engine import Engine

            engine = Engine(load_model(copy, threads=1))
            with engine.session(memory="4MiB") as session:
                for i in range(2):
                    session.append(np.full((48, 48, 3), 40 * i, np.uint8), float(i))
                session.ask("what colour was the ball ?")
        return "loaded and asked"
    except (ValueError, MemoryError) as error:
        must("\n" not in str(error) and str(error) != "", error)
        return "refused"
    finally:
        must(
            sorted((str(p), p.lstat().st_size) for p in copy.rglob("*")) == before, "the model was written to"
        )


def mutate_a_file(rng: random.Random, copy: Path, originals: dict[str, Any]) -> None:
    if rng.random() < 0.6:
        name = rng.choice(JSON)
        if (copy / name).exists():
            (copy / name).write_bytes(mutated_json(rng, originals[name]))
        return
    path = copy / "onnx" / rng.choice(GRAPHS)
    kind = rng.randrange(10)
    if kind == 0:
        path.unlink(missing_ok=True)
    elif kind == 1:
        path.unlink(missing_ok=True)
        path.symlink_to(rng.choice(["/dev/zero", "/etc/passwd", "..", path.name, str(copy / "config.json")]))
    elif path.exists() and path.is_file() and not path.is_symlink():
        path.write_bytes(mutated_bytes(rng, path.read_bytes()))


def mutated_bytes(rng: random.Random, data: bytes) -> bytes:
    """A few changes: flipped, cut out, doubled, overwritten by another part."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        if not changed:
            break
        at, length = rng.randrange(len(changed)), rng.choice([1, 2, 7, 100, 5000])
        kind = rng.randrange(5)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del changed[at : at + length]
        elif kind == 2:
            changed[at:at] = changed[at : at + length]
        elif kind == 3:
            other = rng.randrange(len(changed))
            changed[at : at + length] = changed[other : other + length]
        else:
            del changed[at:]
    return bytes(changed)


STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 1e9, 1e300, -1e300, 1 << 31, 1 << 64, 10**400, float("nan"),
    float("inf"), 0.5, "", "x", "../../etc/passwd", "/dev/zero", "\0", "\ud800", "{{", "{question}",
    "a" * 5000, [], {}, [[]], [1, 2, 3], ["x"], {"x": {"y": []}}, "1", "nan",
)  # fmt: skip


NO_DOCUMENTS = (b"", b"[" * 200_000, b"null", b"[]", b"\xff\xfe{}", b'{"a": 1}' * 2, b"{" + b" " * 9000)


def mutated_json(rng: random.Random, value: Any) -> bytes:
    """The document with some of its values changed, or its text."""
    if rng.random() < 0.15:
        return mutated_bytes(rng, json.dumps(value).encode())
    if rng.random() < 0.01:
        return rng.choice(
            [b"", b"[" * 200_000, b"null", b"[]", b"\xff\xfe{}", b'{"a": 1}' * 2, b"{" + b" " * 9000]
        )
    document = json.loads(json.dumps(value))
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        document = changed_value(rng, document)
    return json.dumps(document).encode(errors="surrogatepass")


def changed_value(rng: random.Random, document: Any) -> Any:
    """One place of the document, by chance, is changed."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any, depth: int) -> None:
        if depth > 12:
            return
        keys = node if isinstance(node, dict) else range(min(len(node), 40)) if isinstance(node, list) else ()
        for key in keys:
            places.append((node, key))
            walk(node[key], depth + 1)

    walk(document, 0)
    if not places:
        return rng.choice(STRANGE)
    node, key = rng.choice(places)
    changes: list[Callable[[], Any]] = [
        lambda: node.__setitem__(key, rng.choice(STRANGE)),
        lambda: node.__setitem__(key, rng.choice(STRANGE)),
        lambda: node.__setitem__(key, rng.choice(places)[0]),
        lambda: node.__delitem__(key),
        lambda: node.__setitem__(key, nearby(rng, node[key])),
        lambda: (
            isinstance(node, dict) and node.__setitem__(rng.choice(["x", "", "\ud800"]), rng.choice(STRANGE))
        ),
    ]
    before = json.dumps(document)
    rng.choice(changes)()
    try:
        json.dumps(document)
    except ValueError:  # a ring
        return json.loads(before)
    return document


def nearby(rng: random.Random, value: Any) -> Any:
    """A value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return rng.choice([value + 1, value - 1, -value, value * 1000, value // 3, 0])
    if isinstance(value, str):
        return rng.choice([value + "x", value[1:], value * 3, value.upper()])
    if isinstance(value, list):
        return rng.choice([value[1:], value * 2, value[::-1], [value]])
    return rng.choice(STRANGE)
