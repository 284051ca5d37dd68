"""Bytes and JSON documents, changed by chance."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from mosaic_edge.models.schema import TABLES, Kind, Table


def keys_of(table: Table) -> set[str]:
    """Of a table and the tables in it."""
    inner = (keys_of(kind) for kind in table.values() if not isinstance(kind, Kind))
    return set(table).union(*inner)


KEYS = sorted(keys_of(TABLES))


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
        return rng.choice(NO_DOCUMENTS)
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
        lambda: isinstance(node, dict) and node.__setitem__(rng.choice(KEYS), rng.choice(STRANGE)),
        lambda: isinstance(node, dict) and node.__setitem__(rng.choice(["x", "", "\ud800"]), 1),
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
