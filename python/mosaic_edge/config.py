"""Settings of a session: sizes as byte strings, policy by name, everything else by what the cap allows."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypedDict

from mosaic_edge import DEFAULT_POLICY
from mosaic_edge.models.vlm import VlmSpec
from mosaic_edge.shown import shown
from mosaic_edge.spill_folder import spill_folder

if TYPE_CHECKING:
    from mosaic_edge._core import Policy

_UNITS = {
    "": 1,
    "b": 1,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
}
_MOST_BYTES = 1 << 50
_SMALL_MODEL = 4096  # bytes of keys and values a token
_BYTES_OF_A_THREAD = 16 << 20
BACKENDS = ("cpu", "cuda")


def parse_bytes(size: int | str, knob: str = "memory") -> int:
    """Bytes of `size`: an int, or a string such as "64MiB", "1.5 GiB", "800KB".

    Raises ValueError naming the knob for anything else, zero and negative sizes included.
    """
    given = size
    if isinstance(size, bool) or not isinstance(size, int | str):
        raise ValueError(f"{knob}={shown(size)}: expected bytes as an int or a string such as '64MiB'")
    if isinstance(size, str):
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*", size)
        if match is None or match[2].lower() not in _UNITS:
            raise ValueError(f"{knob}={shown(size)}: expected such as '64MiB' (units: KiB MiB GiB KB MB GB)")
        size = int(min(float(match[1]) * _UNITS[match[2].lower()], _MOST_BYTES))
    if size <= 0:
        raise ValueError(f"{knob}={shown(given)}: expected more than zero bytes")
    if size >= _MOST_BYTES:
        raise ValueError(f"{knob}={shown(given)}: expected less than {_MOST_BYTES} bytes")
    return size


def format_bytes(size: float) -> str:
    """`size` bytes in binary units with one decimal: "48.0 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024 or unit == "GiB":
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError


class SessionSettings(TypedDict, total=False):
    """The fields of SessionConfig as keywords, for an editor to complete: Engine.session(memory="64MiB")."""

    memory: int | str
    policy: str | Policy
    policy_settings: dict[str, float | bool | str]
    exact: str
    window_codec: str | None
    packed: str | None
    disk: int | str | None
    spill_dir: str | None
    window_frames: int
    branch_tokens: int
    retrieve_tokens: int
    clusters: int
    scenes: int
    max_cluster_tokens: int
    exact_share: float
    index_share: float
    positions: str
    skip_alike: float
    summaries: bool
    refresh_every: int
    overflow: str
    prefetch: bool
    backend: str
    device_memory: int | str | None
    kernel_threads: int
    faults: int
    trace: str | None


