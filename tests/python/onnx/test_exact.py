"""A session over a real export, everything kept in float32, against the uncut graph with ONNX Runtime's own
cache.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from exported_models import HEAD_DIM, VOCAB, Exporter
from mosaic_edge import Engine
from mosaic_edge.engine import Session
from mosaic_edge.models.onnx.vlm import OnnxVlm
from mosaic_edge.sampling import SamplingParams

FRAMES, ANSWER = 32, 64
PREFIX, FIRST, SECOND = "w3 w9 w27 w81 w17", "w11 w13 w90 w41 w5 w66 w7", "w20 w33 w4"


class UncutDecoder:
    """The exported decoder as it is, with past_key_values; positions by the published M-RoPE rule.

    Qwen2.5-VL: t is the frame's second times `rate`; height and width count from the end of the prefix.
    Qwen3-VL (`follows`): every frame is a picture of its own, at one past the largest position so far on all
    three axes. Text goes on at one past the largest.
    """

    def __init__(self, path: Path, head_dim: int, follows: bool = False, rate: float = 1.0) -> None:
        self._follows, self._rate = follows, rate
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        inputs = {i.name: i for i in self._session.get_inputs()}
        self._inputs = inputs
        types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        self._type = types[inputs["inputs_embeds"].type]
        self.past = {
            name: np.zeros((1, value.shape[1], 0, head_dim), types[value.type])
            for name, value in inputs.items()
            if name.startswith("past")
        }
        self._multi = "position_ids" in inputs and len(inputs["position_ids"].shape) == 3
        self.seen = self.largest = self.prefix = self.frames = 0

    def text(self, embeds: np.ndarray, prefix: bool = False) -> np.ndarray:
        first = self.largest + 1 if self.seen else 0
        positions = np.repeat(first + np.arange(len(embeds))[None], 3, axis=0)
        self.prefix += len(embeds) if prefix else 0
        return self._run(embeds, positions)

    def frame(self, embeds: np.ndarray, columns: int) -> None:
        at = np.arange(len(embeds))
        t = np.full(len(embeds), 0 if self._follows else int(self.frames * self._rate))
        first = self.largest + 1 if self._follows else self.prefix
        positions = first + np.stack([t, at // columns, at % columns])
        self.frames += 1
        self._run(embeds, positions if self._multi else np.repeat(self.seen + at[None], 3, axis=0))

    def _run(self, embeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
        self.seen += len(embeds)
        self.largest = max(self.largest, int(positions.max()))
        feed = {
            "inputs_embeds": embeds[None].astype(self._type),
            "attention_mask": np.ones((1, self.seen), np.int64),
        }
        feed["position_ids"] = positions[:, None] if self._multi else positions[:1]
        names = [o.name for o in self._session.get_outputs()]
        values = self._session.run(names, {n: v for n, v in (feed | self.past).items() if n in self._inputs})
        out = dict(zip(names, values, strict=True))
        self.past = {name: out[name.replace("past_key_values", "present")] for name in self.past}
        return out["logits"][0, -1].astype(np.float32)

    def follow(self, engine: Engine, question: str, said: list[int]) -> tuple[np.ndarray, list[float]]:
        """Logits after the question, and how far each token of an answer was from the best one."""
        logits = first = self.text(engine.model.embed_text(engine.model.tokenize(question)))
        regret = []
        for token in said:
            regret.append(float(logits.max() - logits[token]))
            logits = self.text(engine.model.embed_text([token]))
        return first, regret

    def state(self) -> tuple[object, ...]:
        return dict(self.past), self.seen, self.largest

    def restore(self, state: tuple[object, ...]) -> None:
        self.past, self.seen, self.largest = state  # type: ignore[assignment]


def load(folder: Path, kind: str) -> Engine:
    """The model with a prefix and without an end token, so that answers have one length."""
    engine = Engine.load(folder, tokens_per_frame=None if kind == "llava" else 12)
    model = engine.model
    model._spec = replace(model.spec, prefix=PREFIX, eos_token_ids=(VOCAB,), temporal_patch_size=1)  # type: ignore[attr-defined]
    return engine


def pictures(count: int, size: tuple[int, int] = (57, 83)) -> list[np.ndarray]:
    """Scenes that change slowly, of an odd size: uint8 [H, W, 3]."""
    rng = np.random.default_rng(4)
    scenes = rng.integers(0, 256, (count // 5 + 1, *size, 3))
    return [
        np.clip(scenes[i // 5] + rng.integers(-9, 9, (*size, 3)), 0, 255).astype(np.uint8)
        for i in range(count)
    ]


def seen(engine: Engine, image: np.ndarray) -> tuple[np.ndarray, int]:
    """Tokens of a frame and the columns of its grid: 57 x 83 is 2 x 3 of Qwen's 28 or 32 pixels."""
    tokens = engine.model.encode(image, 0.0, 0.0, 0).tokens
    return tokens, 3 if len(tokens) == 9 else len(tokens) // 2


