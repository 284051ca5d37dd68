"""The protocol every engine follows: what a vision-language model tells (`VlmSpec`) and does (`Vlm`).

A model never holds KV of its own. It computes q, k, v of a layer before rotation and hands them to the
`attend` it was given; what comes back is what that layer goes on with. Memory, positions and selection live
behind that one call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mosaic_edge.models.thinking import Thinking

FloatArray: TypeAlias = NDArray[np.float32]
FrameArray: TypeAlias = NDArray[np.uint8]

Attend: TypeAlias = Callable[[int, FloatArray, FloatArray, FloatArray], FloatArray]
"""attend(layer, q [T, H_q, D], k [T, H_kv, D], v [T, H_kv, D]) -> out [T, H_q, D]; float32, q and k before
rotation.
"""


@runtime_checkable
class DeviceAttend(Protocol):
    """An `attend` that also takes arrays of other libraries (__dlpack__) where its memory's kernels run."""

    device: str
    """"cpu" or "cuda": where such arrays may lie."""

    def __call__(self, layer: int, q: Any, k: Any, v: Any, out: Any = None, stream: int | None = None) -> Any:
        """As `Attend`; writes into `out` and returns it. Without `out`, q, k, v are NumPy arrays.

        stream: a CUDA stream that the work is queued on; without one `out` is written when this returns.
        """
        ...


MOST_CONTEXT = 1 << 24
"""Positions that a memory counts; a model that says more has as many."""


class ModelError(ValueError):
    """A model directory or file that cannot be used: one line that says what, where and what was expected."""

    exit_code = 2


@dataclass(frozen=True)
class RopeSpec:
    """How a model rotates its queries and keys; fields mirror the core's RopeSpec.

    The first `rotary_dim` channels of a head rotate by position * theta^(-2i/rotary_dim). `half` pairs
    channel i with i + rotary_dim/2 (Llama, Qwen), `interleaved` pairs 2i with 2i + 1 (GPT-J), `none` rotates
    nothing. `sections` are the frequencies taken by (t, h, w) under M-RoPE, all zero in one dimension; they
    are chunks (Qwen2.5-VL) unless `sections_interleaved` (Qwen3-VL).
    """

    rotary_dim: int
    theta: float
    layout: Literal["half", "interleaved", "none"] = "half"
    sections: tuple[int, int, int] = (0, 0, 0)
    sections_interleaved: bool = False
    grid_follows_time: bool = False
    """Rows and columns are counted from the frame's position (Qwen3-VL), not from where the video began."""
    frequencies: tuple[float, ...] = ()
    """[rotary_dim/2] of a scaled RoPE (linear, llama3, longrope, yarn), instead of theta's powers; ():
    theta's."""


