"""A model in the ONNX layout: its prompt and pixels against AutoProcessor, where transformers knows the
directory; its answer against the decoder's graph as it was exported, with a cache of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from mosaic_edge.engine import Engine
from mosaic_edge.evaluation.check import positions
from mosaic_edge.evaluation.check.clip import Clip
from mosaic_edge.evaluation.check.row import NAMES, Row, near, not_compared
from mosaic_edge.evaluation.check.said import ids_rows, logits_row, tokens_row
from mosaic_edge.evaluation.check.watched import Watched, stream, watching
from mosaic_edge.models.directory import read_json
from mosaic_edge.models.model_text import family_name
from mosaic_edge.models.onnx.decoder import session_options
from mosaic_edge.models.onnx.graph_file import read_graph
from mosaic_edge.models.onnx.vlm import OnnxVlm
from mosaic_edge.models.video_text import VIDEO_TEXTS
from mosaic_edge.models.vlm import FloatArray, VlmSpec

LOGITS = {"tensor(float)": 1e-3, "tensor(float16)": 0.05}
"""Of their spread, by the type of the cache."""
ROUNDED = 0.25
"""Where products round their activations to 8 bits: a last digit of theirs becomes a whole step."""
_INTEGER = ("MatMulInteger", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "QLinearMatMul")
LEVEL = 1.0 / 255.0


def check_graphs(engine: Engine, clip: Clip, steps: int) -> list[Row]:
    """A row for every one of NAMES. MemoryCapError, ModelError as a session raises them."""
    vlm = engine.model
    assert isinstance(vlm, OnnxVlm)
    with watching(vlm) as ours:
        stream(engine, clip, steps)
    rows = {row.what: row for row in [*_asked(vlm, ours, clip), *_answered(engine, vlm, ours, clip, steps)]}
    return [rows[name] for name in NAMES]


def _asked(vlm: OnnxVlm, ours: Watched, clip: Clip) -> list[Row]:
    """What AutoProcessor can say something of."""
    names = ("prompt", "pixels", "tokens a frame")
    config = read_json(vlm.files.folder / "config.json")
    kind = family_name(config, read_json(vlm.files.folder / "genai_config.json"))
    if kind not in VIDEO_TEXTS:
        return not_compared(names, f"model_type={kind!r} is no family that AutoProcessor is asked for")
    try:
        from mosaic_edge.evaluation.check.script import ids_of, inputs_of, pixels_of

        inputs = inputs_of(vlm.files.folder, kind, clip, vlm.spec.system)
    except Exception as error:  # not installed, or a directory that transformers cannot read
        why = " ".join(str(error).split())[:200]
        return not_compared(names, f"AutoProcessor cannot be used ({type(error).__name__}: {why})")
    prompt, sizes = ids_rows(ours.prompt, ids_of(inputs, config))
    return [prompt, sizes, _pixels_row(vlm, clip, pixels_of(inputs).float().numpy())]


def _pixels_row(vlm: OnnxVlm, clip: Clip, theirs: FloatArray) -> Row:
    """Our own resizing against the library's: a level of 255 here and there is rounding."""
    together = vlm.spec.temporal_patch_size
    pictures = [clip.frames[i : i + together] for i in range(0, len(clip.frames), together)]
    made = [vlm.vision.pixels(one if together > 1 else one[0])[0] for one in pictures]
    ours = np.concatenate([one.reshape(-1, theirs.shape[-1]) for one in made])
    if ours.size != theirs.size:
        return Row("pixels", False, f"{ours.size} numbers, the script has {theirs.size}")
    off = np.abs(ours.reshape(theirs.shape) - theirs) * min(vlm.spec.image_std) / LEVEL
    many = float((off > 1.5).mean()) if off.mean() < 0.1 else 1.0
    return near("pixels", many, 5e-3, "the numbers (by more than a level of 255)")


