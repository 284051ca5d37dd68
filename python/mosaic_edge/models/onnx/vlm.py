"""A vision-language model as ONNX graphs, run by ONNX Runtime with attention left to the memory.

Three graphs: vision encoder (vision.py), token embedding (embedding.py), decoder, which is cut at its
attention nodes (cut.py). Their inputs and outputs say what they are; config.json,
preprocessor_config.json and mosaic.json say what no graph can (normalisation, end tokens, frames a second).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mosaic_edge.models.directory import read_json
from mosaic_edge.models.generation import sampling_said
from mosaic_edge.models.image_settings import image_settings, video_settings
from mosaic_edge.models.model_text import ModelText, family_name, text_of
from mosaic_edge.models.newline import encode_with_newline
from mosaic_edge.models.onnx.cut_cache import open_pieces
from mosaic_edge.models.onnx.decoder import CutDecoder, open_session, session_options
from mosaic_edge.models.onnx.embedding import TextEmbedding
from mosaic_edge.models.onnx.facts import DecoderFacts
from mosaic_edge.models.onnx.files import ModelFiles, bytes_on_disk, decoder_hints
from mosaic_edge.models.onnx.graph_file import data_folder, read_graph
from mosaic_edge.models.onnx.sites import GraphCutError
from mosaic_edge.models.onnx.trial import LOAD_SECONDS, TrialSession, watched
from mosaic_edge.models.onnx.vision import PixelSettings, VisionGraph
from mosaic_edge.models.rope import absolute_position
from mosaic_edge.models.sandbox import OF_THE_MACHINE
from mosaic_edge.models.schema import card_settings
from mosaic_edge.models.tokenizer import TextTokenizer
from mosaic_edge.models.video_text import VideoText
from mosaic_edge.models.vlm import (
    MOST_CONTEXT,
    Attend,
    EncodedFrame,
    FloatArray,
    FrameArray,
    ModelError,
    RopeSpec,
    VlmSpec,
)

_SMALL_MODEL = 64 << 20


def _first_run(decoder: CutDecoder, hidden: int, where: str) -> FloatArray | None:
    """The logits of one token of zeros. ModelError where it takes too long."""
    ended = threading.Event()

    def attend(layer: int, q: FloatArray, k: FloatArray, v: FloatArray) -> FloatArray:
        if ended.is_set():
            raise ModelError(f"{where}: its first run was ended")
        return q

    return watched(
        lambda: decoder.run(np.zeros((1, hidden), np.float32), attend),
        where,
        "its first run did not end",
        LOAD_SECONDS,  # it reads all of its weights
        ended.set,
    )


class OnnxVlm:
    """The `Vlm` protocol over three ONNX graphs. It holds weights, no keys or values."""

    def __init__(
        self,
        spec: VlmSpec,
        vision: VisionGraph,
        embeddings: TextEmbedding,
        decoder: CutDecoder,
        tokenizer: TextTokenizer,
        files: ModelFiles,
        text: VideoText | None = None,
        newline: FloatArray | None = None,
    ) -> None:
        self._spec = spec
        self._vision = vision
        self._embeddings = embeddings
        self._decoder = decoder
        self._tokenizer = tokenizer
        self.files = files
        self._text = text
        self._newline = newline

    @classmethod
    def load(
        cls,
        path: str | Path,
        threads: int | None = None,
        variant: str | None = None,
        device: str = "cpu",
        tokens_per_frame: int | Literal["native"] | None = None,
        system: str | None = None,
    ) -> OnnxVlm:
        """Open a model directory.

        threads: per session; by default one for a model under 64 MiB (threads cost more than they bring),
        else the number of cores. variant: the decoder's suffix ("q4", "fp16", "" for none) instead of the
        best one present. device: "cpu", or "cuda" (unproven). tokens_per_frame: the most a frame becomes, for
        models that take any aspect. system: a system prompt. Raises ModelError with one line that
        names the file and what is wrong with it.
        """
        if threads is not None and threads < 0:
            raise ValueError(f"threads must be 0 (all cores) or more, got {threads}")
        files = ModelFiles.find(Path(path), variant, device)
        config = read_json(files.folder / "config.json")
        genai = read_json(files.folder / "genai_config.json")
        if threads is None:
            threads = 1 if bytes_on_disk(files.decoder) < _SMALL_MODEL else os.cpu_count() or 1
        try:
            pieces = open_pieces(files.decoder, decoder_hints(config, genai))
        except GraphCutError as error:
            raise GraphCutError(f"{files.decoder}: {error}") from None
        decoder = CutDecoder(pieces, str(files.decoder), threads, str(data_folder(files.decoder)), device)
        for other in (files.vision, files.embeddings):
            read_graph(other)
        options = session_options(threads)
        sessions = [
            TrialSession(open_session(str(p), str(p), options, device), str(p))
            for p in (files.embeddings, files.vision)
        ]
        embeddings = TextEmbedding(sessions[0], str(files.embeddings))
        mosaic = read_json(files.folder / "mosaic.json")
        kind = family_name(config, genai)
        try:
            row = embeddings.look_up([0])
            if not np.isfinite(row).all():
                raise ModelError(f"{files.embeddings}: NaN or infinity among its weights")
            hidden = row.shape[1]
            pixels = PixelSettings(
                mosaic, image_settings(files.folder), video_settings(files.folder), config, kind
            )
            vision = VisionGraph(sessions[1], str(files.vision), hidden, pixels, tokens_per_frame)
            logits = _first_run(decoder, hidden, str(files.decoder))
            assert logits is not None
            embeddings.look_up([len(logits) - 1])  # the table has a row for every id that can be drawn
        except ModelError as error:
            named = str(error) if str(error).startswith(str(files.folder)) else f"{files.folder}: {error}"
            raise ModelError(named) from None
        except (ValueError, *OF_THE_MACHINE):
            raise
        except Exception as error:  # ONNX Runtime raises a different class for every cause
            raise ModelError(
                f"{files.folder}: its graphs do not fit together: {' '.join(str(error).split())[:400]}"
            ) from None
        for session in sessions:
            session.passed()
        settings = _Settings(mosaic, config, genai)
        tokenizer = TextTokenizer(files.tokenizer)
        words = text_of(files.folder, mosaic, kind, tokenizer, hidden, system)
        spec = _spec_of(files, settings, decoder.facts, vision, hidden, len(logits), words)
        spec = replace(spec, system=system)
        return cls(spec, vision, embeddings, decoder, tokenizer, files, words.video, words.newline)

    @property
    def vision(self) -> VisionGraph:
        """Its encoder of pictures."""
        return self._vision

    @property
    def spec(self) -> VlmSpec:
        """What graphs and JSON files said when the model was loaded."""
        return self._spec

    def encode(self, frame: FrameArray, pts: float, elapsed: float, number: int) -> EncodedFrame:
        """RGB uint8 [H, W, 3], or so many of them as make a picture -> at most tokens_per_frame tokens, a
        grid that follows the frame's aspect; see the protocol."""
        features, embedding = self._vision.encode(frame)
        columns = self._vision.frame_grid(*frame.shape[-3:-1])[1]
        rate = self._spec.tokens_per_second
        t_position = absolute_position(elapsed, rate) if rate else -1
        if self._text is None:
            return EncodedFrame(features, embedding, columns, t_position=t_position)
        lead = self._tokenizer.encode(self._text.lead(max(pts, 0.0), number))
        trail = self._tokenizer.encode(self._text.trail)
        tokens = np.concatenate([self.embed_text(lead), features, self.embed_text(trail)])
        return EncodedFrame(tokens, embedding, columns, len(lead), len(trail), t_position)

    def check(self, height: int, width: int) -> None:
        """ValueError for a frame of a size that encode() would refuse."""
        self._vision.frame_grid(height, width)

    def embed_text(self, ids: Sequence[int]) -> FloatArray:
        """Token ids -> [T, hidden]. ValueError for an id outside the vocabulary."""
        count, newline = self._spec.vocab_size, self._newline
        wrong = [i for i in ids if not 0 <= i < count + (newline is not None)]
        if wrong:
            raise ValueError(f"token id {wrong[0]} is outside the vocabulary of {count}")
        rows = self._embeddings.look_up([min(i, count - 1) for i in ids])
        for at in (at for at, i in enumerate(ids) if i == count):
            rows[at] = newline
        return rows

    def tokenize(self, text: str, plain: tuple[int, int] | None = None) -> list[int]:
        """Text -> token ids, none added; the newline of a video is the id behind the last. ValueError names
        unknown words."""
        if self._newline is None:
            return self._tokenizer.encode(text, plain)
        return encode_with_newline(self._tokenizer, text, plain, self._spec.vocab_size)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Token ids -> text, special tokens left out."""
        return self._tokenizer.decode(ids)

    def forward(self, embeds: FloatArray, attend: Attend, want_logits: bool = True) -> FloatArray | None:
        """Run the decoder over [T, hidden]: the last token's logits [vocab_size], or None."""
        return self._decoder.run(embeds, attend, want_logits)