@dataclass(frozen=True)
class VlmSpec:
    """Everything the memory, the sampler and the frame source need to know about a model."""

    name: str
    layers: int
    q_heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    """Width of a row of tokens, as encode, embed_text and forward agree on it: the model's hidden size, or
    more where features for later layers lie beside it (Qwen3-VL's DeepStack)."""
    rope: RopeSpec
    scale: float
    """Multiplies q.k, usually 1/sqrt(head_dim)."""
    tokens_per_frame: int
    """Most tokens of a picture, text around it included."""
    grid: tuple[int, int]
    """Rows and columns of a frame's picture (the largest, where they differ; see EncodedFrame)."""
    embedding_dim: int
    """Length of the embedding of a whole frame."""
    image_size: tuple[int, int]
    """Height and width the vision encoder takes, in pixels."""
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    layout: str = ""
    """"onnx" or "transformers": which files of its directory were taken."""
    native_tokens_per_frame: int = 0
    """What `tokens_per_frame` would be if nothing but the model's own processor bounded it; 0: it is that."""
    temporal_patch_size: int = 1
    """Frames that become one picture (Qwen-VL: 2)."""
    tokens_per_second: float = 0.0
    """Temporal positions a second, where pictures stand at their absolute time (Qwen2.5-VL); 0: at the next
    one."""
    video_window: int = 0
    """Frames a video token may see, counting its own; 0 means everything."""
    context: int = 0
    """Positions the model was trained for (max_position_embeddings); 0: not known."""
    policy_settings: Mapping[str, Mapping[str, float | str]] = field(default_factory=dict)
    """Settings of policies, by the policy's name, that suit this model; a session's own come first."""
    sampling: Mapping[str, float | int] = field(default_factory=dict)
    """Fields of SamplingParams as the model's makers have its answers drawn; {}: greedily."""
    fps: float = 1.0
    """Frames a second the model was trained on."""
    template: str = "{question}"
    """The text of a question; `{question}` stands for it."""
    follow_up: str = ""
    """The text of a question after an answer that the dialogue keeps; "": `template`."""
    answered: str | None = None
    """The text between a question and its answer once another question follows, where a thought that stood
    there is taken out (`thinking`); None: all stays as it was read and said."""
    prefix: str = ""
    """The text before the video (a system prompt), possibly empty."""
    system: str | None = None
    """The system prompt that it was loaded with, part of `prefix`; None: as its template has it."""
    thinking: Thinking | None = None
    """How it marks a thought before its answer; None: it has none."""
    left_out: str = ""
    """What of the published prompt its files have no way to give, and why; "": nothing."""

    def __post_init__(self) -> None:
        if not isinstance(self.prefix, str):
            raise ModelError(f"{self.name}: prefix={self.prefix!r}: expected text")
        if not isinstance(self.template, str) or self.template.count("{question}") != 1:
            raise ModelError(
                f"{self.name}: template={self.template!r}: expected text with {{question}} in it, once"
            )

    @property
    def thinks(self) -> bool:
        """Whether its answers begin with a thought, as a rule."""
        return self.thinking is not None and self.thinking.usual

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values over all layers at two bytes a number."""
        return self.layers * self.kv_heads * self.head_dim * 2 * 2


@dataclass(frozen=True)
class EncodedFrame:
    """A frame as the decoder reads it: text (a time stamp, tags), the picture row by row, text."""

    tokens: FloatArray
    """[T, hidden], T <= tokens_per_frame."""
    embedding: FloatArray
    """[E], of the picture alone."""
    columns: int
    """Tokens in a row of the picture."""
    lead: int = 0
    """How many of the first tokens are text."""
    trail: int = 0
    """And of the last."""
    t_position: int = -1
    """M-RoPE with absolute time: the temporal position, counted from the first frame; -1: the next one."""


@runtime_checkable
class Vlm(Protocol):
    """A vision-language model whose attention is done by someone else."""

    @property
    def spec(self) -> VlmSpec:
        """What the model is; never changes."""
        ...

    def encode(self, frame: FrameArray, pts: float, elapsed: float, number: int) -> EncodedFrame:
        """Encode an RGB frame uint8 [H, W, 3] seen at `pts` seconds, `elapsed` after the first, `number`
        frames before it. A model's text, sizes and positions may follow from that, or not.

        With a temporal_patch_size over 1 it may be so many frames of one size, [temporal_patch_size, H, W,
        3]: `pts` is then the middle of the first and the last, `elapsed` the first's, `number` counts
        pictures. A frame alone stands for all. Such a model may be a `PairVlm`.
        """
        ...

    def embed_text(self, ids: Sequence[int]) -> FloatArray:
        """Look up token ids: [T, hidden]."""
        ...

    def tokenize(self, text: str, plain: tuple[int, int] | None = None) -> list[int]:
        """Split text into token ids, without adding any of its own.

        plain: from which character to which it is text from outside, where nothing makes a control token.
        """
        ...

    def detokenize(self, ids: Sequence[int]) -> str:
        """Join token ids into text; special tokens are left out."""
        ...

    def forward(self, embeds: FloatArray, attend: Attend, want_logits: bool = True) -> FloatArray | None:
        """Run the decoder over embeds [T, hidden]; `attend` is called once per layer, in order.

        Returns the logits [vocab_size] of the last token, or None without `want_logits` (frames need none).
        """
        ...


@runtime_checkable
class PairVlm(Vlm, Protocol):
    """A model with a temporal_patch_size over 1 that says beforehand which sizes it cannot encode: a session
    asks before it holds a frame, so that one is refused when it comes and not when its picture is whole."""

    def check(self, height: int, width: int) -> None:
        """Raises ValueError for a frame of a size that `encode` would refuse."""
        ...
