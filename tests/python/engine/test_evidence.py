"""Moments become ranges: neighbours join, noise and long summaries make none, the best come first."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic_edge.evidence import TimeRange, time_ranges


def test_neighbours_join_and_shares_are_of_everything() -> None:
    moments = [(3.0, 3.0, 2.0), (1.0, 1.0, 1.0), (2.0, 2.0, 1.0), (9.0, 9.0, 4.0)]
    assert time_ranges(moments, gap=1.5) == (TimeRange(1.0, 3.0, 0.5), TimeRange(9.0, 9.0, 0.5))


def test_a_gap_exactly_as_long_as_allowed_joins_and_a_longer_one_does_not() -> None:
    moments = [(0.0, 0.0, 1.0), (1.5, 1.5, 1.0), (3.1, 3.1, 1.0)]
    assert [(r.start, r.end) for r in time_ranges(moments, gap=1.5)] == [(0.0, 1.5), (3.1, 3.1)]


def test_a_long_summary_counts_but_points_nowhere() -> None:
    assert time_ranges([(0.0, 100.0, 3.0), (5.0, 5.0, 1.0)], gap=1.5) == (TimeRange(5.0, 5.0, 0.25),)
    assert time_ranges([(0.0, 100.0, 3.0)], gap=1.5) == ()


def test_noise_makes_no_range_and_bridges_no_gap() -> None:
    moments = [(0.0, 0.0, 1.0), (1.0, 1.0, 0.01), (2.0, 2.0, 1.0)]
    assert [(r.start, r.end) for r in time_ranges(moments, gap=1.5)] == [(0.0, 0.0), (2.0, 2.0)]


def test_a_range_inside_another_does_not_shorten_it() -> None:
    ((start, end),) = [(r.start, r.end) for r in time_ranges([(0.0, 9.0, 1.0), (2.0, 3.0, 1.0)], gap=1.0)]
    assert (start, end) == (0.0, 9.0)


def test_at_most_limit_ranges_come_back_the_best_first() -> None:
    ranges = time_ranges([(10.0 * i, 10.0 * i, 1.0 + i) for i in range(9)], gap=1.0, limit=3)
    assert [r.start for r in ranges] == [80.0, 70.0, 60.0]


@pytest.mark.parametrize("moments", [[], [(1.0, 1.0, 0.0)]])
def test_nothing_read_gives_no_range(moments: list[tuple[float, float, float]]) -> None:
    assert time_ranges(moments, gap=1.0) == ()


@given(
    st.lists(
        st.tuples(st.floats(0, 1e4), st.floats(0, 60), st.floats(1e-3, 1e3)).map(
            lambda m: (m[0], m[0] + m[1], m[2])
        ),
        max_size=40,
    ),
    st.floats(0.1, 10),
)
def test_ranges_are_apart_within_the_stream_and_hold_at_most_all_of_the_mass(
    moments: list[tuple[float, float, float]], gap: float
) -> None:
    ranges = time_ranges(moments, gap)
    assert len(ranges) <= 5
    assert sum(r.score for r in ranges) <= 1 + 1e-9
    assert [r.score for r in ranges] == sorted((r.score for r in ranges), reverse=True)
    by_time = sorted(ranges, key=lambda r: r.start)
    assert all(b.start - a.end > gap for a, b in pairwise(by_time))
    for r in ranges:
        assert min(m[0] for m in moments) <= r.start <= r.end <= max(m[1] for m in moments)
