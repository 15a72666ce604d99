"""Percentiles that can be believed, and histograms that add up."""

from __future__ import annotations

import json
import math
from typing import List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fury_agent.histogram import GAMMA, RELATIVE_ERROR, Histogram

LATENCIES = st.floats(min_value=1e-9, max_value=1e5)


def filled(values: List[float]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram


@given(st.lists(LATENCIES, min_size=1, max_size=200), st.floats(min_value=0, max_value=1))
def test_every_percentile_is_within_one_percent_of_the_true_one(values: List[float], quantile: float) -> None:
    """The promise of DDSketch: relative error of at most 1 % against the sorted values."""
    true = sorted(values)[max(1, math.ceil(quantile * len(values))) - 1]
    estimate = filled(values).percentile(quantile)
    assert estimate is not None
    assert abs(estimate - true) <= RELATIVE_ERROR * true * (1 + 1e-9)


@given(st.lists(LATENCIES), st.lists(LATENCIES))
def test_merging_equals_counting_together(left: List[float], right: List[float]) -> None:
    """A fleet's histogram is the sum of its agents', bucket by bucket."""
    merged = filled(left)
    merged.merge(filled(right))
    together = filled(left + right)
    assert merged.buckets == together.buckets
    assert (merged.minimum, merged.maximum, merged.count) == (together.minimum, together.maximum, together.count)
    assert merged.sum == pytest.approx(together.sum)


@given(st.lists(LATENCIES), st.lists(LATENCIES))
def test_what_came_since_a_copy_is_exactly_what_was_added(before: List[float], after: List[float]) -> None:
    """The parts that samples carry add up to the whole."""
    histogram = filled(before)
    copy = histogram.copy()
    for value in after:
        histogram.add(value)
    since = histogram.since(copy)
    assert since.buckets == filled(after).buckets
    copy.merge(since)
    assert copy.buckets == histogram.buckets
    if after:
        assert since.maximum == pytest.approx(max(after), rel=0.0202)
        assert since.minimum == pytest.approx(min(after), rel=0.0202)


def test_its_form_is_the_contracts() -> None:
    """Keys, gamma and index are those of docs/protocol.md."""
    form = json.loads(json.dumps(filled([0.001, 0.001, 0.0]).to_dict()))
    assert form["gamma"] == pytest.approx(1.02020202, abs=1e-8)
    assert form["buckets"] == {str(math.ceil(math.log(0.001) / math.log(GAMMA))): 2}
    assert (form["zero"], form["count"], form["min"], form["max"]) == (1, 3, 0.0, 0.001)
    assert Histogram().to_dict()["min"] is None


def test_an_empty_one_has_no_percentiles() -> None:
    """Nothing measured is null, not zero."""
    assert Histogram().summary() == {"p50": None, "p95": None, "p99": None, "p999": None, "max": None}


def test_a_percentile_is_the_smallest_value_with_at_least_that_share_at_or_below() -> None:
    """The nearest rank: of 110 values p99.9 is the greatest, of 4 the median is the second."""
    assert filled([0.001] * 109 + [0.5]).percentile(0.999) == 0.5
    assert filled([0.001, 0.002, 0.003, 0.004]).percentile(0.5) == pytest.approx(0.002, rel=0.01)
    assert filled([0.0, 0.0, 0.003]).percentile(0.67) == 0.003


def test_a_clock_that_jumped_back_counts_as_zero() -> None:
    """A negative duration is never lost and never an error."""
    histogram = filled([-1.0])
    assert (histogram.zero, histogram.minimum, histogram.percentile(0.5)) == (1, 0.0, 0.0)


@given(st.lists(LATENCIES, max_size=50))
def test_prometheus_buckets_are_cumulative(values: List[float]) -> None:
    """They never fall, and end at the count or below."""
    bounds = (0.0001, 0.001, 0.1, 10.0)
    histogram = filled(values)
    counts = list(histogram.cumulative(bounds))
    assert counts == sorted(counts)
    assert all(count <= len(values) for count in counts)
    for bound, count in zip(bounds, counts):
        assert sum(value <= bound / 1.0202 for value in values) <= count <= sum(v <= bound * 1.0202 for v in values)
