"""A case of Session over a small model in NumPy: frames, questions, streamed answers, dialogues, wrong
arguments, a model that fails, memory(), close, by chance. After each step the bytes are within the cap, every
token is somewhere, answers are finite, and what failed left the session usable.
"""

from __future__ import annotations

import math
import random
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cases import must, small_files
from random_policy import RaisedError, RandomPolicy

from mosaic_edge import _core
from mosaic_edge.engine import Engine, Session
from mosaic_edge.reply import ReplyStream
from mosaic_edge.sampling import SamplingParams
from numpy_vlm import NumpyVlm, picture

CALLS = 120
CLEAN = (ValueError, MemoryError, OSError, RaisedError)
QUESTIONS = ["what was the ball ?", "what colour was the ball ?", "where was the ball ?"]


def play(seed: int, folder: Path) -> Counter[str]:
    rng = random.Random(seed)
    warnings.simplefilter("ignore", UserWarning)  # a trace that the full disk did not take
    done: Counter[str] = Counter()
    policy: Any = RandomPolicy(rng) if rng.random() < 0.2 else rng.choice(_core.policies())
    settings: dict[str, Any] = {
        "memory": rng.choice(["150KiB", "300KiB", "500KiB", "1MiB", "4MiB"]),
        "policy": policy,
        "window_frames": rng.choice([0, 0, 1, 3]),
        "branch_tokens": rng.choice([0, 0, 24, 60]),
        "positions": rng.choice(["auto", "original", "contiguous"]),
        "skip_alike": rng.choice([0, 0, 0.99]),
        "overflow": rng.choice(["refuse", "saturate"]),
        "refresh_every": rng.choice([0, 0, 2]),
        "kernel_threads": rng.choice([1, 2]),
    }
    if rng.random() < 0.4:
        settings |= {"disk": rng.choice(["64KiB", "1MiB"]), "spill_dir": str(folder)}
        settings["faults"] = rng.choice([0, 0, 1, 3, 20])
    if rng.random() < 0.1:
        settings["trace"] = str(folder / "trace.json")
    try:
        engine = Engine(NumpyVlm())
        session = engine.session(**settings)
    except CLEAN:
        done["settings refused"] += 1
        return done
    game = Game(rng, engine, session, folder)
    for _ in range(CALLS):
        done[game.step()] += 1
        done["operations"] += 1
    game.session.close()
    (folder / "saved").unlink(missing_ok=True)
    must([p for p in folder.iterdir() if p.name not in ("trace.json", "fault")] == [], "files are left")
    return done


