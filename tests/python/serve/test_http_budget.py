"""One cap over all sessions, given back when one ends; /metrics is the sessions' own account."""

from __future__ import annotations

import threading

import pytest

from http_service import PATIENCE, QUESTION, GatedVlm, serving, until
from mosaic_edge.engine import Engine
from mosaic_edge.errors import MemoryCapError
from mosaic_edge.serve.budget import Budget, BudgetSpentError
from mosaic_edge.serve.sessions import ServeSettings, Sessions


def test_a_session_beyond_the_budget_is_refused_by_name_and_what_is_given_back_is_drawn_again() -> None:
    with serving(memory="4MiB") as service:
        client = service.client
        paths = [client.session(memory="1MiB") for _ in range(3)]
        drawn = client.good("GET", "/v1/sessions")["drawn_bytes"]
        assert drawn == sum(s["drawn_bytes"] for s in client.good("GET", "/v1/sessions")["data"]) <= 4 << 20
        error = client.refused(507, "POST", "/v1/sessions", {"memory": "2MiB"})
        assert (error["type"], error["code"]) == ("insufficient_storage_error", "budget_spent")
        assert error["have"] == (4 << 20) - drawn < error["need"] <= 2 << 20
        assert error["who"] == "session" and "--memory" in error["knob"]
        assert client.good("GET", "/v1/sessions")["drawn_bytes"] == drawn, "a refusal draws nothing"
        for path in paths:
            client.good("DELETE", path)
        assert client.good("GET", "/v1/sessions")["drawn_bytes"] == 0
        client.session(memory="4MiB")


