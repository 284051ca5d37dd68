"""A policy object as the core holds it: weakly. The garbage collector does not see the core's references;
a policy that keeps its session, which keeps its memory, which keeps the policy, would stay for ever. The
session keeps the policy (its config does) for as long as the core may call it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from mosaic_edge import _core

_METHODS = ("admit", "select", "evict", "scene", "state", "set_state")
_HELD = "_held_by_core"


def weakly_held(policy: Any) -> Any:
    """What the core is given for `policy`: a name as it is; for an object always the same one, of the name of
    its class, that calls it."""
    if not isinstance(policy, _core.Policy) or not hasattr(policy, "__dict__"):
        return policy
    if (known := policy.__dict__.get(_HELD)) is not None:
        return known  # it serves or served a session, which the core will say
    reference = weakref.ref(policy)
    calls = {name: _call(reference, name) for name in _METHODS if hasattr(policy, name)}
    held = type(type(policy).__name__, (_core.Policy,), calls)(**policy.needs())
    policy.__dict__[_HELD] = held
    return held


def _call(reference: weakref.ref[Any], name: str) -> Callable[..., Any]:
    def call(_: Any, *given: Any) -> Any:
        policy = reference()
        assert policy is not None  # the session is alive, and keeps it
        return getattr(policy, name)(*given)

    return call
