"""A vision-language model of transformers, run with its attention left to the memory.

Attention reaches the memory through transformers' own registry (attention.py); the model's cache is never
made. Every token is given position zero, where rotation is the identity, so that q and k arrive as they were
and the memory rotates. The decoder is called directly, so that no positions are remembered on the model
between sessions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mosaic_edge.models.directory import read_json
from mosaic_edge.models.frames import check_frames, normalise, resize_area
from mosaic_edge.models.generation import sampling_said
from mosaic_edge.models.hf.attention import attending, give_back, take_over
from mosaic_edge.models.hf.family import Family, Limit, Picture
from mosaic_edge.models.hf.load import Parts, load_parts
from mosaic_edge.models.hf.quantised import unpack
from mosaic_edge.models.hf.refused import check_layers
from mosaic_edge.models.hf.rope import longest_context, rope_of, zero_positions
from mosaic_edge.models.hf.square_families import Llava
from mosaic_edge.models.model_text import most_tokens
from mosaic_edge.models.newline import encode_with_newline
from mosaic_edge.models.prompt import Prompt, named_template, no_template_for_system, prompt_from
from mosaic_edge.models.rope import absolute_position
from mosaic_edge.models.sandbox import OF_THE_MACHINE, check_memory
from mosaic_edge.models.schema import card_settings
from mosaic_edge.models.thinking import thinking_of
from mosaic_edge.models.tokenizer import TextTokenizer
from mosaic_edge.models.video_text import VideoText
from mosaic_edge.models.vlm import (
    MOST_CONTEXT,
    Attend,
    EncodedFrame,
    FloatArray,
    FrameArray,
    ModelError,
    VlmSpec,
)


class HfVlm:
    """The `Vlm` protocol over a transformers model. It holds weights, no keys or values."""

    def __init__(
        self,
        family: Family,
        head: Any,
        tokenizer: TextTokenizer,
        words: VideoText,
        spec: VlmSpec,
        fixed: bool,
    ) -> None:
        self._family = family
        self._language = family.language
        self._head = head
        self._tokenizer = tokenizer
        self._words = words
        self._spec = spec
        self._newline: torch.Tensor | None = getattr(family.model, "image_newline", None)
        with torch.inference_mode():
            self._own_words = {i: _floats(row) for i, row in family.own_words.items()}
        take_over(self._language)
        self._fixed = fixed  # frames as mosaic.json says, not as the image processor does

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        dtype: str | None = None,
        device: str | None = None,
        quantization: str | None = None,
        tokens_per_frame: Limit = None,
        allow_pickle: bool = False,
        system: str | None = None,
    ) -> HfVlm:
        """Open a checkpoint directory.

        dtype: "fp32", "fp16", "bf16"; by default the checkpoint's (fp32 for fp16 on a CPU). device: "cpu",
        "cuda", ...; by default a GPU if there is one. quantization: "int4", "int8".
        tokens_per_frame: a picture's most tokens, where the family can resize (Qwen-VL; 196 by default,
        "native": as many as its processor allows). system: a system prompt. Raises
        ModelError naming file and cause.
        """
        parts = load_parts(folder, dtype, device, quantization, allow_pickle)
        made = cls.of(parts, tokens_per_frame, parts.folder, system)
        with fitting(str(parts.folder)):
            made.try_once()
        return made

    @classmethod
    def of(
        cls,
        parts: Parts,
        tokens_per_frame: Limit = None,
        origin: Path | None = None,
        system: str | None = None,
    ) -> HfVlm:
        """Over a model that is loaded already. Its decoder's attention is set to the registered one from here
        on. origin: the directory that its chat template came from; None: the caller's own."""
        name = str(parts.folder)
        mosaic = read_json(parts.folder / "mosaic.json")
        head = (
            getattr(parts.model, "get_output_embeddings", lambda: None)()
            if hasattr(parts.model, "model")
            else None
        )
        if head is None:
            raise ModelError(
                f"{name}: {type(parts.model).__name__} has no head: load it with AutoModelForImageTextToText"
            )
        family = parts.family(name, parts.model, parts.images, parts.videos, tokens_per_frame)
        unpack(parts.model)
        language = family.language
        config = language.config
        check_layers(name, config.to_dict())
        rope = family.rope(rope_of(name, language, family.axes))
        attention = language.layers[0].self_attn
        tokenizer = TextTokenizer.of(parts.tokenizer.backend_tokenizer)
        if system is not None:
            tokenizer.check_plain("system=", system)
        if isinstance(tokens_per_frame, int) and tokens_per_frame < 1:
            raise ValueError(f"tokens_per_frame={tokens_per_frame}: expected 1 or more")
        with torch.inference_mode(), fitting(name):
            rows, columns = family.largest()
            native = family.native_tokens()
        words = family.text
        if not mosaic:
            template = parts.chat_template or named_template(getattr(parts.tokenizer, "chat_template", None))
            special = {key: str(token) for key, token in parts.tokenizer.special_tokens_map.items()}
            prompt = prompt_from(template, special, words.mark, words.prompt, origin, system)
        else:  # a model made for streams says itself how it is asked
            if system is not None:
                raise no_template_for_system(name)
            template = None
            prompt = Prompt(mosaic.get("prefix", ""), mosaic.get("template", "{question}"))
        words = words.parted(prompt.between)
        text = most_tokens(words, tokenizer)
        prefix, question, follow_up = prompt.whole()
        prompt.check(name, tokenizer)
        first = parts.tokenizer.bos_token
        if first and first in parts.tokenizer.convert_ids_to_tokens(parts.tokenizer("").input_ids):
            prefix = prefix if prefix.startswith(first) else first + prefix  # as the processor begins a text
        side = mosaic.get("image_size") or getattr(parts.model.config.vision_config, "image_size", None) or 0
        height, width = (side, side) if isinstance(side, int) else side
        spec = VlmSpec(
            name=parts.folder.name,
            layers=int(config.num_hidden_layers),
            q_heads=int(config.num_attention_heads),
            kv_heads=int(config.num_key_value_heads),
            head_dim=int(attention.head_dim),
            hidden=int(config.hidden_size) * (1 + family.deep_layers),
            rope=rope,
            scale=float(attention.scaling),
            tokens_per_frame=rows * columns + text,
            layout="transformers",
            native_tokens_per_frame=native + text,
            temporal_patch_size=family.temporal_patch_size,
            tokens_per_second=family.tokens_per_second,
            grid=(rows, columns),
            embedding_dim=int(config.hidden_size),
            image_size=(int(height), int(width)),
            image_mean=_triple(mosaic.get("image_mean", getattr(parts.images, "image_mean", 0.5))),
            image_std=_triple(mosaic.get("image_std", getattr(parts.images, "image_std", 0.5))),
            vocab_size=int(head.weight.shape[0]),
            eos_token_ids=_end_tokens(parts, mosaic),
            video_window=int(mosaic.get("video_window", 0)),
            context=_context(mosaic, config),
            policy_settings=card_settings(parts.folder, mosaic),
            sampling=_sampling(parts.model),
            fps=float(mosaic.get("fps", 1.0)),
            template=question,
            follow_up=follow_up,
            answered=prompt.answered,
            prefix=prefix,
            thinking=thinking_of(template, question, tokenizer.has),
            system=system,
        )
        return cls(
            family, head, tokenizer, words, spec, fixed="image_size" in mosaic and isinstance(family, Llava)
        )

    def release(self) -> None:
        """Let the model attend as it did before; the engine over it is then of no use."""
        give_back(self._language)

    def try_once(self) -> None:
        """One frame, one token. ModelError if they are not finite; whatever torch raises if parts differ."""
        frame = self.encode(np.full((64, 64, 3), 127, np.uint8), 0.0, 0.0, 0)
        logits = self.forward(self.embed_text([0]), lambda layer, q, k, v: q)
        assert logits is not None
        if not (np.isfinite(frame.tokens).all() and np.isfinite(logits).all()):
            raise ModelError(f"{self._spec.name}: NaN or infinity in what its weights make of a grey frame")

    @property
    def family(self) -> Family:
        """What it is made of: model, image processor, settings."""
        return self._family

    @property
    def spec(self) -> VlmSpec:
        """What config, processor and prompt said when the model was loaded."""
        return self._spec

    def encode(self, frame: FrameArray, pts: float, elapsed: float, number: int) -> EncodedFrame:
        """RGB uint8 [H, W, 3], or so many of them as make a picture, at `pts` seconds; see the protocol."""
        family, spec = self._family, self._spec
        check_frames(frame, spec.temporal_patch_size)
        lead = self._tokenizer.encode(self._words.lead(max(pts, 0.0), number))
        trail = self._tokenizer.encode(self._words.trail)
        with torch.inference_mode():
            picture = self._picture(np.ascontiguousarray(frame))
        features = _floats(picture.features)
        tokens = np.concatenate([self.embed_text(lead), features, self.embed_text(trail)])
        if len(tokens) > spec.tokens_per_frame:
            raise ValueError(
                f"a frame at {pts:.1f} s has {len(tokens)} tokens; {spec.tokens_per_frame} were planned"
            )
        rate = family.tokens_per_second
        return EncodedFrame(
            tokens,
            features[:, : spec.embedding_dim].mean(axis=0),
            picture.columns,
            len(lead),
            len(trail),
            absolute_position(elapsed, rate) if rate else -1,
        )

    def check(self, height: int, width: int) -> None:
        """ValueError for a frame of a size that encode() would refuse."""
        self._family.check(height, width)

    def embed_text(self, ids: Sequence[int]) -> FloatArray:
        """Token ids -> [T, hidden]. ValueError for an id outside the vocabulary."""
        table, newline = self._language.get_input_embeddings(), self._newline
        count = int(table.weight.shape[0])
        wrong = [i for i in ids if not 0 <= i < count + (newline is not None)]
        if wrong:
            raise ValueError(f"token id {wrong[0]} is outside the vocabulary of {count}")
        out = np.zeros((len(ids), self._spec.hidden), np.float32)
        words = torch.tensor([min(i, count - 1) for i in ids], dtype=torch.long, device=table.weight.device)
        with torch.inference_mode():
            out[:, : self._spec.embedding_dim] = _floats(table(words))
        for i in np.flatnonzero(np.asarray(ids) == count):
            out[i, : self._spec.embedding_dim] = _floats(newline)
        for at, token in enumerate(ids):
            if (own := self._own_words.get(token)) is not None:
                out[at, : self._spec.embedding_dim] = own
        return out

    def tokenize(self, text: str, plain: tuple[int, int] | None = None) -> list[int]:
        """Text -> token ids, none added; the newline of a video is the id behind the last."""
        if self._newline is None:
            return self._tokenizer.encode(text, plain)
        newline = int(self._language.get_input_embeddings().weight.shape[0])
        return encode_with_newline(self._tokenizer, text, plain, newline)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Token ids -> text, special tokens left out."""
        return self._tokenizer.decode(ids)

    def forward(self, embeds: FloatArray, attend: Attend, want_logits: bool = True) -> FloatArray | None:
        """Run the decoder over [T, hidden]: the last token's logits [vocab_size], or None."""
        language = self._language
        device = language.rotary_emb.inv_freq.device
        width = self._spec.embedding_dim
        with torch.inference_mode(), attending(attend):
            rows = torch.from_numpy(embeds).to(device, language.dtype)[None]
            first, *deep = rows.split(width, dim=-1)
            extra: dict[str, Any] = {}
            if deep:
                everywhere = torch.ones(rows.shape[:2], dtype=torch.bool, device=device)
                extra = {
                    "visual_pos_masks": everywhere,
                    "deepstack_visual_embeds": [part[0] for part in deep],
                }
            out = language(
                inputs_embeds=first,
                position_ids=zero_positions(language, len(embeds), self._family.axes),
                use_cache=False,
                **extra,
            )
            if not want_logits:
                return None
            return _floats(self._head(out.last_hidden_state[:, -1])[0])

    def _picture(self, frame: FrameArray) -> Picture:
        if not self._fixed:
            return self._family.encode(frame)
        spec = self._spec
        pixels = normalise(resize_area(frame, *spec.image_size), spec.image_mean, spec.image_std)
        assert isinstance(self._family, Llava)
        return self._family.encode_pixels(torch.from_numpy(pixels))


