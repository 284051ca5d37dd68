"""Tokens kept and tokens read, from what a session says of itself; a count is in tokens of one layer.

The core counts tokens kept by place. Where it also counts what was read (`stats["read"]`), that is taken as
it is; else `derived_read` says the most that can have been read, from the plan.
"""

from __future__ import annotations

from typing import Any

from .product import Engine

Row = dict[str, Any]
PLACES = ("exact", "quantised", "spilled", "collapsed", "dropped")


def tokens_kept(stats: Row, stream_tokens: int) -> dict[str, float]:
    """Tokens by place, mean over layers and KV heads; `total`: those that exist one by one, disk included.

    Prefix, first frame and window count as exact.
    """
    account = stats["tokens"]
    lanes = account["seen"] / stream_tokens
    kept = {place: round(account.get(place, 0) / lanes, 1) for place in PLACES}
    others = {
        name: round(n / lanes, 1) for name, n in account.items() if name not in (*PLACES, "seen", "merged")
    }
    kept |= others  # places this bench does not know yet hold tokens too
    kept["total"] = round(sum(kept[p] for p in kept if p not in ("collapsed", "dropped")), 1)
    return kept


def tokens_read(engine: Engine, settings: Row, stats: Row, stream_tokens: int) -> Row:
    """{"frames", "questions": tokens a layer, "measured": by the core, or the most by its plan}."""
    read = stats.get("read")
    if read is not None:
        return {"frames": read["frames"], "questions": read["questions"], "measured": True}
    most = derived_read(engine, settings, stats, stream_tokens)
    return {"frames": most, "questions": most, "measured": False}


def derived_read(engine: Engine, settings: Row, stats: Row, stream_tokens: int) -> float:
    """The most tokens a layer that a block at the end of the stream can have read. Summaries are not counted:
    which of them are attended, the core does not say; nor does it say what a frame chose to read.
    """
    kept = tokens_kept(stats, stream_tokens)["total"]
    if not selects(engine, settings):
        return kept
    plan = engine.plan(**settings)
    longest = engine.spec.tokens_per_frame
    prefix = len(engine.model.tokenize(engine.spec.prefix))
    fixed = prefix + (1 + plan["window_frames"]) * longest
    return float(min(kept, fixed + plan["retrieve_tokens"]))


def selects(engine: Engine, settings: Row) -> bool:
    """Does a block read a part of what is kept? Only such a policy's plan depends on retrieve_tokens."""
    few, many = (
        engine.plan(**{**settings, "memory": "4GiB", "retrieve_tokens": n})["parts"] for n in (64, 4096)
    )
    return bool(few != many)
