"""Options that commands share. A field of a group below is an option of every command that has the group, and
a key of a profile: a new option is one line here.

An option that is typed wins, then the profile, then the option's default.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_origin, get_type_hints

import typer

from mosaic_edge import DEFAULT_POLICY

if TYPE_CHECKING:
    from mosaic_edge.engine import Engine
    from mosaic_edge.profiles import Profile

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else.")]
Backend = Annotated[str, typer.Option(help="Whose kernels the memory runs on: cpu or cuda.")]
Seed = Annotated[int, typer.Option(help="Which world.")]
TraceFile = Annotated[
    Path | None,
    typer.Option("--trace", help="Write a trace for Perfetto (ui.perfetto.dev) or chrome://tracing."),
]
StateDir = Annotated[
    Path | None,
    typer.Option("--state", help="Folder that sessions are saved in and, when started anew, restored from."),
]
StateEvery = Annotated[float, typer.Option("--state-every", help="Minutes from one saving to the next.")]
_ProfileName = Annotated[
    str | None,
    typer.Option(help="A board's settings, by name or as a .toml: `doctor` lists them; options win."),
]
_MODEL = "mosaic-tiny, a directory of ONNX graphs or as transformers saves it, or a hub id."


def _tokens(said: str) -> int | str:
    """A whole number, or the one word there is; Engine.load says what is wrong with another."""
    return int(said) if said.isdecimal() else said


@dataclass(frozen=True)
class ModelOptions:
    """What Engine.load is given: `model`, and its keywords; [model] of a profile."""

    model: Annotated[str, typer.Option(help=_MODEL)] = "mosaic-tiny"
    layout: Annotated[str | None, typer.Option(help="onnx or transformers, of a model that has both.")] = None
    device: Annotated[str | None, typer.Option(help="Where the model runs: cpu or cuda.")] = None
    threads: Annotated[int | None, typer.Option(help="Of the model's arithmetic; 0: all cores.")] = None
    variant: Annotated[str | None, typer.Option(help="ONNX decoder: q4, fp16, ... Default: the best.")] = None
    dtype: Annotated[str | None, typer.Option(help="transformers: fp32, fp16 or bf16.")] = None
    quantization: Annotated[str | None, typer.Option(help="transformers: int4 or int8 weights.")] = None
    tokens_per_frame: Annotated[
        Any,
        typer.Option(
            help="The most a picture becomes; native: as its processor.", parser=_tokens, metavar="N"
        ),
    ] = None
    system: Annotated[str | None, typer.Option(help="A system prompt, for models with a chat template.")] = (
        None
    )

    @staticmethod
    def of_profile(profile: Profile) -> dict[str, Any]:
        """What a profile says of these."""
        return profile.model

    def keywords(self) -> dict[str, Any]:
        """Keywords of Engine.load, those that were given."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "model"}
        return {name: value for name, value in values.items() if value is not None}

    def load(self) -> Engine:
        """Engine.load as the options say."""
        from mosaic_edge.engine import Engine

        return Engine.load(self.model, **self.keywords())


