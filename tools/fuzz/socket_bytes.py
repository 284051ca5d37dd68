"""A case of the socket that answers questions: clients that send mutated lines, in pieces, and hang up.

Each connection gets at most one line of JSON for every line it sent, answers (of a token) or errors; the
stream goes on beside them, and afterwards a client that behaves is answered. Once a case more come at once
than are served.
"""

from __future__ import annotations

import json
import random
import socket
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path

from cases import must
from mutations import mutated_bytes

from mosaic_edge.engine import Engine
from mosaic_edge.sampling import SamplingParams
from mosaic_edge.serve.questions import MOST_CLIENTS, QUESTION_BYTES, answering
from numpy_vlm import NumpyVlm, picture

CLIENTS = 150
LINES = [
    b"what was the ball ?\n", b"what colour was the ball ?\n", b"ball\n", b"\n", b"<eos>\n", b"zorg\n",
    b"a" * (QUESTION_BYTES - 1) + b"\n", b"a" * (QUESTION_BYTES + 1) + b"\n", b"\xff\xfe\n", b"\0\n",
    b'{"question": "what"}\n', b"\xed\xa0\x80\n", b"ball " * 300 + b"\n", b"what\r\n",
    b'"\\ud800"\n', b"\x1b[2J\n", b"what was the ball ?", b"\0" * 5000 + b"\n",
]  # fmt: skip


def play(seed: int, folder: Path) -> Counter[str]:
    rng = random.Random(seed)
    done: Counter[str] = Counter()
    path = folder / "s"
    with Engine(NumpyVlm()).session(memory="1MiB", policy="window", kernel_threads=1) as session:
        session.append(picture(0), 0.0)
        with answering(session, path, {"sampling": SamplingParams(max_tokens=1)}):
            for number in range(CLIENTS):
                said, lines = client(rng, path)
                done[said] += 1
                done["lines"] += lines
                done["operations"] += 1
                session.append(picture(number % 9))
            done["busy"] += crowd(path, MOST_CLIENTS + rng.randrange(1, 40))
            must(is_answered(path), "a client that behaves is not answered")
        session.check_invariants()
    must(not path.exists(), "the socket is left")
    return done


def is_answered(path: Path) -> bool:
    """Whether a client that behaves is, once those that hung up are noticed."""
    for _ in range(400):
        said = talk(path, [LINES[0]], hang_up=False)
        if b"busy" not in said:
            return b"answer" in said
        time.sleep(0.05)
    return False


def client(rng: random.Random, path: Path) -> tuple[str, int]:
    """How it ended, and how many lines it sent."""
    data = b"".join(rng.choice(LINES) for _ in range(rng.randrange(1, 5)))
    if rng.random() < 0.01:
        data += b"a" * (1 << 20)
    if rng.random() < 0.7:
        data = mutated_bytes(rng, data)
    pieces = []
    while data:
        length = rng.choice([1, 5, 60, 4000, 60_000, len(data)])
        pieces.append(data[:length])
        data = data[length:]
    hang_up = rng.random() < 0.2
    said = talk(path, pieces, hang_up)
    sent = b"".join(pieces)
    answers = said.splitlines()
    must(len(answers) <= sent.count(b"\n") + 1, (sent[:200], said[:200]))
    if said.endswith(b"\n"):
        for answer in answers:
            must(bool({"answer", "error"} & set(json.loads(answer))), answer)
    return "hung up" if hang_up else "listened to the end", sent.count(b"\n") + (not sent.endswith(b"\n"))


def crowd(path: Path, count: int) -> int:
    """So many at once, all silent until the last has come: how many were told "busy", which the first must
    not be."""
    with ExitStack() as held:
        all_of_them = [held.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(count)]
        for one in all_of_them:
            one.settimeout(60)
            one.connect(str(path))
        said = []
        for one in all_of_them:
            with suppress(BrokenPipeError):
                one.sendall(LINES[0])
        for one in all_of_them:
            with suppress(ConnectionResetError):
                said.append(json.loads(one.makefile("rb").readline() or b"{}"))
    busy = sum("busy" in answer.get("error", "") for answer in said)
    must(busy <= count - MOST_CLIENTS, ("busy", busy, count))
    return busy


def talk(path: Path, pieces: list[bytes], hang_up: bool) -> bytes:
    said = b""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(path))
        with suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                connection.sendall(piece)
            if hang_up:
                return b""
            connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            while more := connection.recv(65536):
                said += more
    return said
