"""Percentiles of merged histograms."""

from __future__ import annotations

import pytest

from fury_collector.histogram import Histogram

from .conftest import histogram


def merged(*parts: tuple[float, ...]) -> Histogram:
    whole = Histogram()
    for part in parts:
        whole.add(histogram(*part))
    return whole


def test_a_percentile_is_the_smallest_value_with_at_least_that_share_at_or_below() -> None:
    """The nearest rank: of 110 values p99.9 is the greatest, of 4 the median is the second."""
    assert merged((0.001,) * 100, (0.001,) * 9 + (0.5,)).quantile(0.999) == 0.5
    assert merged((0.001, 0.002), (0.003, 0.004)).quantile(0.5) == pytest.approx(0.002, rel=0.01)
    assert merged((0.0, 0.0, 0.003)).quantile(0.5) == 0.0
    assert merged((0.0, 0.0, 0.003)).quantile(0.67) == 0.003
    assert Histogram().quantile(0.5) is None
