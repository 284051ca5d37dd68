"""A case of a service that is killed (SIGKILL) at random moments while it saves its session after each frame,
and is started anew from what it finds: always the last whole session, with the answers that it had then.
"""

from __future__ import annotations

import os
import random
import signal
import struct
import time
from collections import Counter
from pathlib import Path
from typing import Any

from cases import must

from mosaic_edge.engine import Engine
from mosaic_edge.sampling import SamplingParams
from numpy_vlm import NumpyVlm, picture

KILLS = 50
FRAMES = 60
"""After so many a service begins anew."""
REPORT = struct.Struct("<i")
QUESTION = "what colour was the ball ?"
ONE = SamplingParams(max_tokens=1)


def play(seed: int, folder: Path) -> Counter[str]:
    rng = random.Random(seed)
    done: Counter[str] = Counter()
    engine = Engine(NumpyVlm())
    settings: dict[str, Any] = {"memory": "200KiB", "policy": rng.choice(["edge", "mosaic", "window"])}
    answers = answered(engine, settings)
    file = folder / "saved"
    for _ in range(KILLS):
        saved = kill_one(rng, engine, settings, file)
        if not file.exists():
            must(saved is None, f"{saved} frames were saved and there is no file")
            done["killed before the first"] += 1
            continue
        with engine.restore(file) as session:
            frames = session.memory()["frames"]
            must(
                saved is None or frames in (saved, saved % FRAMES + 1), f"{frames} frames, {saved} were saved"
            )
            logits = session.ask(QUESTION, sampling=ONE).logits.tobytes()
            must(logits == answers[frames], f"another answer after {frames} frames")
            session.check_invariants()
        done["killed"] += 1
        done["operations"] += 1
    must(len(list(folder.glob(".saved*"))) <= 1, "parts are left")
    for left in (*folder.glob(".saved*"), file):
        left.unlink(missing_ok=True)
    return done


def answered(engine: Engine, settings: dict[str, Any]) -> list[bytes]:
    """By how many frames went in: the answer then."""
    answers = []
    with engine.session(**settings) as session:
        for number in range(FRAMES + 1):
            answers.append(session.ask(QUESTION, sampling=ONE).logits.tobytes())
            session.append(picture(number), float(number))
    return answers


def kill_one(rng: random.Random, engine: Engine, settings: dict[str, Any], file: Path) -> int | None:
    """Start a service, kill it; the frames of the last session that it says it saved."""
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            serve(engine, settings, file, writes)
        finally:
            os._exit(1)
    os.close(writes)
    said = os.read(reads, REPORT.size)  # it has begun
    began = time.monotonic()
    saves = rng.randrange(4)
    for _ in range(saves):
        said += os.read(reads, REPORT.size)
    one = (time.monotonic() - began) / saves if saves else 0.01  # seconds, however busy the machine is
    time.sleep(rng.random() * 1.5 * one)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while piece := os.read(reads, 1 << 16):
        said += piece
    os.close(reads)
    must(len(said) >= REPORT.size, "the service did not begin")
    last: int = REPORT.unpack(said[-REPORT.size :])[0]
    return None if last < 0 else last


def serve(engine: Engine, settings: dict[str, Any], file: Path, reports: int) -> None:
    """Go on from the file, for ever."""
    session = engine.restore(file) if file.exists() else engine.session(**settings)
    frames = session.memory()["frames"]
    os.write(reports, REPORT.pack(frames if file.exists() else -1))
    while True:
        if frames == FRAMES:
            session.close()
            session, frames = engine.session(**settings), 0
        session.append(picture(frames), float(frames))
        frames += 1
        session.save(file)
        os.write(reports, REPORT.pack(frames))
