"""`python tools/settings_reference.py`: write docs/settings.md - the fields of SessionConfig, the settings of
every policy, the fields of SamplingParams - from the code; `--check` only says whether it is current.

Fields, types, defaults and what they mean are those of the classes. Names of a policy's settings and the
values each takes are asked of the core, which names them when it refuses; what they mean is said here, and a
setting without a word is an error.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from mosaic_edge import SamplingParams, SessionConfig, _core, config, sampling
from mosaic_edge.models.vlm import RopeSpec, VlmSpec

PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"
UNKNOWN = "no such setting"


class Said(NamedTuple):
    """What is said of a setting beside what the core tells."""

    default: str
    meaning: str


SCORE = Said(
    "mass", "how clusters are ranked for a question: attention mass, or the mean query's dot product"
)
VALUE_WEIGHT = Said("1", "weight of values beside keys when tokens are compared; 0: keys alone")
RADIUS = Said("0.02", "squared distance within which a token joins a cluster, at the start")
BY_WORTH = {
    "score": Said(
        "both",
        "what a token is worth: the attention it receives times the norm of its value, or one of them;"
        " how its key differs from those that came after it at the same place (`tar`); attention received,"
        " less the longer ago (`decayed`), or from the text behind each picture alone (`template`); age alone"
        " (`newest`)",
    ),
    "listen": Said("16", "frames whose attention to a token is counted"),
    "key_power": Said(
        "0.5", "attention counts times the keys that shared it, to this power; 0: as it was received"
    ),
    "likeness": Said("1", "a token that is like a better one is worth less"),
    "most_tokens": Said(
        "0",
        "tokens that a head keeps at most, for models that get worse the more they read; 0: as many as fit",
    ),
}
EDGE = BY_WORTH | {
    "unit": Said("tokens", "what is kept: single tokens, or summaries of like ones (the next table)"),
    "recall": Said(
        "0.1",
        "with a disk: the share of what was given up that a question reads a head, 16 tokens at least",
    ),
    "frames_recall": Said(
        "0.1", "the same of a frame; 0 where the disk is slow: it is looked through for each"
    ),
    "rest": Said(
        "0", "1: what is looked through there and not read counts with its attention, and a mean value"
    ),
}
EDGE_SUMMARIES = {
    "score": SCORE,
    "members": Said("disk", "keep tokens beside their cluster's mean: with a disk, always, never"),
    "share": Said("0.9", "of the bytes to share out, for means, where tokens are kept too"),
    "frames": Said("6", "means read for a question, in frames' worth of tokens; 0: all"),
    "value_weight": VALUE_WEIGHT,
    "radius": RADIUS,
}
MOSAIC = {
    "unit": Said(
        "clusters",
        "what is kept: clusters and their means, or single tokens, found by clusters (the next table)",
    ),
    "published": Said("0", "1: the paper's tau=fixed, value_weight=0, score=dot, thin=0"),
    "levels": Said("nested", "clusters inside scenes, scenes alone, clusters alone, or units in time order"),
    "tau": Said("adaptive", "variance over which a cluster is cut: the paper's, by the radius, by quantiles"),
    "split": Said("deferred", "a cluster on disk is cut when it is next read, or fetched and cut at once"),
    "item": Said("token", "what joins a cluster: a token, or a frame by its mean"),
    "score": SCORE,
    "tau_max": Said("0.5", "allowed variance of a small cluster (tau=quantile: 0.95, a level)"),
    "tau_min": Said("0.2", "allowed variance of a large one (tau=quantile: 0.8, a level)"),
    "n0": Said("32", "tokens over which the one falls to the other"),
    "radius": RADIUS,
    "scene_tau": Said("0.05", "variance over which a frame opens a new scene"),
    "value_weight": VALUE_WEIGHT,
    "read_scenes": Said("0", "scenes read for a question; 0: all"),
    "thin": Said("0.25", "under pressure, a token within this share of the radius is kept in the mean only"),
}
MOSAIC_TOKENS = BY_WORTH | {
    "recall": Said(
        "0.25", "with a disk: the share of what was given up that a question reads a head, in clusters"
    ),
    "frames_recall": Said("0.25", "the same of a frame; 0 where the disk is slow"),
    "value_weight": Said("1", "weight of values beside keys when clusters are cut; 0: keys alone"),
}
INFINIPOT_V = {
    "alpha": Said("0.5", "of what is kept, chosen by TaR (unlike the newest frames); the rest by VaN"),
    "keep": Said("0.75", "of a full memory, what stays when it is thinned"),
    "recent": Said("0.125", "of the tokens, the newest, in whole frames, which stay"),
    "pool": Said("0", "average value norms over neighbours"),
    "order": Said("both", "both signals, one of them, the worst first, or every n-th token"),
}
REKV = {
    "score": Said("dot", SCORE.meaning.replace("clusters", "frames")),
    "frames": Said("64", "frames read for a question, as far as retrieve_tokens goes"),
}
MUKV = {
    "segment": Said("4", "frames of a segment"),
    "patch": Said("0", "side of a patch in tokens; 0: half the frame's, or all of a small one's"),
    "signal": Said("both", "what a token is worth"),
    "retrieval": Said("semi", "sizes ranked by the best segments, each by itself, or one inside the other"),
    "score": Said("cosine", "of a unit: cosine with the mean query, or attention mass"),
    "context": Said("5", "how many the best segments are, for the weights below"),
}
for _size, _share, _attention, _k, _weight in (
    ("patch", "0.1", "0.5", "20", "0.3"),
    ("frame", "0.1", "0.7", "32", "0.3"),
    ("segment", "0.8", "0.8", "12", "0"),
):
    MUKV[f"{_size}_share"] = Said(_share, f"of a {_size}'s tokens, those kept")
    MUKV[f"{_size}_attention"] = Said(_attention, "weight of attention received; the rest is the frequency's")
    MUKV[f"{_size}_k"] = Said(_k, f"{_size} units read for a question")
    MUKV[f"{_size}_weight"] = Said(_weight, "weight of the likeness to the best segments")

for _policy in (MOSAIC, REKV, MUKV):
    _policy["frames_read"] = Said(
        "kept",
        "what a frame reads while it streams: all pages in memory, the newest `newest_tokens` of them, or "
        "what its own queries choose, as for a question; a model with a video window reads that instead",
    )
    _policy["newest_tokens"] = Said("15000", "with frames_read=newest, tokens of a layer")
    _policy["query"] = Said(
        "question",
        "tokens by whose queries a question chooses: those of the bare question, the last of them, or all, "
        "the template's too",
    )

LISTS: tuple[tuple[str, Mapping[str, str], Mapping[str, Said]], ...] = (
    ("edge", {"unit": "tokens"}, EDGE),
    ("edge", {"unit": "summaries"}, EDGE_SUMMARIES),
    ("mosaic", {}, MOSAIC),
    ("mosaic", {"unit": "tokens"}, MOSAIC_TOKENS),
    ("infinipot-v", {}, INFINIPOT_V),
    ("rekv", {}, REKV),
    ("mukv", {}, MUKV),
)
"""Policy with settings, what chooses this list of them, and the settings. A policy without is not here."""

_SHAPE = VlmSpec(
    name="any", layers=1, q_heads=1, kv_heads=1, head_dim=32, hidden=32, rope=RopeSpec(32, 1e4), scale=0.0,
    tokens_per_frame=16, grid=(4, 4), embedding_dim=1, image_size=(1, 1), image_mean=(0.0, 0.0, 0.0),
    image_std=(1.0, 1.0, 1.0), vocab_size=2, eos_token_ids=(1,),
)  # fmt: skip


def refusal(policy: str, settings: Mapping[str, Any]) -> str:
    """What the core says against these settings; "" where it takes them."""
    given = SessionConfig(policy=policy, policy_settings=dict(settings), kernel_threads=1)
    try:
        _core.plan(*given.core_arguments(_SHAPE, 0))
    except ValueError as error:
        return str(error)
    return ""


def names_of(policy: str, chosen: Mapping[str, str]) -> list[str]:
    """The settings that the core knows of a policy."""
    said = re.search(r"it has (.*)\.$", refusal(policy, {**chosen, UNKNOWN: 0}))
    assert said is not None
    return [] if said[1] == "none" else said[1].split(", ")


def values_of(policy: str, chosen: Mapping[str, str], name: str) -> str:
    """What a setting takes, in the core's words."""
    said = refusal(policy, {**chosen, name: "no such word"})
    if words := re.search(r"is none of ([^.]*?)\.?$", said.split(" of policy")[0]):
        return ", ".join(f"`{word.strip()}`" for word in words[1].split(","))
    bounds = re.search(r"between (\S+) and (\S+?)\.$", said)
    assert bounds is not None, said
    low, high = (float(bound) for bound in bounds.groups())
    inside = refusal(policy, {**chosen, name: low + (0.5 if high - low >= 1 else (high - low) / 2)})
    if "must be 0 or 1" in inside:
        return "0 or 1"
    whole = "whole, " if "must be a whole number" in inside else ""
    return f"{whole}{_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def docs_of(kind: type, module: Any) -> dict[str, str]:
    """The string below each field of a class."""
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    body = next(n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == kind.__name__)
    said = {}
    for item, after in pairwise(body):
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and after.value.value
            said[item.target.id] = " ".join(str(text).split()) if text else ""
    return said


