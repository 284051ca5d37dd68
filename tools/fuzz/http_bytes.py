"""HTTP and WebSockets as bytes: what a client writes by hand, and what it reads of a connection."""

from __future__ import annotations

import random
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress

import numpy as np


def answers(said: bytes) -> Iterator[tuple[int, bool, str]]:
    """Of every answer its status, whether it is JSON, and its body."""
    for answer in re.split(rb"HTTP/1\.1 (?=\d{3} )", said)[1:]:
        head, _, body = answer.partition(b"\r\n\r\n")
        yield int(head[:3]), b"application/json" in head, body.decode("utf-8", "replace")


def send(connection: socket.socket, pieces: list[bytes], ends: bool = False) -> None:
    """What the other side still takes of it: it may have hung up, and its answer is there to be read then.
    ends: nothing comes after it."""
    with suppress(BrokenPipeError, ConnectionResetError):
        for piece in pieces:
            connection.sendall(piece)
    if ends:
        with suppress(OSError):  # ENOTCONN where it was reset
            connection.shutdown(socket.SHUT_WR)


def all_of(connection: socket.socket) -> bytes:
    said = b""
    with suppress(ConnectionResetError):
        while more := connection.recv(1 << 16):
            said += more
    return said


def pieces(rng: random.Random, data: bytes) -> list[bytes]:
    pieces = []
    while data:
        length = rng.choice([1, 60, 4000, len(data), len(data)])
        pieces.append(data[:length])
        data = data[length:]
    return pieces[:200]


def chunked(rng: random.Random, body: bytes) -> bytes:
    size = rng.choice([1 + len(body) // 3, len(body) or 1])
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)


def message(rng: random.Random, kind: int, data: bytes) -> bytes:
    """A frame of a WebSocket's client, in one piece."""
    mask = rng.randbytes(4)
    length = len(data)
    if length < 126:
        size = bytes([0x80 | length])
    elif length < 1 << 16:
        size = b"\xfe" + struct.pack(">H", length)
    else:
        size = b"\xff" + struct.pack(">Q", length)
    masked = np.frombuffer(data, np.uint8) ^ np.resize(np.frombuffer(mask, np.uint8), length)
    return bytes([0x80 | kind]) + size + mask + masked.tobytes()