class Game:
    """One session, and what it is in the middle of."""

    def __init__(self, rng: random.Random, engine: Engine, session: Session, folder: Path) -> None:
        self.rng, self.engine, self.session, self.folder = rng, engine, session, folder
        self.pts = 0.0
        self.cap: int = session.memory()["cap_bytes"]
        self.stream: ReplyStream | None = None
        self.saved: dict[str, Any] | None = None  # memory() of what was saved last

    def step(self) -> str:
        kinds: list[tuple[int, str, Callable[[], object]]] = [
            (50, "frame", self.frame),
            (15, "ask", self.ask),
            (8, "stream", self.begin_stream),
            (20, "piece", self.next_piece),
            (4, "close stream", self.close_stream),
            (8, "wrong frame", self.wrong_frame),
            (8, "wrong question", self.wrong_question),
            (3, "broken model", self.broken_model),
            (3, "saved", self.save),
            (2, "restored", self.restore),
            (2, "forked", self.fork),
            (2, "disk full or free", lambda: small_files(self.rng)),
        ]
        _, name, call = self.rng.choices(kinds, [weight for weight, _, _ in kinds])[0]
        try:
            call()
        except CLEAN as error:
            must(str(error) != "" or isinstance(error, RaisedError), "an error without a word")
            name += ", refused"
        self.check()
        return name

    def check(self) -> None:
        stats = self.session.memory()
        tokens = dict(stats["tokens"])
        seen = tokens.pop("seen")
        must(sum(tokens.values()) == seen and min(tokens.values()) >= 0, ("account", stats["tokens"]))
        must(stats["taken_bytes"] <= self.cap, ("cap", stats["taken_bytes"]))
        if self.stream is None:
            self.session.check_invariants()

    def frame(self) -> None:
        self.pts += self.rng.choice([0.0, 0.01, 1.0, 1.0, 50.0])
        self.session.append(picture(self.rng.randrange(9)), self.rng.choice([self.pts, self.pts, None]))

    def sampling(self) -> SamplingParams:
        return SamplingParams(max_tokens=self.rng.randrange(1, 6), temperature=self.rng.choice([0.0, 1.0]))

    def ask(self) -> None:
        reply = self.session.ask(
            self.rng.choice(QUESTIONS),
            since=self.rng.choice([None, None, 0.0, self.pts, -1e9, 1e9]),
            dialogue=self.rng.random() < 0.5,
            sampling=self.sampling(),
        )
        must(reply.tokens <= 5 and reply.finish in ("end", "length"), reply)
        must(bool(np.isfinite(reply.logits).all()), "logits")
        for moment in reply.evidence:
            must(moment.start <= moment.end, reply.evidence)

    def begin_stream(self) -> None:
        if self.stream is None:
            self.stream = self.session.ask(
                self.rng.choice(QUESTIONS),
                stream=True,
                dialogue=self.rng.random() < 0.5,
                sampling=self.sampling(),
            )

    def next_piece(self) -> None:
        if self.stream is None:
            return
        try:
            must(isinstance(next(iter(self.stream)), str), "a piece of an answer")
        except StopIteration:
            self.stream = None
        except BaseException:
            self.stream = None
            raise

    def close_stream(self) -> None:
        if self.stream is not None:
            self.stream.close()
            self.stream = None

    def wrong_frame(self) -> None:
        good, rng = picture(1), self.rng
        frame: Any = rng.choice(
            [
                None, good.astype(np.float32), good[:, :, :2], good[0], np.zeros((0, 4, 3), np.uint8), "x",
                [[1, 2]], good.astype(object), good,
            ]
        )  # fmt: skip
        pts: Any = rng.choice(
            [math.nan, math.inf, 1e300, -1e300, self.pts - 1, "x", None, np.zeros(3), 1 << 70, True]
        )
        before = self.session.memory()["frames"]
        if self.rng.random() < 0.5:
            pts = self.pts
        try:
            self.session.append(frame, pts)
            self.pts = max(self.pts, float(pts or self.pts))
        except CLEAN:
            if not isinstance(self.session.config.policy, RandomPolicy):
                must(self.session.memory()["frames"] == before, "a refused frame was taken")
            raise

    def wrong_question(self) -> None:
        rng = self.rng
        question: Any = rng.choice(["", " ", "zorg", None, 3, "ball " * 500, "\ud800", "what was the ball ?"])
        options: dict[str, Any] = rng.choice(
            [
                {}, {"since": math.nan}, {"since": "x"}, {"dialogue": "yes"}, {"dialogue": None},
                {"stream": 2}, {"sampling": 3}, {"special_tokens": "x"}, {"since": 1 << 80},
            ]
        )  # fmt: skip
        answer = self.session.ask(question, **options)
        if isinstance(answer, ReplyStream):
            answer.close()

    def save(self) -> None:
        """In place of the one before, which is whole whatever happens."""
        file = self.folder / "saved"
        before = file.read_bytes() if file.exists() else None
        try:
            self.session.save(file, note=self.pts)
        except CLEAN:
            must((file.read_bytes() if file.exists() else None) == before, "a file of before is gone")
            raise
        self.saved = self.session.memory()

    def restore(self) -> None:
        """What was saved last, in place of the session."""
        if self.saved is None or self.stream is not None:
            return
        given = {name: getattr(self.session.config, name) for name in ("spill_dir", "faults", "policy")}
        self.go_on_with(self.engine.restore(self.folder / "saved", **given), self.saved)
        self.pts = float(self.session.note)

    def fork(self) -> None:
        """Another session, which goes on in its place."""
        self.go_on_with(self.session.fork(self.session.config.policy), self.session.memory())

    def go_on_with(self, other: Session, memory: dict[str, Any]) -> None:
        for what in ("tokens", "frames", "duplicate_frames", "held_frames", "taken_bytes", "tiers"):
            must(other.memory()[what] == memory[what], ("another session", what))
        self.session.close()
        self.session = other

    def broken_model(self) -> None:
        """The model fails, or makes what is no number, in one pass."""
        model: Any = self.session._blocks.model
        real, kind = model.forward, self.rng.randrange(3)

        def forward(embeds: Any, attend: Any, want_logits: bool) -> Any:
            if kind == 0:
                raise OSError("the model broke")
            scale = np.float32([math.nan, 1e30][kind - 1])

            def broken(layer: int, q: Any, k: Any, v: Any, *rest: Any, **more: Any) -> Any:
                return attend(layer, q, k, v * scale, *rest, **more)

            broken.device = getattr(attend, "device", "cpu")  # type: ignore[attr-defined]
            return real(embeds, broken, want_logits)

        model.forward = forward
        try:
            self.rng.choice([self.frame, self.ask])()
        finally:
            model.forward = real
