"""A policy and its session may know each other, and are freed all the same."""

from __future__ import annotations

import gc
import weakref

import pytest

from mosaic_edge.engine import Engine
from numpy_vlm import NumpyVlm, picture
from python_policies import Window


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("kept", [False, True])
def test_a_policy_that_keeps_its_session_is_freed_with_it(closed: bool, kept: bool) -> None:
    policy = Window()
    session = Engine(NumpyVlm()).session(memory="200KiB", policy=policy, kernel_threads=1)
    if kept:
        policy.session = session  # type: ignore[attr-defined]
    for i in range(40):
        session.append(picture(i), float(i))
    session.ask("what colour was the ball ?")
    session.check_invariants()
    if closed:
        session.close()
    gone = weakref.ref(policy), weakref.ref(session), weakref.ref(session._blocks.model)
    del policy, session
    gc.collect()
    assert [reference() for reference in gone] == [None] * 3


def test_an_object_serves_one_session_and_its_plan_as_ever() -> None:
    engine, policy = Engine(NumpyVlm()), Window()
    engine.plan(memory="200KiB", policy=policy)
    engine.session(memory="200KiB", policy=policy, kernel_threads=1).close()
    with pytest.raises(ValueError, match="policy Window: this object serves or served a session"):
        engine.session(memory="200KiB", policy=policy, kernel_threads=1)


def test_an_error_of_a_policy_reaches_the_caller_with_its_own_lines() -> None:
    class Torn(Window):
        def admit(self, store: object, batch: object) -> None:  # type: ignore[override]
            raise ZeroDivisionError("torn")

    with Engine(NumpyVlm()).session(memory="200KiB", policy=Torn(), kernel_threads=1) as session:
        with pytest.raises(ZeroDivisionError, match="torn") as error:
            for i in range(40):
                session.append(picture(i), float(i))
        assert error.traceback[-1].name == "admit"
