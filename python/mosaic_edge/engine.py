"""START HERE: Engine loads a model, Session streams video into its capped memory and answers questions.

engine = Engine.load("mosaic-tiny")
with engine.session(memory="2MiB") as session:
    session.append_video("walk.mp4", fps=1.0)
    reply = session.ask("what colour was the ball ?")
    print(reply.text, reply.evidence)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mosaic_edge import _core
from mosaic_edge.config import SessionConfig, SessionSettings
from mosaic_edge.models import TINY, load_model
from mosaic_edge.models.vlm import Vlm, VlmSpec
from mosaic_edge.reply import Reply, ReplyStream
from mosaic_edge.sampling import SamplingParams
from mosaic_edge.session import Session
from mosaic_edge.shown import shown
from mosaic_edge.snapshot import Snapshot
from mosaic_edge.snapshot_file import opened

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Engine", "Reply", "ReplyStream", "Session"]


class Engine:
    """A loaded model. Sessions share its weights; each has a memory of its own."""

    def __init__(self, model: Vlm) -> None:
        self.model = model

    @classmethod
    def load(
        cls,
        model: str | Path = TINY,
        *,
        layout: str | None = None,
        device: str | None = None,
        threads: int | None = None,
        variant: str | None = None,
        dtype: str | None = None,
        quantization: str | None = None,
        tokens_per_frame: int | Literal["native"] | None = None,
        system: str | None = None,
        allow_pickle: bool = False,
    ) -> Engine:
        """Load "mosaic-tiny" (shipped with the package), a directory of ONNX graphs or in the transformers
        layout, or a hub id. Every keyword is about the model; what is about its memory, session() takes.

        layout: "transformers" (safetensors) or "onnx" where a directory holds both; None: safetensors first,
        `spec.layout` says what was taken. device: where the model runs, "cpu" or "cuda"; None: CPU for ONNX,
        for transformers a GPU if there is one. threads: of the model's own arithmetic. tokens_per_frame: the
        most a picture becomes, for models that take any aspect (default 256 for ONNX, 196 for transformers;
        "native": what its processor allows). system: a system prompt, put where the model's chat template has
        its place for one (ValueError where it has none). ONNX only: variant, the decoder's suffix ("q4",
        "fp16", ...) instead of the best one there is for `device`. Transformers only: dtype ("fp32", "fp16",
        "bf16"), quantization ("int4", "int8"), allow_pickle (weights that can run code). Raises ModelError (a
        ValueError) naming what is missing.
        """
        return cls(
            load_model(
                model,
                layout=layout,
                device=device,
                threads=threads,
                variant=variant,
                dtype=dtype,
                quantization=quantization,
                tokens_per_frame=tokens_per_frame,
                system=system,
                allow_pickle=allow_pickle,
            )
        )

    @property
    def spec(self) -> VlmSpec:
        """Shapes and facts of the model."""
        return self.model.spec

    def plan(
        self, config: SessionConfig | None = None, **settings: Unpack[SessionSettings]
    ) -> dict[str, Any]:
        """How `session(config, **settings)` would split its cap, taking nothing; what a picture takes,
        what it would at its own size, and the positions there are; whether the model thinks, most tokens of
        thought and answer, and what of its published prompt is left out. Raises MemoryCapError."""
        config = _config(config, settings)
        prefix = self.model.tokenize(self.spec.prefix) if self.spec.prefix else []
        plan: dict[str, Any] = _core.plan(*config.core_arguments(self.spec, len(prefix)))
        plan["tokens_per_frame"] = self.spec.tokens_per_frame
        plan["native_tokens_per_frame"] = self.spec.native_tokens_per_frame or self.spec.tokens_per_frame
        plan["context"] = self.spec.context
        plan["thinks"] = self.spec.thinks
        plan["left_out"] = self.spec.left_out
        plan["max_tokens"] = min(SamplingParams.from_model(self.spec).max_tokens, plan["branch_tokens"])
        return plan

    def session(self, config: SessionConfig | None = None, **settings: Unpack[SessionSettings]) -> Session:
        """Open a session; settings are the fields of SessionConfig (memory=, policy=, disk=, ...), over those
        of `config` where both are given.

        Raises MemoryCapError when the cap cannot hold the least there must be, ValueError for a bad setting.
        """
        return Session(self.model, _config(config, settings))

    def restore(
        self,
        path: str | Path,
        config: SessionConfig | None = None,
        **settings: Unpack[SessionSettings],
    ) -> Session:
        """The session that `Session.save(path)` wrote, as if it had never ended.

        Settings are the file's; `settings` (or `config`) say where things are (spill_dir=, trace=), give a
        policy that is an object anew, and what else they say must be as it was: memory= of a file from
        elsewhere bounds what it may take. Raises ValueError naming what differs (model, policy, a setting,
        the format) or that the file is damaged, MemoryCapError and DeviceError as session().
        """
        _check(config)
        with opened(path) as descriptor:
            saved = Snapshot(descriptor)
            return Session(self.model, saved.config(config, dict(settings)), saved)


def _config(config: SessionConfig | None, settings: SessionSettings) -> SessionConfig:
    _check(config)
    return SessionConfig(**settings) if config is None else replace(config, **settings)


def _check(config: object) -> None:
    if config is not None and not isinstance(config, SessionConfig):
        raise ValueError(
            f"config={shown(config)}: expected a SessionConfig, or settings by name (memory=, ...)"
        )