def field_rows(kind: type, module: Any) -> Iterator[tuple[str, ...]]:
    """Name, type, default and meaning of every field. ValueError for one of which nothing is said."""
    said = docs_of(kind, module)
    for item in fields(kind):
        if not said.get(item.name):
            raise ValueError(f"{kind.__name__}.{item.name}: no docstring below it")
        value = item.default if item.default_factory is MISSING else item.default_factory()
        shown = f'"{value}"' if isinstance(value, str) else repr(value)
        yield f"`{item.name}`", str(item.type).replace("|", "or"), f"`{shown}`", said[item.name]


def policy_rows(
    policy: str, chosen: Mapping[str, str], said: Mapping[str, Said]
) -> Iterator[tuple[str, ...]]:
    """Name, values, default and meaning of every setting. ValueError where core and this file disagree."""
    known = names_of(policy, chosen)
    if set(known) != set(said):
        raise ValueError(
            f"{policy}: the core has {', '.join(known)}; {Path(__file__).name} says {', '.join(said)}"
        )
    for name in known:
        yield f"`{name}`", values_of(policy, chosen, name), f"`{said[name].default}`", said[name].meaning


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page() -> str:
    """docs/settings.md."""
    settable = {policy for policy in _core.policies() if names_of(policy, {})}
    if missing := settable ^ {policy for policy, *_ in LISTS}:
        raise ValueError(
            f"policies with settings that core or {Path(__file__).name} do not have: {', '.join(missing)}"
        )
    parts = [HEAD, table(OF_FIELD, field_rows(SessionConfig, config)), OF_POLICIES]
    for policy, chosen, said in LISTS:
        extra = "".join(f", `{key}={value}`" for key, value in chosen.items() if key not in said)
        rows = policy_rows(policy, chosen, said)
        parts += [f"### {policy}{extra}", table(OF_SETTING, rows)]
    parts += [OF_ANSWERS, table(OF_FIELD, field_rows(SamplingParams, sampling))]
    return "\n\n".join(parts) + "\n"