def open_exact(engine: Engine, positions: str) -> Session:
    room = 2 * (ANSWER + 16)
    return engine.session(
        memory="24MiB", policy="full", exact="fp32", branch_tokens=room, positions=positions
    )


@pytest.mark.parametrize(
    ("kind", "layout", "said", "t_position", "follows"),
    [
        ("qwen2.5-vl", "transformers.js", {}, 10, False),  # config.json: 4 a second
        ("qwen2.5-vl", "transformers.js", {"tokens_per_second": 2}, 5, False),  # mosaic.json goes first
        ("qwen2.5-vl", "genai", {}, -1, False),
        ("qwen3-vl", "genai", {"tokens_per_second": 2}, -1, True),
        ("llava", "transformers.js", {"tokens_per_second": 2}, -1, False),
    ],
)
def test_a_frame_stands_where_its_family_has_it(
    exporter: Exporter, tmp_path: Path, kind: str, layout: str, said: dict[str, float], t_position: int,
    follows: bool,
) -> None:  # fmt: skip
    precision = ("int4", "accuracy_level=1") if layout == "genai" else ("fp32",)
    folder = shutil.copytree(exporter(kind, layout, *precision), tmp_path / "model")
    (folder / "mosaic.json").write_text(json.dumps(said))
    model = OnnxVlm.load(folder)
    assert model.encode(pictures(1)[0], 12.5, 2.5, 3).t_position == t_position
    assert model.spec.rope.grid_follows_time == model.spec.rope.sections_interleaved == follows


def test_the_rate_of_a_genai_directory_is_read(exporter: Exporter, tmp_path: Path) -> None:
    folder = shutil.copytree(exporter("qwen2.5-vl", "genai", "int4", "accuracy_level=1"), tmp_path / "model")
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["vision"]["tokens_per_second"] = 2.0
    (folder / "genai_config.json").write_text(json.dumps(config))
    assert OnnxVlm.load(folder).encode(pictures(1)[0], 2.5, 2.5, 3).t_position == 5


CASES = [
    ("llava", "transformers.js", "fp32", (), 1e-4),
    ("qwen2.5-vl", "transformers.js", "fp32", (), 1e-4),
    ("qwen2.5-vl", "genai", "int4", ("accuracy_level=1",), 1e-4),
    ("qwen3-vl", "genai", "int4", ("accuracy_level=1",), 1e-4),
    ("llava", "transformers.js", "q4f16", (), 3e-2),
    (
        "llava",
        "genai",
        "int4",
        (),
        0.1,
    ),  # the builder's default: activations rounded to 8 bits in every product
]


@pytest.mark.parametrize(("kind", "layout", "precision", "options", "tolerance"), CASES)
def test_a_stream_with_turns_says_what_the_uncut_graph_says_token_by_token(
    exporter: Exporter, kind: str, layout: str, precision: str, options: tuple[str, ...], tolerance: float
) -> None:
    engine = load(exporter(kind, layout, precision, *options), kind)
    # Qwen2.5's rate is in config.json; without one a frame is the next position.
    rate = 4.0 if (kind, layout) == ("qwen2.5-vl", "transformers.js") else 1.0
    uncut = UncutDecoder(
        engine.model.files.decoder,  # type: ignore[attr-defined]
        HEAD_DIM[kind],
        kind == "qwen3-vl",
        rate,
    )
    greedy = SamplingParams(temperature=0.0, max_tokens=ANSWER)

    def same(session: Session, question: str, dialogue: bool = False) -> None:
        reply = session.ask(question, dialogue=dialogue, sampling=greedy)
        said = engine.model.tokenize(reply.text)
        logits, regret = uncut.follow(engine, question, said)
        assert np.ptp(logits) > 1 and len(set(said)) > 7 and len(said) == ANSWER
        np.testing.assert_allclose(reply.logits, logits, atol=tolerance, rtol=0)
        # In float32 the same greedy tokens; in coarser arithmetic none clearly worse than the best.
        assert max(regret) <= (0.0 if tolerance <= 1e-4 else 2 * tolerance)

    # Contiguous positions close up what absolute time keeps apart; else they are the original ones.
    with open_exact(engine, "original" if rate > 1 else "contiguous") as session:
        uncut.text(engine.model.embed_text(engine.model.tokenize(PREFIX)), prefix=True)
        *stream, late = pictures(FRAMES + 1)
        for i, image in enumerate(stream):
            session.append(image, float(i))
            uncut.frame(*seen(engine, image))
        before = uncut.state()
        same(session, FIRST)  # one turn, dropped
        uncut.restore(before)
        session.append(late, float(FRAMES))
        uncut.frame(*seen(engine, late))
        same(session, FIRST, dialogue=True)
        same(session, SECOND, dialogue=True)
        session.check_invariants()
