"""Which connection makes room for a new one where there are as many as there may be."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from mosaic_edge.serve import connections
from mosaic_edge.serve.connections import Connection


class Transport:
    """Of a client that reads nothing: what is closed waits for it until it is aborted."""

    def __init__(self) -> None:
        self.closing = self.aborted = False

    def get_extra_info(self, name: str) -> None: ...

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.aborted = True


async def _never(scope: Any, receive: Any, send: Any) -> None: ...


class Room:
    """Connections of a server that has room for three, and one that comes. They come a second apart."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(connections.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(connections, "MOST_CONNECTIONS", 4)
        self._state = ServerState()
        self._config = uvicorn.Config(_never, http=Connection, log_config=None)

    def come(self, **cycle: Any) -> tuple[Any, Transport]:
        """A connection; cycle: of the request that it makes at once."""
        self.now += 1
        transport, one = Transport(), Connection(self._config, self._state, {})
        one.connection_made(transport)
        if cycle:
            one.cycle = SimpleNamespace(**cycle)
        return one, transport


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Any:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield Room(monkeypatch)
    asyncio.set_event_loop(None)
    loop.close()


def test_one_that_is_being_answered_stays_and_the_longest_idle_goes_each_time(room: Room) -> None:
    _, answered = room.come(response_complete=False)
    _, silent = room.come()
    _, through = room.come(response_complete=True)
    newest = [room.come()[1] for _ in range(3)]
    assert silent.aborted and through.aborted, "though none of them is gone yet"
    assert not answered.aborted
    assert [one.aborted for one in newest] == [True, False, False]


def test_one_that_reads_no_answer_makes_room_and_from_then_on_it_is_idle(room: Room) -> None:
    unread, transport = room.come(response_complete=False)
    _, silent = room.come()
    room.come(response_complete=False)
    room.now += 1
    unread.pause_writing()
    assert unread.flow.write_paused
    room.come(response_complete=False)
    assert silent.aborted and not transport.aborted
    room.come(response_complete=False)
    assert transport.aborted


def test_one_that_reads_again_is_being_answered(room: Room) -> None:
    unread, transport = room.come(response_complete=False)
    unread.pause_writing()
    unread.resume_writing()
    for _ in range(3):
        room.come(response_complete=False)
    assert not transport.aborted


def test_one_that_is_closing_and_reads_nothing_makes_room(room: Room) -> None:
    closing, transport = room.come(response_complete=True)
    closing.transport.close()
    for _ in range(2):
        room.come(response_complete=False)
    assert not transport.aborted
    room.come()
    assert transport.aborted


def test_those_that_came_when_none_was_idle_are_made_up_for(room: Room) -> None:
    came = [room.come(response_complete=False) for _ in range(6)]
    assert not any(transport.aborted for _, transport in came)
    for one, _ in came:
        room.now += 1
        one.pause_writing()
    room.come()
    assert [transport.aborted for _, transport in came] == [True] * 4 + [False] * 2


def test_those_sent_away_keep_nobody_out_though_their_answers_have_not_ended(room: Room) -> None:
    def full(newest: Any) -> bool:  # as uvicorn asks
        return max(len(newest.connections), len(newest.tasks)) >= newest.limit_concurrency

    unread = [room.come(response_complete=False)[0] for _ in range(3)]
    unread[0].tasks.update(range(3))
    for one in unread:
        one.pause_writing()
    for number in (3, 4):
        newest, _ = room.come(response_complete=False)
        newest.tasks.add(number)
        assert not full(newest)
    answered = [room.come(response_complete=False)[0] for _ in range(2)]
    assert full(answered[-1])
