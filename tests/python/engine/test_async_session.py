"""A session under asyncio: the loop goes on, calls keep their order, what is cancelled breaks nothing."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from mosaic_edge import AsyncSession
from mosaic_edge.engine import Engine
from numpy_vlm import NumpyVlm, picture
from videos import MakeVideo

QUESTION = "what colour was the ball ?"


def opened() -> AsyncSession:
    return AsyncSession(Engine(NumpyVlm()).session(memory="1MiB", policy="window", kernel_threads=1))


def test_answers_are_those_of_the_session_whole_and_in_pieces(make_video: MakeVideo) -> None:
    async def under_asyncio() -> tuple[int, str, str, int]:
        async with opened() as session:
            count = await session.append_video(make_video(), 5.0)
            await session.append(picture(7), 9.0)
            whole = (await session.ask(QUESTION)).text
            pieces = [piece async for piece in session.stream(QUESTION)]
            return count, whole, "".join(pieces), (await session.memory())["frames"]

    with Engine(NumpyVlm()).session(memory="1MiB", policy="window", kernel_threads=1) as session:
        session.append_video(make_video(), 5.0)
        session.append(picture(7), 9.0)
        text = session.ask(QUESTION).text
    assert asyncio.run(under_asyncio()) == (10, text, text, 11)


def test_the_loop_goes_on_while_a_frame_is_taken_in(monkeypatch: pytest.MonkeyPatch) -> None:
    async def under_asyncio() -> list[str]:
        happened: list[str] = []
        async with opened() as session:
            loop_went_on = threading.Event()
            real = session.session.append

            def slow(*arguments: Any) -> None:
                assert loop_went_on.wait(30), "the loop waits for the frame"
                real(*arguments)
                happened.append("frame")

            monkeypatch.setattr(session.session, "append", slow)
            task = asyncio.create_task(session.append(picture(0), 0.0))
            await asyncio.sleep(0)
            happened.append("loop")
            loop_went_on.set()
            await task
        return happened

    assert asyncio.run(under_asyncio()) == ["loop", "frame"]


def test_calls_are_made_in_their_order() -> None:
    async def under_asyncio() -> int:
        async with opened() as session:
            await asyncio.gather(*(session.append(picture(i), i / 2) for i in range(25)))
            return int((await session.memory())["frames"])

    assert asyncio.run(under_asyncio()) == 25


def test_a_call_that_is_cancelled_and_a_stream_that_is_left_break_nothing() -> None:
    async def under_asyncio() -> None:
        async with opened() as session:
            for i in range(20):
                task = asyncio.create_task(session.append(picture(i), float(i)))
                await asyncio.sleep(0.001 * (i % 3))
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            pieces = session.stream(QUESTION)
            assert await anext(pieces)
            await pieces.aclose()  # type: ignore[attr-defined]
            await session.append(picture(50), 50.0)
            assert (await session.ask(QUESTION)).text
            session.session.check_invariants()

    asyncio.run(under_asyncio())


def test_errors_are_the_sessions_own_and_a_closed_session_says_so() -> None:
    async def under_asyncio() -> None:
        async with opened() as session:
            with pytest.raises(ValueError, match="frame: "):
                await session.append("text")
            with pytest.raises(ValueError, match="no text"):
                await session.ask(" ")
        for call in (session.append(picture(0)), session.ask(QUESTION), session.memory()):
            with pytest.raises(ValueError, match="the session is closed"):
                await call
        await session.close()

    asyncio.run(under_asyncio())


def test_a_fork_goes_on_apart_and_what_is_saved_is_restored(tmp_path: Path) -> None:
    async def under_asyncio() -> tuple[str, str, tuple[int, int]]:
        async with opened() as session:
            await session.append(picture(7), 9.0)
            async with await session.fork() as other:
                await other.append(picture(3), 10.0)
                await session.save(tmp_path / "saved", {"camera": "door"})
                frames = [(await one.memory())["frames"] for one in (session, other)]
                return (await session.ask(QUESTION)).text, (await other.ask(QUESTION)).text, tuple(frames)

    one, other, frames = asyncio.run(under_asyncio())
    assert frames == (1, 2)
    with Engine(NumpyVlm()).restore(tmp_path / "saved") as session:
        assert session.note == {"camera": "door"}
        assert session.ask(QUESTION).text == one
        session.append(picture(3), 10.0)
        assert session.ask(QUESTION).text == other


def test_a_close_whose_waiter_is_cancelled_closes_all_the_same() -> None:
    """And a stream that is open then ends without an error of its own."""

    async def under_asyncio() -> None:
        session = opened()
        await session.append(picture(0), 0.0)
        pieces = session.stream(QUESTION)
        assert await anext(pieces)
        busy, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            busy.set()
            assert go_on.wait(30)

        held = asyncio.create_task(session._call(hold))
        assert await asyncio.to_thread(busy.wait, 30)
        closing = asyncio.create_task(session.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        go_on.set()
        await held
        await session.close()
        with pytest.raises(ValueError, match="the session is closed"):
            session.session.memory()
        await pieces.aclose()  # type: ignore[attr-defined]

    asyncio.run(under_asyncio())
