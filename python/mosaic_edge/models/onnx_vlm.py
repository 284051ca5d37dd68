"""A vision-language model in the standard ONNX layout, run by ONNX Runtime with attention left to the memory.

Three graphs: vision encoder, token embedding, decoder (cut by graph_cut.py). Their inputs and outputs say
what they are; config.json, preprocessor_config.json and mosaic.json say what no graph can (normalisation, end
tokens, frames a second).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from mosaic_edge.models.cut_decoder import CutDecoder, open_session, session_options
from mosaic_edge.models.graph_cut import cut
from mosaic_edge.models.model_files import ModelFiles, decoder_hints, read_graph, read_json
from mosaic_edge.models.preprocess import check_frame, normalise, resize_area
from mosaic_edge.models.tokenizer import TextTokenizer
from mosaic_edge.models.vlm import Attend, FloatArray, FrameArray, ModelError, VlmSpec

_SMALL_MODEL = 64 << 20
_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


class OnnxVlm:
    """The `Vlm` protocol over three ONNX graphs. It holds weights, no keys or values."""

    def __init__(
        self,
        spec: VlmSpec,
        vision: ort.InferenceSession,
        embeddings: ort.InferenceSession,
        decoder: CutDecoder,
        tokenizer: TextTokenizer,
    ) -> None:
        self._spec = spec
        self._vision = vision
        self._embeddings = embeddings
        self._decoder = decoder
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, path: str | Path, threads: int | None = None, variant: str | None = None) -> OnnxVlm:
        """Open a model directory.

        threads: per session; by default one for a model under 64 MiB (threads cost more than they bring),
        else the number of cores. variant: the decoder's suffix ("q4", "fp16", "" for none) instead of the
        best one present. Raises ModelError with one line that names the file and what is wrong with it.
        """
        if threads is not None and threads < 0:
            raise ValueError(f"threads must be 0 (all cores) or more, got {threads}")
        files = ModelFiles.find(Path(path), variant)
        config = read_json(files.folder / "config.json")
        genai = read_json(files.folder / "genai_config.json")
        graph = read_graph(files.decoder)
        if threads is None:
            threads = 1 if _bytes_on_disk(files.decoder) < _SMALL_MODEL else os.cpu_count() or 1
        folder = str(files.decoder.parent)
        try:
            pieces = cut(graph, decoder_hints(config, genai), folder)
        except ModelError as error:
            raise type(error)(f"{files.decoder}: {error}") from None
        decoder = CutDecoder(pieces, str(files.decoder), threads, folder)
        for other in (files.vision, files.embeddings):
            read_graph(other)
        options = session_options(threads)
        vision = open_session(str(files.vision), str(files.vision), options)
        embeddings = open_session(str(files.embeddings), str(files.embeddings), options)
        spec = _spec(files, config, genai, vision, embeddings, decoder)
        return cls(spec, vision, embeddings, decoder, TextTokenizer(files.tokenizer))

    @property
    def spec(self) -> VlmSpec:
        """What graphs and JSON files said when the model was loaded."""
        return self._spec

    def encode_frame(self, frame: FrameArray) -> tuple[FloatArray, FloatArray]:
        """RGB uint8 [H, W, 3] of any size -> tokens [tokens_per_frame, hidden], frame embedding [E]."""
        spec = self._spec
        pixels = resize_area(check_frame(frame), *spec.image_size)
        return _encode(self._vision, normalise(pixels, spec.image_mean, spec.image_std), spec.hidden)

    def embed_text(self, ids: Sequence[int]) -> FloatArray:
        """Token ids -> [T, hidden]. ValueError for an id outside the vocabulary."""
        wrong = [i for i in ids if not 0 <= i < self._spec.vocab_size]
        if wrong:
            raise ValueError(f"token id {wrong[0]} is outside the vocabulary of {self._spec.vocab_size}")
        return _embed(self._embeddings, ids)

    def tokenize(self, text: str) -> list[int]:
        """Text -> token ids, none added. ValueError names unknown words."""
        return self._tokenizer.encode(text)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Token ids -> text, special tokens left out."""
        return self._tokenizer.decode(ids)

    def run(self, embeds: FloatArray, attend: Attend, want_logits: bool = True) -> FloatArray | None:
        """Run the decoder over [T, hidden]: the last token's logits [vocab_size], or None."""
        return self._decoder.run(embeds, attend, want_logits)


def _bytes_on_disk(decoder: Path) -> int:
    return sum(p.stat().st_size for p in decoder.parent.glob(f"{decoder.stem}*") if p.is_file())


def _embed(session: ort.InferenceSession, ids: Sequence[int]) -> FloatArray:
    (tokens,) = session.get_inputs()
    feed = np.asarray(list(ids), _TYPES.get(tokens.type, np.int64))[None]
    out = session.run([session.get_outputs()[0].name], {tokens.name: feed})[0]
    return np.ascontiguousarray(out[0], np.float32)