def _answered(engine: Engine, vlm: OnnxVlm, ours: Watched, clip: Clip, steps: int) -> list[Row]:
    spec = vlm.spec
    prefix = len(vlm.tokenize(spec.prefix)) if spec.prefix else 0
    pictures = sum(len(picture.tokens) for picture in ours.pictures)
    published = positions.published(spec, prefix, ours.pictures, len(ours.prompt) - prefix - pictures)
    stands = near(
        "positions",
        positions.difference(engine, ours.pictures, clip, published),
        positions.ALLOWED,
        "what a question reads at the published ones",
    )
    features = not_compared(["features"], "the encoder's graph is run as it is")
    names = ("logits", "greedy tokens")
    if spec.video_window:
        why = f"frames see {spec.video_window} frames, which the graph as it was exported does not know"
        return [*features, *not_compared(["positions", *names], why)]
    try:
        graph = UncutGraph(vlm.files.decoder, spec)
        said, logits = graph.answer(vlm, np.concatenate(ours.embeds)[: len(ours.prompt)], published, steps)
    except Exception as error:  # ONNX Runtime raises a different class for every cause
        why = " ".join(str(error).split())[:200]
        return [*features, stands, *not_compared(names, f"the uncut graph cannot be run ({why})")]
    return [
        *features,
        stands,
        logits_row(ours.logits[0], logits[0], graph.allowed),
        tokens_row(ours, logits, said, spec.eos_token_ids, graph.allowed),
    ]


class UncutGraph:
    """A decoder as it was exported. ValueError for inputs that are not known."""

    def __init__(self, path: Path, spec: VlmSpec) -> None:
        self._session = ort.InferenceSession(
            str(path), session_options(1), providers=["CPUExecutionProvider"]
        )
        self._inputs = {i.name: i for i in self._session.get_inputs()}
        types = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
        known = ("inputs_embeds", "attention_mask", "position_ids")
        others = [n for n in self._inputs if n not in known and not n.startswith("past_key_values")]
        if others or "inputs_embeds" not in self._inputs:
            raise ValueError(f"its inputs: {', '.join(self._inputs)}")
        self._type = types[self._inputs["inputs_embeds"].type]
        past = [i for n, i in self._inputs.items() if n.startswith("past_key_values")]
        self.allowed = max(LOGITS[i.type] for i in (past[0], self._inputs["inputs_embeds"]))
        if _rounds_activations(path):
            self.allowed = ROUNDED
        shape = (1, spec.kv_heads, 0, spec.head_dim)
        self._past: dict[str, np.ndarray[Any, Any]] = {i.name: np.zeros(shape, types[i.type]) for i in past}
        self._seen = 0

    def answer(
        self, vlm: OnnxVlm, embeds: FloatArray, published: positions.Positions, steps: int
    ) -> tuple[list[int], list[FloatArray]]:
        """Greedy tokens behind a prompt, and the logits that each was drawn from."""
        said: list[int] = []
        logits = [self._run(embeds, published)]
        for step in range(1, steps + 1):
            said.append(int(logits[-1].argmax()))
            if step < steps:
                at = np.full((3, 1), published.max() + step)
                logits.append(self._run(vlm.embed_text(said[-1:]), at))
        return said, logits

    def _run(self, embeds: FloatArray, published: positions.Positions) -> FloatArray:
        self._seen += len(embeds)
        feed: dict[str, Any] = {"inputs_embeds": embeds[None].astype(self._type), **self._past}
        if "attention_mask" in self._inputs:
            feed["attention_mask"] = np.ones((1, self._seen), np.int64)
        if (wanted := self._inputs.get("position_ids")) is not None:
            feed["position_ids"] = published[:, None] if len(wanted.shape) == 3 else published[:1]
        names = [o.name for o in self._session.get_outputs()]
        made = dict(zip(names, self._session.run(names, feed), strict=True))
        self._past = {name: made[name.replace("past_key_values", "present")] for name in self._past}
        last: FloatArray = made["logits"][0, -1].astype(np.float32)
        return last


def _rounds_activations(path: Path) -> bool:
    """Whether products of a graph are of 8-bit activations (accuracy_level 4 of MatMulNBits)."""
    for node in read_graph(path).graph.node:
        levels = [a.i for a in node.attribute if a.name == "accuracy_level"]
        if node.op_type in _INTEGER or 4 in levels:
            return True
    return False