@dataclass(frozen=True)
class _Settings:
    """What the JSON files beside the graphs say; mosaic.json goes before the others."""

    mosaic: dict[str, Any]
    config: dict[str, Any]
    genai: dict[str, Any]

    def tokens_per_second(self, rope: RopeSpec) -> float:
        """Temporal positions a second (Qwen2.5-VL), 0 where a frame takes the next one."""
        if not any(rope.sections) or rope.grid_follows_time:
            return 0.0
        vision = self.genai.get("model", {}).get("vision", {})
        for source in (self.mosaic, self.config.get("vision_config", {}), vision):
            if source.get("tokens_per_second"):
                return float(source["tokens_per_second"])
        return 0.0

    def context(self) -> int:
        """Positions the decoder was trained for; 0: no file says it, or the model was made for streams."""
        if self.mosaic:
            return int(self.mosaic.get("context", 0))
        for part in (self.config.get("text_config", {}), self.config, self.genai.get("model", {})):
            for key in ("max_position_embeddings", "context_length"):
                if key in part:
                    return min(int(part[key]), MOST_CONTEXT)
        return 0

    def sampling(self, folder: Path) -> dict[str, float | int]:
        """How the model's makers have its answers drawn."""
        return sampling_said(read_json(folder / "generation_config.json") or self.genai.get("search", {}))

    def end_tokens(self, folder: Path) -> tuple[int, ...]:
        """Ids that end an answer. ModelError where no file has them."""
        generation = read_json(folder / "generation_config.json")
        text = self.config.get("text_config", {})
        for source in (self.mosaic, generation, self.config, text, self.genai.get("model", {})):
            value = source.get("eos_token_id")
            if value is not None:
                return tuple(int(v) for v in value) if isinstance(value, list) else (int(value),)
        raise ModelError(f"{folder}: no eos_token_id in mosaic.json, generation_config.json, config.json")