def _encode(session: ort.InferenceSession, pixels: FloatArray, hidden: int) -> tuple[FloatArray, FloatArray]:
    """Features of one image and its embedding: the encoder's own [1, E] output, else the mean of the
    features.
    """
    (image,) = session.get_inputs()
    values = session.run(None, {image.name: pixels.astype(_TYPES.get(image.type, np.float32), copy=False)})
    named = dict(zip((o.name for o in session.get_outputs()), values, strict=True))
    embedding = named.pop("frame_embedding", None)
    features = next(
        (v for v in named.values() if v.ndim >= 2 and v.shape[-1] == hidden and v.shape[:1] != v.shape[:-1]),
        None,
    )
    if features is None:
        features = next((v for v in named.values() if v.ndim == 2 and v.shape[-1] == hidden), None)
    if features is None:
        shapes = ", ".join(f"{name} {list(v.shape)}" for name, v in named.items())
        raise ModelError(f"the vision encoder gives no features of width {hidden} (it gives: {shapes})")
    tokens = np.ascontiguousarray(features.reshape(-1, hidden), np.float32)
    if embedding is None:
        return tokens, tokens.mean(axis=0)
    return tokens, np.ascontiguousarray(embedding.reshape(-1), np.float32)


def _spec(
    files: ModelFiles,
    config: dict[str, Any],
    genai: dict[str, Any],
    vision: ort.InferenceSession,
    embeddings: ort.InferenceSession,
    decoder: CutDecoder,
) -> VlmSpec:
    """Put together what the graphs, a run of each on nothing, and the JSON files say."""
    mosaic = read_json(files.folder / "mosaic.json")
    images = read_json(files.folder / "preprocessor_config.json")
    for session, path, rank in ((vision, files.vision, 4), (embeddings, files.embeddings, 2)):
        inputs = [f"{i.name} {i.shape}" for i in session.get_inputs()]
        if len(inputs) != 1 or len(session.get_inputs()[0].shape) != rank:
            raise ModelError(f"{path}: expected one input of rank {rank}, got {', '.join(inputs)}")
    size = _image_size(mosaic, images, config, vision)
    try:
        hidden = int(_embed(embeddings, [0]).shape[1])
        tokens, embedding = _encode(vision, np.zeros((1, 3, *size), np.float32), hidden)
        logits = decoder.run(np.zeros((1, hidden), np.float32), lambda layer, q, k, v: q)
    except ModelError as error:
        raise ModelError(f"{files.folder}: {error}") from None
    except Exception as error:  # ONNX Runtime again
        raise ModelError(
            f"{files.folder}: its graphs do not fit together: {' '.join(str(error).split())[:400]}"
        ) from None
    count = len(tokens)
    if int(mosaic.get("tokens_per_frame", count)) != count:
        raise ModelError(
            f"{files.folder}: mosaic.json says {mosaic['tokens_per_frame']} tokens a frame, "
            f"the vision encoder gives {count}"
        )
    side = math.isqrt(count)
    rows, columns = mosaic.get("grid", (side, side) if side * side == count else (1, count))
    if rows * columns != count:
        raise ModelError(
            f"{files.folder}: mosaic.json says a grid of {rows} x {columns}, a frame has {count} tokens"
        )
    facts = decoder.facts
    assert logits is not None
    return VlmSpec(
        name=str(mosaic.get("name", files.folder.resolve().name)),
        layers=facts.layers,
        q_heads=facts.q_heads,
        kv_heads=facts.kv_heads,
        head_dim=facts.head_dim,
        hidden=hidden,
        rope=facts.rope,
        scale=facts.scale,
        tokens_per_frame=count,
        grid=(int(rows), int(columns)),
        embedding_dim=len(embedding),
        image_size=size,
        image_mean=_triple(mosaic.get("image_mean", images.get("image_mean", 0.5))),
        image_std=_triple(mosaic.get("image_std", images.get("image_std", 0.5))),
        vocab_size=len(logits),
        eos_token_ids=_end_tokens(files, mosaic, config, genai),
        video_window=int(mosaic.get("video_window", 0)),
        fps=float(mosaic.get("fps", 1.0)),
        template=str(mosaic.get("template", "{question}")),
        prefix=str(mosaic.get("prefix", "")),
    )


def _image_size(
    mosaic: dict[str, Any], images: dict[str, Any], config: dict[str, Any], vision: ort.InferenceSession
) -> tuple[int, int]:
    """Height and width: as the encoder's input declares, else mosaic.json, preprocessor_config.json,
    config.json.
    """
    declared = vision.get_inputs()[0].shape[2:]
    if all(isinstance(n, int) and n > 0 for n in declared):
        return int(declared[0]), int(declared[1])
    size = mosaic.get("image_size") or images.get("size") or config.get("vision_config", {}).get("image_size")
    if isinstance(size, dict):
        size = [size["height"], size["width"]] if "height" in size else size.get("shortest_edge")
    if isinstance(size, int):
        return size, size
    if isinstance(size, list) and len(size) == 2:
        return int(size[0]), int(size[1])
    raise ModelError(
        "neither the vision encoder nor mosaic.json, preprocessor_config.json, config.json tells image_size"
    )


def _triple(value: Any) -> tuple[float, float, float]:
    values = value if isinstance(value, list | tuple) else [value] * 3
    r, g, b = (float(v) for v in values)
    return r, g, b


def _end_tokens(
    files: ModelFiles, mosaic: dict[str, Any], config: dict[str, Any], genai: dict[str, Any]
) -> tuple[int, ...]:
    generation = read_json(files.folder / "generation_config.json")
    for source in (mosaic, generation, config, config.get("text_config", {}), genai.get("model", {})):
        value = source.get("eos_token_id")
        if value is not None:
            return tuple(int(v) for v in value) if isinstance(value, list) else (int(value),)
    raise ModelError(f"{files.folder}: no eos_token_id in mosaic.json, generation_config.json, config.json")