@dataclass(frozen=True)
class SessionOptions:
    """Fields of SessionConfig; [session] of a profile, which may have more than the options."""

    memory: Annotated[
        str, typer.Option(help="The cap: everything that grows with the stream, such as 64MiB.")
    ] = "64MiB"
    policy: Annotated[str, typer.Option(help="What is kept under the cap; `doctor` lists the names.")] = (
        DEFAULT_POLICY
    )
    disk: Annotated[
        str | None, typer.Option(help="Quota of the spill file, such as 2GiB. Default: none.")
    ] = None
    backend: Backend = "cpu"
    more: dict[str, Any] = field(default_factory=dict)
    """Of a profile: fields that have no option."""

    @staticmethod
    def of_profile(profile: Profile) -> dict[str, Any]:
        """What a profile says of these."""
        return profile.session

    def keywords(self, *without: str) -> dict[str, Any]:
        """Fields of SessionConfig, for Engine.session(**keywords)."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "more"}
        return {name: v for name, v in {**self.more, **values}.items() if name not in without}


@dataclass(frozen=True)
class SourceOptions:
    """How a source is read."""

    fps: Annotated[float | None, typer.Option(help="Frames a second. Default: the model's.")] = None

    @staticmethod
    def of_profile(profile: Profile) -> dict[str, Any]:
        """What a profile says of these."""
        return {} if profile.fps is None else {"fps": profile.fps}


@dataclass(frozen=True)
class AnswerOptions:
    """How an answer is drawn, and from what; what is not said is as the model's makers have it."""

    since: Annotated[float | None, typer.Option(help="Read only what was seen from this second on.")] = None
    max_tokens: Annotated[int | None, typer.Option(help="The most tokens of an answer.")] = None
    temperature: Annotated[float | None, typer.Option(help="0: the likeliest token each time.")] = None
    top_k: Annotated[int | None, typer.Option(help="Draw among so many; 0: all.")] = None
    top_p: Annotated[float | None, typer.Option(help="Draw among this share; 1: all.")] = None
    seed: Annotated[int | None, typer.Option(help="Of the draws: the same seed, the same answer.")] = None

    @staticmethod
    def of_profile(profile: Profile) -> dict[str, Any]:
        """What a profile says of these."""
        return {}

    def keywords(self, engine: Engine) -> dict[str, Any]:
        """since= and sampling= of Session.ask. ValueError for what they cannot be."""
        from mosaic_edge.question import seconds
        from mosaic_edge.sampling import SamplingParams

        if self.since is not None and seconds(self.since, "since") < 0:
            raise ValueError(f"since={self.since:g}: expected seconds from 0 on")
        drawn = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "since"}
        said = {name: value for name, value in drawn.items() if value is not None}
        return {"since": self.since, "sampling": SamplingParams.from_model(engine.spec, **said)}


def traced(keywords: dict[str, Any], trace: Path | None) -> dict[str, Any]:
    """Fields of SessionConfig with --trace among them, where it was given."""
    return keywords if trace is None else {**keywords, "trace": str(trace)}


def with_options(function: Callable[..., None]) -> Callable[..., None]:
    """`function` as typer takes it: a parameter that is a group stands for an option a field, and --profile
    is there as well. A group's defaults are those of the parameter's own default."""
    signature, hints = inspect.signature(function), get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    if not groups:
        return function
    taken: list[inspect.Parameter] = []

    def take(name: str, default: object, hint: object) -> None:
        kind = inspect.Parameter.KEYWORD_ONLY
        taken.append(inspect.Parameter(name, kind, default=default, annotation=hint))

    take("context", inspect.Parameter.empty, typer.Context)
    for name, parameter in signature.parameters.items():
        if name not in groups:
            take(name, parameter.default, hints[name])
            continue
        default = groups[name]() if parameter.default is parameter.empty else parameter.default
        for option, hint in _options(groups[name]).items():
            take(option, getattr(default, option), hint)
    take("profile", None, _ProfileName)

    @wraps(function)
    def call(context: typer.Context, profile: str | None, **values: Any) -> None:
        for name, group in groups.items():
            given = {option: values.pop(option) for option in _options(group)}
            values[name] = group(**given if profile is None else _under(context, profile, group, given))
        function(**values)

    call.__signature__ = inspect.Signature(taken)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in taken}
    return call


def _options(group: type[Any]) -> dict[str, Any]:
    """The fields of a group that are options, with what typer reads of them."""
    hints = get_type_hints(group, include_extras=True)
    return {f.name: hints[f.name] for f in fields(group) if get_origin(hints[f.name]) is Annotated}


def _under(context: typer.Context, name: str, group: type[Any], given: dict[str, Any]) -> dict[str, Any]:
    """`given` options, those that were not typed as the profile has them; what has no option is "more"."""
    from mosaic_edge.profiles import read_profile

    said = group.of_profile(read_profile(name))
    values = dict(given)
    for option in given:
        source = context.get_parameter_source(option)
        if option in said and (source is None or source.name == "DEFAULT"):
            values[option] = said[option]
    more = {key: value for key, value in said.items() if key not in given}
    return {**values, "more": more} if more else values
