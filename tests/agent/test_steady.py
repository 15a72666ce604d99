"""Bytes over time: none is lost, memory is bounded, and what is steady is told from what is not."""

from __future__ import annotations

import math
import threading
from typing import List, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fury_agent.steady import FINEST_S, Series, Steadiness, steadiness

SPANS = st.tuples(
    st.floats(min_value=-1e6, max_value=1e6),
    st.floats(min_value=0, max_value=1e5) | st.just(0.0),
    st.integers(min_value=1, max_value=10**12),
)


def filled(spans: List[Tuple[float, float, int]]) -> Series:
    series = Series()
    for begin_s, length_s, size in spans:
        series.add(begin_s, begin_s + length_s, size)
    return series


def written(rates: List[Tuple[float, float]], *, begin_s: float = 0.0, add_s: float = 0.1) -> Series:
    """A run of (seconds, bytes a second) after the other, in adds of `add_s`."""
    series = Series()
    at_s = begin_s
    for seconds, rate in rates:
        for _ in range(round(seconds / add_s)):
            series.add(at_s, at_s + add_s, round(rate * add_s))
            at_s += add_s
    return series


def judged(series: Series, begin_s: float, end_s: float) -> Steadiness:
    result = steadiness(series, begin_s, end_s)
    assert result is not None
    return result


# --- the series --------------------------------------------------------------------------------------------------


@given(st.lists(SPANS, max_size=30))
def test_no_byte_is_lost_or_made(spans: List[Tuple[float, float, int]]) -> None:
    """In whatever order and over whatever spans they came, and however often the bins were widened."""
    series = filled(spans)
    assert series.bytes_between(-math.inf, math.inf) == pytest.approx(sum(size for _, _, size in spans))


@given(st.lists(SPANS, min_size=1, max_size=30), st.floats(min_value=-1e6, max_value=1e6))
def test_two_parts_are_the_whole(spans: List[Tuple[float, float, int]], middle_s: float) -> None:
    """Wherever a span is cut, each byte is on one side."""
    series = filled(spans)
    parts = series.bytes_between(-math.inf, middle_s) + series.bytes_between(middle_s, math.inf)
    assert parts == pytest.approx(series.bytes_between(-math.inf, math.inf))


@given(st.lists(SPANS, min_size=1, max_size=30))
def test_memory_is_bounded(spans: List[Tuple[float, float, int]]) -> None:
    """A week, or what a clock made of it, has at most 4096 bins."""
    series = filled(spans)
    assert len(series._bins) <= 4096
    reach_s = max(begin + length for begin, length, _ in spans) - min(begin for begin, _, _ in spans)
    assert series.width_s == FINEST_S or series.width_s <= reach_s / 1024


def test_bins_are_no_wider_than_they_must_be() -> None:
    """An eighth of a second up to 4096 of them, then twice as much at a time."""
    series = Series()
    series.add(0, 512, 4096)
    assert series.width_s == FINEST_S
    series.add(512, 512.5, 1)
    assert series.width_s == 2 * FINEST_S
    series.add(604_799, 604_800, 1)
    assert series.width_s == 256


@given(st.floats(min_value=0, max_value=3), st.floats(min_value=0, max_value=3))
def test_an_even_span_is_exact_in_every_part(left_s: float, right_s: float) -> None:
    """Also within its first and its last bin, which it doesn't fill."""
    series = Series()
    series.add(100.7, 103.9, 3_200_000)
    begin_s, end_s = 100.7 + min(left_s, right_s), 100.7 + max(left_s, right_s)
    assert series.bytes_between(begin_s, end_s) == pytest.approx((end_s - begin_s) * 1e6, abs=1e-3)


def test_an_instant_is_where_it_was() -> None:
    """Bytes that took no time, or whose clock jumped back, are at their end and count once; none are none."""
    series = Series()
    series.add(5.0, 5.0, 100)
    series.add(9.0, 7.0, 10)
    series.add(6.0, 6.0, 0)
    series.add(9.2, 9.4, 3)
    assert [series.bytes_between(*span) for span in ((4, 5), (5, 6), (6, 7), (7, 9), (9, 10))] == [100, 0, 10, 0, 3]


def test_a_reader_needs_no_lock() -> None:
    """While one thread adds and bins are widened again and again, another always finds a sum of whole seconds."""
    series = Series()
    done = threading.Event()

    def add() -> None:
        for second in range(40_000):
            series.add(second, second + 1, 1)
        done.set()

    thread = threading.Thread(target=add)
    thread.start()
    seen = [0.0]
    while not done.is_set():
        seen.append(series.bytes_between(-1, math.inf))
    thread.join()
    assert seen == sorted(seen)
    assert series.bytes_between(-1, math.inf) == 40_000