OF_FIELD = ("field", "type", "default", "what it is")
OF_SETTING = ("setting", "values", "default", "what it is")
HEAD = """# Settings

Made by `python tools/settings_reference.py` from the code; a test fails where it is not current.

## Of a session

Fields of `SessionConfig`, keywords of `engine.session(...)` and `engine.plan(...)`, keys of `[session]` in a
profile ([cli.md](cli.md#profiles)). `memory`, `policy`, `disk` and `backend` are options of every command
that opens a session. `0` and `None` mean: chosen from the cap, the model and the policy; `mosaic-edge plan`
shows what is chosen. `edge` and `mosaic` by tokens have no clusters in memory and no scenes and read all they
keep: the fields for these change nothing there, and `retrieve_tokens` is of what is on disk. What is said of
`edge` below holds for both."""
OF_POLICIES = """## Of each policy

`policy_settings={"name": value}` of a session, `[session.policy_settings]` in a profile,
`policy[name=value;name=value]` in `--policies` of `mosaic-edge eval`. A model's card (`policy_settings` of
its `mosaic.json`) may choose others; a session's own come first. A policy that is not here has none. What
the policies do: [policies.md](policies.md)."""
OF_ANSWERS = """## Of an answer

`session.ask(question, sampling=SamplingParams(...))`."""


def main() -> int:
    """Write the page, or compare it."""
    made = page()
    if "--check" in sys.argv[1:]:
        current = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == made
        print("current" if current else f"{PAGE.name} is old: run python tools/settings_reference.py")
        return 0 if current else 1
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