def _spec_of(
    files: ModelFiles,
    settings: _Settings,
    facts: DecoderFacts,
    vision: VisionGraph,
    hidden: int,
    vocab_size: int,
    words: ModelText,
) -> VlmSpec:
    # A graph is given positions and says no rule for them. Published families whose sections take turns count
    # rows and columns from the frame's own position, those in chunks from where the video began.
    rope = replace(facts.rope, grid_follows_time=facts.rope.sections_interleaved)
    mosaic = settings.mosaic
    return VlmSpec(
        name=str(mosaic.get("name", files.folder.resolve().name)),
        layers=facts.layers,
        q_heads=facts.q_heads,
        kv_heads=facts.kv_heads,
        head_dim=facts.head_dim,
        hidden=hidden,
        rope=rope,
        scale=facts.scale,
        layout="onnx",
        tokens_per_frame=vision.tokens + words.tokens,
        native_tokens_per_frame=vision.native_tokens + words.tokens,
        temporal_patch_size=vision.temporal_patch_size,
        tokens_per_second=settings.tokens_per_second(rope),
        grid=vision.grid,
        embedding_dim=vision.embedding_dim,
        image_size=vision.size,
        image_mean=vision.rules.mean,
        image_std=vision.rules.std,
        vocab_size=vocab_size,
        eos_token_ids=settings.end_tokens(files.folder),
        video_window=int(mosaic.get("video_window", 0)),
        context=settings.context(),
        policy_settings=card_settings(files.folder, mosaic),
        fps=float(mosaic.get("fps", 1.0)),
        sampling=settings.sampling(files.folder),
        prefix=words.prefix,
        template=words.template,
        follow_up=words.follow_up,
        answered=words.answered,
        thinking=words.thinking,
        left_out=words.left_out,
    )