# --- steadiness --------------------------------------------------------------------------------------------------


@given(
    st.floats(min_value=-1e5, max_value=1e6),
    st.floats(min_value=9.01, max_value=20_000),
    st.floats(min_value=0.01, max_value=1),
)
def test_a_constant_rate_is_steady(begin_s: float, runtime_s: float, share: float) -> None:
    """Wherever the run begins and ends between two seconds, and in adds of whatever length a part can hold."""
    adds = max(100, math.ceil(300 * share))
    series = Series()
    edges = [begin_s + runtime_s * index / adds for index in range(adds + 1)]
    for first_s, second_s in zip(edges, edges[1:]):
        series.add(first_s, second_s, 10**9)
    result = judged(series, begin_s, begin_s + runtime_s)
    assert result.steady
    assert result.slope_ratio == pytest.approx(0, abs=1e-4)
    assert result.spread_ratio == pytest.approx(0, abs=1e-4)
    assert result.seconds == pytest.approx(runtime_s / 3, rel=1e-6)


@pytest.mark.parametrize("rise", [0.3, -0.3])
def test_a_ramp_of_30_percent_is_not_steady(rise: float) -> None:
    """The slope is the rise over the whole window, divided by the mean; its sign is kept."""
    ramp = [(1.0, 1e6 * (1 + rise * (index + 0.5) / 100 - rise / 2)) for index in range(100)]
    result = judged(written([(200, 1e6), *ramp]), 0, 300)
    assert not result.steady
    assert result.slope_ratio == pytest.approx(rise, rel=0.01)


@pytest.mark.parametrize(("rise", "steady"), [(0.099, True), (0.101, False)])
def test_a_slope_of_ten_percent_is_the_limit(rise: float, steady: bool) -> None:
    """With a spread of less than 20 %."""
    ramp = [(1.0, 1e6 * (1 + rise * (index + 0.5) / 100 - rise / 2)) for index in range(100)]
    result = judged(written([(200, 1e6), *ramp]), 0, 300)
    assert (result.steady, result.spread_ratio < 0.2) == (steady, True)


@given(st.integers(min_value=200, max_value=296))
def test_a_single_stall_is_seen(second: int) -> None:
    """Three of the ten seconds of a part without a byte, wherever in the window."""
    series = written([(second, 1e6), (3, 0), (300 - second - 3, 1e6)], add_s=0.5)
    result = judged(series, 0, 300)
    assert not result.steady or (second - 200) % 10 in (8, 9)  # half of it in each of two parts
    assert result.spread_ratio >= 0.14


def test_a_stall_that_ends_in_its_call_is_seen() -> None:
    """One write that took five seconds is five seconds at next to nothing."""
    series = written([(250, 1e6)], add_s=0.5)
    series.add(250, 255, 500_000)
    for index in range(90):
        series.add(255 + index / 2, 255.5 + index / 2, 500_000)
    assert judged(series, 0, 300).spread_ratio == pytest.approx(0.45 / 0.955)


def test_only_the_last_third_counts() -> None:
    """What was fast before, an empty cache for instance, is over."""
    result = judged(written([(20, 9e6), (10, 1e6)]), 0, 30)
    assert result.steady
    assert result.spread_ratio == pytest.approx(0, abs=1e-6)
    assert not judged(written([(21, 9e6), (9, 1e6)]), 0, 30).steady


@pytest.mark.parametrize(
    ("begin_s", "runtime_s", "add_s", "jobs"),
    [
        (0.0, 8.9, 0.1, 1),  # a window of less than 3 s
        (0.0, 30.0, 2.0, 1),  # five adds in it
        (0.0, 30.0, 15.0, 64),  # many, but each longer than two parts
        (50.0, 30.0, 0.1, 1),  # nothing in it
    ],
)
def test_too_little_is_no_judgement(begin_s: float, runtime_s: float, add_s: float, jobs: int) -> None:
    """What can't be told apart is null, neither steady nor unsteady, also when the bins have become wide."""
    series = Series()
    for _ in range(jobs):
        for index in range(round(30 / add_s)):
            series.add(index * add_s, (index + 1) * add_s, 1000)
    assert steadiness(series, begin_s, begin_s + runtime_s) is None
    series.add(1e5, 1e5 + 1, 1000)
    assert steadiness(series, begin_s, begin_s + runtime_s) is None


def test_ten_adds_in_three_seconds_are_enough() -> None:
    """The least that is judged; those without a byte don't count."""
    series = written([(9, 1e6)], add_s=0.3)
    assert judged(series, 0, 9).steady
    series = written([(6, 1e6)], add_s=0.3)
    for index in range(10):
        series.add(6 + index * 0.3, 6.3 + index * 0.3, index)
    assert steadiness(series, 0, 9) is None
