"""A case of `Engine.restore`: a small session is saved, and its file changed a few hundred times. Half of the
changes leave the checksums as they are; for the other half they are made right again, so that what is inside
is all that can be told. Each file is refused with one line, or gives a session that can be used: within its
cap, and without a crash or a hang whatever its numbers say.
"""

from __future__ import annotations

import random
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cases import must
from mutations import mutated_bytes

from mosaic_edge import _core
from mosaic_edge.engine import Engine, Session
from mosaic_edge.sampling import SamplingParams
from numpy_vlm import NumpyVlm, picture

FILES = 250
OPENING = 16
"""Bytes before the first part."""
HEADER = struct.Struct("<4sIII")
"""Of a part: tag, number, bytes, CRC32C of the three and of what follows (cpp/memory/snapshot.h)."""
NUMBERS = (
    0,
    1,
    -1,
    2,
    15,
    16,
    17,
    255,
    256,
    1 << 15,
    1 << 30,
    (1 << 31) - 1,
    -(1 << 31),
    0x7F800000,
    0x7FC00000,
)
REFUSED = (ValueError, OSError, _core.MemoryCapError)
"""No MemoryError of Python's own: a file's numbers decide on no allocation."""
USED = (*REFUSED, _core.InvariantError)
QUESTION = "what colour was the ball ?"


@dataclass
class Part:
    """A part of a snapshot, as it stands there or changed."""

    tag: bytes
    number: int
    payload: bytes

    def signed(self) -> bytes:
        """With the checksum that it should have."""
        head = struct.pack("<4sII", self.tag, self.number, len(self.payload))
        crc = _core.crc32c(head + self.payload)
        return head + struct.pack("<I", crc) + self.payload


def play(seed: int, folder: Path) -> Counter[str]:
    rng = random.Random(seed)
    done: Counter[str] = Counter()
    engine = Engine(NumpyVlm(video_window=rng.choice([0, 4])))
    settings: dict[str, Any] = {
        "memory": rng.choice(["150KiB", "200KiB", "300KiB"]),
        "policy": rng.choice(_core.policies()),
        "branch_tokens": 24,
    }
    if rng.random() < 0.4:
        settings |= {"disk": "64KiB", "spill_dir": str(folder)}
    try:
        session = engine.session(**settings)
    except _core.MemoryCapError:
        done["settings refused"] += 1
        return done
    for number in range(rng.choice([0, 5, 20, 60])):
        try:
            session.append(picture(number))
        except _core.MemoryCapError:
            break
        if number % 16 == 7:
            session.ask(QUESTION, dialogue=rng.random() < 0.5, sampling=SamplingParams(max_tokens=2))
    file = folder / "saved"
    session.save(file)
    session.close()
    good = file.read_bytes()
    given = {"memory": settings["memory"], "spill_dir": settings.get("spill_dir")}
    engine.restore(file, **given).check_invariants()
    for _ in range(FILES):
        signed = rng.random() < 0.5
        file.write_bytes(resigned(rng, good) if signed else mutated_bytes(rng, good))
        try:
            restored = engine.restore(file, **given)
        except REFUSED as error:
            must(str(error) != "" and "\n" not in str(error) and len(str(error)) < 1000, repr(error))
            done["refused"] += 1
        else:
            use(rng, restored)
            done["restored"] += 1
        done["operations"] += 1
    file.unlink()
    return done


def use(rng: random.Random, session: Session) -> None:
    """A session whose numbers may be anything: what it does is clean."""
    must(session.memory()["taken_bytes"] <= session.memory()["cap_bytes"], "cap")
    for step in range(8):
        use_once(rng, session, step % 4 == 3)
    session.close()


def use_once(rng: random.Random, session: Session, ask: bool) -> None:
    try:
        session.append(picture(rng.randrange(40)))
        if ask:
            session.ask(QUESTION, sampling=SamplingParams(max_tokens=2))
    except USED as error:
        must("\n" not in str(error), repr(error))


def resigned(rng: random.Random, data: bytes) -> bytes:
    """Numbers of a few parts changed, or a part moved; checksums, numbers and lengths are right."""
    parts, at = [], OPENING
    while at < len(data):
        tag, number, size, _ = HEADER.unpack_from(data, at)
        at += HEADER.size
        parts.append(Part(tag, number, data[at : at + size]))
        at += size
    if rng.random() < 0.05:
        where = rng.randrange(len(parts))
        parts.insert(rng.randrange(len(parts)), parts.pop(where))
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        part = rng.choice(parts)
        if rng.random() < 0.1:
            part.payload = mutated_bytes(rng, part.payload)[: 64 << 10]
        elif len(part.payload) >= 8:
            part.payload = with_number(rng, part.payload)
    for number, part in enumerate(parts):
        part.number = number
    return data[:OPENING] + b"".join(part.signed() for part in parts)


def with_number(rng: random.Random, payload: bytes) -> bytes:
    """One number of 1 to 8 bytes is another one."""
    changed = bytearray(payload)
    size = rng.choice([1, 2, 4, 4, 8])
    early = rng.random() < 0.5  # where counts and sizes stand
    at = rng.randrange(min(len(changed) - size, 200) + 1 if early else len(changed) - size + 1)
    before = int.from_bytes(changed[at : at + size], "little", signed=True)
    number = rng.choice([rng.choice(NUMBERS), before + 1, before - 1, before ^ 1 << rng.randrange(8 * size)])
    changed[at : at + size] = (number & (1 << 8 * size) - 1).to_bytes(size, "little")
    return bytes(changed)