@dataclass(frozen=True)
class SessionConfig:
    """What a session is given. None and 0: chosen by the cap and the model, see cpp/runtime/plan.h."""

    memory: int | str = "64MiB"
    """The cap: everything that grows with the stream, every DRAM tier, index and scratch included."""
    policy: str | Policy = DEFAULT_POLICY
    """A name (`_core.policies()` lists them), or an object of a class derived from mosaic_edge.Policy."""
    policy_settings: dict[str, float | bool | str] = field(default_factory=dict)
    """Settings of the policy by name: numbers, and words where it has a choice."""
    exact: str = "fp16"
    """Codec of open pages, and of window and question where window_codec names no other: "fp16" or "fp32"."""
    window_codec: str | None = None
    """Codec of prefix, window and question: "fp16", "fp32" or "k8v8" (a byte a number). Default: the exact
    one; k8v8 where fp16 would take over a sixteenth of the memory, under every policy but `full`."""
    packed: str | None = None
    """Codec of what yields first: "k5v3", "k4v4", "k4v3", "k3v3", "k2v2", "k8v8" (single tokens: what `edge`
    keeps), "int4", "int8" or the exact one. Default: k5v3 for `edge`, exact for `full`, else int4."""
    disk: int | str | None = None
    """Quota of the spill file, e.g. "2GiB"; None: no disk tier."""
    spill_dir: str | None = None
    """Where the (unnamed) spill file is made; default: the system's temporary directory, or the user's cache
    directory where that is in RAM; see spill_folder.py."""
    window_frames: int = 0
    """Newest frames that are kept whole and always read; 0: what the model's own video window needs,
    at least 3; for a model without one 8, with `edge` by tokens 1 to 4, by the cap."""
    branch_tokens: int = 0
    """Room for dialogue, question and answer together, in tokens; 0: a sixteenth of the cap, 32 to 512; for a
    model that thinks a quarter of it, up to 2,560, where the rest then fits."""
    retrieve_tokens: int = 0
    """Stored tokens read per layer for a question, by policies that read a part; 0: by policy and cap, at
    most 64 frames. `edge`: per layer and KV head, of what is on disk; 0: by the cap, 64 to 4,096."""
    clusters: int = 0
    """Rows of a layer's index, for policies that cluster tokens; 0: by index_share."""
    scenes: int = 0
    """Most scenes that `mosaic` tells apart; 0: by the cap, 4 to 64."""
    max_cluster_tokens: int = 64
    """Most tokens of a cluster that are kept beside its mean."""
    exact_share: float = 0.15
    """Of the bytes for pages, those that stay exact (policies that cluster tokens)."""
    index_share: float = 0.0
    """Of what the fixed parts leave, for the index (policies that cluster tokens) or for what finds tokens on
    disk (`edge`); 0: by the policy."""
    positions: str = "auto"
    """Positions of what is attended: "original" as long as they fit the model's context (then gaps where
    nothing is kept close up), "contiguous" in time order, "auto": original where the model names its
    context or reads absolute time (Qwen2.5-VL)."""
    skip_alike: float = 0.0
    """A frame whose picture is this alike to the last one taken in (mean cosine of its tokens, -1 to 1) is
    left out before the decoder sees it, and counted as `duplicate_frames`; 0: none is."""
    summaries: bool = True
    """Attend the mean of clusters that are not read (policies that have such means)."""
    refresh_every: int = 0
    """Answer tokens after which a question selects anew; 0: once."""
    overflow: str = "refuse"
    """Numbers of a query, key or value that half precision does not hold (beyond 65,504): "refuse" the frame
    or question, naming layer and head, or "saturate": take 65,504 instead, counted (`saturated_numbers`)."""
    prefetch: bool = True
    """Have the disk ready for what the next layer is likely to read while this one is computed."""
    backend: str = "cpu"
    """Where the memory's kernels run: "cpu", or "cuda"."""
    device_memory: int | str | None = None
    """Of the cap, bytes for pages in a GPU's own memory, beside its window and tables; the other packed pages
    lie in pinned host memory. None: all on the GPU."""
    kernel_threads: int = 0
    """Threads of the CPU kernels, each with scratch inside the cap; 0: one for a small model, else one for
    every 16 MiB of the cap, at most as many as there are cores."""
    faults: int = 0
    """For tests: every nth page read from, written to or given a slot on disk fails; 0: none."""
    trace: str | None = None
    """Write a trace of the session's work to this file when it is closed, see trace.py; None: no trace."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.type == "int":
                good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31
                expected = f"a whole number, 0 to {(1 << 31) - 1}"
            elif item.type == "bool":
                good, expected = isinstance(value, bool), "True or False"
            elif item.type == "float":
                good = isinstance(value, int | float) and not isinstance(value, bool)
                good, expected = good and abs(value) < 1e300, "a finite number"
            elif item.type in ("str", "str | None"):
                good = "\0" not in value if isinstance(value, str) else value is None and item.type != "str"
                expected = "text without a zero byte"
            else:
                continue
            if not good:
                raise ValueError(f"{item.name}={shown(value)}: expected {expected}")
        if isinstance(self.policy, str) and not self.policy.isprintable():
            raise ValueError(f"policy={shown(self.policy)}: expected the name of a policy")
        if not isinstance(self.policy_settings, dict):
            raise ValueError(
                f"policy_settings={shown(self.policy_settings)}: expected a dict of settings by name"
            )
        if self.backend not in BACKENDS:
            raise ValueError(f"backend={shown(self.backend)}: expected one of {', '.join(BACKENDS)}")
        if not -1 <= self.skip_alike <= 1:
            raise ValueError(f"skip_alike={self.skip_alike}: expected a cosine, or 0 for none")
        for name, given in self.policy_settings.items():
            number = isinstance(given, int | float) and abs(given) < 1e300
            if not isinstance(name, str) or not (number or isinstance(given, str)):
                raise ValueError(
                    f"policy_settings: {shown(name)}={shown(given)}: expected a name, and a number or a word"
                )

    def core_arguments(self, spec: VlmSpec, prefix_tokens: int) -> tuple[Any, ...]:
        """Of the core's plan() and KvMemory(): model, memory, policy, settings, backend, threads."""
        from mosaic_edge.thinking_room import room_to_think  # needs the core, which settings alone do not

        made = self._core_arguments(spec, prefix_tokens)
        return made if self.branch_tokens or not spec.thinks else room_to_think(made, spec)

    def _core_arguments(self, spec: VlmSpec, prefix_tokens: int) -> tuple[Any, ...]:
        return (
            core_model(spec),
            self.core_memory(spec, prefix_tokens),
            self.policy,
            self.core_settings(spec),
            self.backend,
            self.core_threads(spec),
        )

    def core_memory(self, spec: VlmSpec, prefix_tokens: int) -> dict[str, Any]:
        """The core's MemoryConfig fields."""
        return {
            "cap_bytes": parse_bytes(self.memory),
            "exact": self.exact,
            "window_codec": self.window_codec,
            "packed": self.packed,
            "exact_share": self.exact_share,
            "index_share": self.index_share,
            "device_bytes": self._optional_bytes("device_memory"),
            "disk_bytes": self._optional_bytes("disk"),
            "spill_dir": "" if self.disk is None else spill_folder(self.spill_dir),
            "window_frames": self.window_frames,
            "prefix_tokens": prefix_tokens,
            "branch_tokens": self.branch_tokens,
            "retrieve_tokens": self.retrieve_tokens,
            "clusters": self.clusters,
            "scenes": self.scenes,
            "max_cluster_tokens": self.max_cluster_tokens,
            # Absolute time means something at its own place alone.
            "positions": "original"
            if self.positions == "auto" and spec.tokens_per_second
            else self.positions,
            "summaries": self.summaries,
            "refresh_every": self.refresh_every,
            "overflow": self.overflow,
            "prefetch": self.prefetch,
        }

    def _optional_bytes(self, knob: str) -> int:
        size = getattr(self, knob)
        return 0 if size is None else parse_bytes(size, knob)

    def core_threads(self, spec: VlmSpec) -> int:
        """Threads of the CPU kernels: handing work over costs more than it brings for a small model, and each
        one's scratch, up to a mebibyte, is the cap's."""
        if self.kernel_threads or spec.kv_bytes_per_token <= _SMALL_MODEL:
            return self.kernel_threads or 1
        return max(min(os.cpu_count() or 1, parse_bytes(self.memory) // _BYTES_OF_A_THREAD), 1)

    def core_settings(self, spec: VlmSpec | None = None) -> dict[str, float | str]:
        """The policy's settings as numbers and words: those of the model's card, then the session's own."""
        card = spec.policy_settings.get(self.policy, {}) if spec and isinstance(self.policy, str) else {}
        if self.policy_settings.get("unit", card.get("unit")) != card.get("unit"):
            card = {}  # what it chose is of its own unit
        return {
            name: value if isinstance(value, str) else float(value)
            for name, value in {**card, **self.policy_settings}.items()
        }


def core_model(spec: VlmSpec) -> dict[str, Any]:
    """The core's ModelShape fields of a model."""
    rope = spec.rope
    return {
        "layers": spec.layers,
        "q_heads": spec.q_heads,
        "kv_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "scale": spec.scale,
        "rope": {
            "rotary_dim": rope.rotary_dim,
            "theta": rope.theta,
            "layout": rope.layout,
            "sections": list(rope.sections) if any(rope.sections) else [],
            "sections_interleaved": rope.sections_interleaved,
            "grid_follows_time": rope.grid_follows_time,
            "frequencies": list(rope.frequencies),
        },
        "embedding_dim": spec.embedding_dim,
        "frame_tokens": spec.tokens_per_frame,
        "video_window": spec.video_window,
        "context": spec.context,
    }