def test_sessions_that_are_opened_and_ended_together_never_breach_the_cap_and_leave_nothing() -> None:
    with serving(memory="3MiB") as service:
        budget, refused = service.sessions.budget, []

        def come_and_go() -> None:
            for _ in range(6):
                status, document = service.client.call("POST", "/v1/sessions", {"memory": "1MiB"})
                assert budget.drawn_bytes <= budget.cap_bytes
                if status == 507:
                    refused.append(document)
                else:
                    service.client.good("DELETE", f"/v1/sessions/{document['id']}")

        threads = [threading.Thread(target=come_and_go) for _ in range(7)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (budget.drawn_bytes, budget.peak_bytes <= budget.cap_bytes) == (0, True)
        ended = service.sessions.ended["deleted"]
        assert ended + len(refused) == 42


def test_a_session_whose_memory_cannot_be_taken_gives_its_share_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as service:

        def broken(*_: object, **__: object) -> None:
            raise MemoryError("no memory")

        monkeypatch.setattr(service.sessions.engine, "session", broken)
        assert service.client.refused(500, "POST", "/v1/sessions", {})["code"] == "internal_error"
        assert service.sessions.budget.drawn_bytes == 0


def test_an_idle_session_is_ended_and_counted_and_a_busy_one_is_not() -> None:
    model = GatedVlm()
    with serving(idle=0.2, model=model) as service:
        asked, idle = service.client.session(), service.client.session()
        model.gate.clear()
        said: list[str] = []
        thread = threading.Thread(
            target=lambda: said.append(
                service.client.good("POST", f"{asked}/questions", {"question": QUESTION})["answer"]
            )
        )
        thread.start()
        until(lambda: service.client.call("GET", idle)[0] == 404)
        assert service.client.good("GET", asked)["waiting"] == 1, "longer than its time, but not idle"
        name = asked.rpartition("/")[2]
        until(lambda: f"in session {name} takes over" in str(service.sessions.stuck(0.01)))
        assert service.sessions.stuck(2 * PATIENCE) is None, "which systemd's watchdog may wait for"
        model.gate.set()
        thread.join()
        assert said[0]
        until(lambda: service.client.good("GET", "/v1/sessions")["data"] == [])
        assert service.client.metrics()['mosaic_edge_sessions_ended_total{why="idle"}'] == 2


def test_metrics_are_the_sessions_own_account_also_of_those_that_ended() -> None:
    with serving() as service:
        client = service.client
        paths = [client.session(policy=policy) for policy in ("window", "uniform")]
        for i in range(7):
            client.put(paths[0], i, float(i))
        for i in range(13):
            client.put(paths[1], i, float(i))
        client.refused(400, "PUT", f"{paths[0]}/frames", b"none")
        for path in [*paths, paths[0]]:
            client.good("POST", f"{path}/questions", {"question": QUESTION, "max_tokens": 2})
        shown, listed = client.metrics(), client.good("GET", "/v1/sessions")
        for stats in listed["data"]:
            of = f'session="{stats["id"]}"'
            assert shown[f"mosaic_edge_session_taken_bytes{{{of}}}"] == stats["taken_bytes"]
            for tier in stats["tiers"]:
                labels = f'{{codec="{tier["codec"]}",medium="{tier["medium"]}",{of}}}'
                named = {",".join(sorted(k[k.index("{") + 1 : -1].split(","))): v for k, v in shown.items()
                         if k.startswith("mosaic_edge_tier_used_bytes{")}  # fmt: skip
                assert named[labels[1:-1]] == tier["used_bytes"]
        assert shown["mosaic_edge_sessions"] == len(listed["data"]) == 2
        assert shown["mosaic_edge_budget_drawn_bytes"] == listed["drawn_bytes"]
        for path in paths:
            client.good("DELETE", path)
        after = client.metrics()
        for numbers in (shown, after):
            assert numbers["mosaic_edge_frames_total"] == 20
            assert numbers["mosaic_edge_frames_refused_total"] == 1
            assert numbers["mosaic_edge_questions_total"] == 3
            assert numbers["mosaic_edge_first_token_seconds_count"] == 3
        assert not any("session=" in name for name in after), "a name for every session there ever was"


def test_a_server_whose_sessions_cannot_be_is_not_started() -> None:
    engine = Engine(GatedVlm())
    with pytest.raises(MemoryCapError, match="needs at least"):
        Sessions(engine, ServeSettings(memory="16KiB"))
    with pytest.raises(ValueError, match="policy"):
        Sessions(engine, ServeSettings(memory="16MiB", session={"policy": "nope"}))
    with pytest.raises(ValueError, match="idle=0"):
        Sessions(engine, ServeSettings(memory="16MiB", idle=0))


def test_a_budget_is_never_overdrawn_and_a_share_is_given_back_once() -> None:
    budget = Budget(10)
    first, second = budget.draw("a", 7), budget.draw("b", 3)
    with pytest.raises(BudgetSpentError) as refused:
        budget.draw("c", 1)
    assert (refused.value.who, refused.value.need, refused.value.have) == ("c", 1, 0)
    for _ in range(2):
        first.give_back()
    assert (budget.drawn_bytes, budget.peak_bytes) == (3, 10)
    second.give_back()
    assert budget.drawn_bytes == 0


def test_spill_files_draw_from_one_disk_budget_and_a_session_beyond_it_is_refused_by_name() -> None:
    with serving(memory="16MiB", disk="3MiB", session_disk="1MiB") as service:
        client = service.client

        def drawn() -> tuple[int, int]:
            listed = client.good("GET", "/v1/sessions")
            assert listed["drawn_disk_bytes"] == sum(one["drawn_disk_bytes"] for one in listed["data"])
            return listed["drawn_bytes"], listed["drawn_disk_bytes"]

        first = client.session(policy="mosaic", memory="1MiB")
        assert client.good("GET", first)["tiers"][-1]["medium"] == "disk"
        assert drawn()[1] == 1 << 20, "what --session-disk gives who names none"
        second = client.session(policy="edge", memory="1MiB", disk="2MiB")
        before = drawn()
        assert before[1] == 3 << 20
        error = client.refused(507, "POST", "/v1/sessions", {"policy": "mosaic", "disk": "512KiB"})
        assert (error["code"], error["param"]) == ("budget_spent", "disk")
        assert (error["need"], error["have"]) == (512 << 10, 0) and "--disk" in error["knob"]
        assert drawn() == before, "a refusal draws nothing, of memory either"
        assert client.refused(400, "POST", "/v1/sessions", {"disk": "much"})["message"].startswith("disk=")
        assert client.refused(400, "POST", "/v1/sessions", {"spill_dir": "/"})["code"] == "invalid_value"
        for without in ({"policy": "window"}, {"policy": "mosaic", "disk": None}):
            assert client.good("GET", client.session(**without))["drawn_disk_bytes"] == 0
        shown = client.metrics()
        assert shown["mosaic_edge_disk_budget_bytes"] == shown["mosaic_edge_disk_drawn_bytes"] == 3 << 20
        client.good("DELETE", second)
        client.good("DELETE", first)
        assert drawn()[1] == 0
        client.session(policy="mosaic", disk="3MiB", memory="1MiB")


def test_a_server_without_a_disk_gives_none_and_says_which_option_does() -> None:
    with serving() as service:
        assert service.client.good("GET", service.client.session(policy="mosaic"))["drawn_disk_bytes"] == 0
        error = service.client.refused(507, "POST", "/v1/sessions", {"policy": "mosaic", "disk": "1MiB"})
        assert error["have"] == 0 and "larger --disk" in error["knob"]