@contextmanager
def fitting(name: str) -> Iterator[None]:
    """What torch and transformers raise inside, as a ModelError: config, processor and weights differ."""
    try:
        yield
    except (ModelError, *OF_THE_MACHINE):
        raise
    except Exception as error:
        check_memory(error, name)
        cause = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"{name}: its parts do not fit together ({cause})") from None


def _floats(x: torch.Tensor) -> FloatArray:
    """As float32 NumPy: a view where it is that already."""
    return np.ascontiguousarray(x.detach().to("cpu", torch.float32).numpy())


def _triple(value: Any) -> tuple[float, float, float]:
    values = list(value) if isinstance(value, list | tuple) else [value] * 3
    r, g, b = (float(v) for v in (values + values)[:3])
    return r, g, b


def _context(mosaic: dict[str, Any], config: Any) -> int:
    """Positions the decoder was trained for; 0: not said, or the model was made for streams."""
    said = mosaic.get("context", 0) if mosaic else longest_context(config)
    return min(int(said), MOST_CONTEXT)


def _sampling(model: Any) -> dict[str, float | int]:
    """As the model's generation config has it."""
    generation = getattr(model, "generation_config", None)
    names = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")
    return sampling_said({name: getattr(generation, name, None) for name in names})


def _end_tokens(parts: Parts, mosaic: dict[str, Any]) -> tuple[int, ...]:
    config = parts.model.config
    text = getattr(config, "text_config", None)
    generation = getattr(parts.model, "generation_config", None)
    found = [
        mosaic.get("eos_token_id"),
        *(getattr(c, "eos_token_id", None) for c in (generation, config, text)),
    ]
    for value in [*found, parts.tokenizer.eos_token_id]:
        if value is not None:
            return tuple(int(v) for v in value) if isinstance(value, list | tuple) else (int(value),)
    raise ModelError(
        f"{parts.folder}: no eos_token_id in generation_config.json, config.json or the tokenizer"
    )
