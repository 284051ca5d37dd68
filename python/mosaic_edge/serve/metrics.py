"""What Prometheus scrapes: the sessions' own account, read when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from mosaic_edge.serve.sessions import Sessions

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_PREFIX = "mosaic_edge_"


class Metrics:
    """A registry of a server's own: two servers of a process do not mix."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._first_token = Histogram(
            f"{_PREFIX}first_token_seconds",
            "From a question's arrival to the first piece of its answer",
            buckets=_FIRST_TOKEN_SECONDS,
            registry=self._registry,
        )

    def first_token(self, seconds: float) -> None:
        """A question had its first piece after so long."""
        self._first_token.observe(seconds)

    def watch(self, sessions: Sessions) -> None:
        """Tell of these."""
        self._registry.register(_Account(sessions))

    def text(self) -> bytes:
        """All of them, as Prometheus reads it."""
        return generate_latest(self._registry)


class _Account:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def describe(self) -> list[Metric]:
        """Nothing: asking for the metrics at registration would be asking the sessions."""
        return []

    def collect(self) -> Iterator[Metric]:
        """As things are now. Ids are of sessions that are open, so there are never many."""
        sessions, budget = self._sessions.all(), self._sessions.budget
        yield _gauge("sessions", "Sessions that are open", len(sessions))
        yield _gauge("budget_bytes", "What all sessions may take together", budget.cap_bytes)
        yield _gauge("budget_drawn_bytes", "What open sessions drew of the budget", budget.drawn_bytes)
        yield _gauge("budget_drawn_peak_bytes", "The most that was ever drawn", budget.peak_bytes)
        disk = self._sessions.disk
        yield _gauge("disk_budget_bytes", "What all spill files may take together", disk.cap_bytes)
        yield _gauge("disk_drawn_bytes", "What open sessions drew of the disk budget", disk.drawn_bytes)
        yield _gauge("disk_drawn_peak_bytes", "The most that was ever drawn of it", disk.peak_bytes)
        ended = CounterMetricFamily(f"{_PREFIX}sessions_ended", "Sessions that ended", labels=["why"])
        for why, count in self._sessions.ended.items():
            ended.add_metric([why], count)
        yield ended
        counts = self._sessions.counts()
        yield _counter("frames", "Frames that went in", counts.frames)
        yield _counter("frames_refused", "Frames that were refused", counts.refused)
        yield _counter("frames_dropped", "Frames that came while the model was busy", counts.dropped)
        yield _counter("questions", "Questions that were answered to their end", counts.questions)
        taken = _of_session("session_taken_bytes", "What the core took of the session's cap, once")
        pictures = _of_session("session_thumbnail_bytes", "What its thumbnails take now")
        age = _of_session("session_newest_frame_age_seconds", "Since its newest frame went in")
        used = _of_session("tier_used_bytes", "Bytes of pages that lie in a tier now", "medium", "codec")
        room = _of_session("tier_capacity_bytes", "Bytes of pages that a tier holds", "medium", "codec")
        for served in sessions:
            stats = served.stats()
            taken.add_metric([served.name], stats["taken_bytes"])
            pictures.add_metric([served.name], served.thumbnails.used_bytes)
            if stats["newest_age_seconds"] is not None:
                age.add_metric([served.name], stats["newest_age_seconds"])
            for tier in stats["tiers"]:
                labels = [served.name, tier["medium"], tier["codec"]]
                used.add_metric(labels, tier["used_bytes"])
                room.add_metric(labels, tier["capacity_bytes"])
        yield from (taken, pictures, age, used, room)


def _gauge(name: str, help_: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(_PREFIX + name, help_, value=value)


def _counter(name: str, help_: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(_PREFIX + name, help_, value=value)


def _of_session(name: str, help_: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(_PREFIX + name, help_, labels=["session", *labels])
