"""Latency histograms as they travel (docs/protocol.md): merged by adding, read as percentiles, never averaged."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil, log
from typing import Any, Optional

PERCENTILES = (("p50", 0.50), ("p95", 0.95), ("p99", 0.99), ("p999", 0.999))


@dataclass
class Histogram:
    """Counts per logarithmic bucket (DDSketch's mapping), seconds; `gamma` is None as long as nothing was added."""

    gamma: Optional[float] = None
    zero: int = 0
    count: int = 0
    total: float = 0.0
    low: Optional[float] = None
    high: Optional[float] = None
    buckets: dict[int, int] = field(default_factory=dict)

    def add(self, wire: dict[str, Any]) -> None:
        """Add a histogram in its JSON form; one of another gamma is re-bucketed by its buckets' values."""
        if not wire["count"]:
            return
        gamma: float = wire["gamma"]
        self.gamma = self.gamma or gamma
        self.zero += wire["zero"]
        self.count += wire["count"]
        self.total += wire["sum"]
        low, high = wire["min"], wire["max"]
        self.low = low if self.low is None else min(self.low, low)
        self.high = high if self.high is None else max(self.high, high)
        for index, number in wire["buckets"].items():
            place = int(index)
            if gamma != self.gamma:
                place = round(place * log(gamma) / log(self.gamma))
            self.buckets[place] = self.buckets.get(place, 0) + number

    def merge(self, other: Histogram) -> None:
        """Add another histogram to this one."""
        if other.gamma is None:
            return
        self.add(
            {
                "gamma": other.gamma,
                "zero": other.zero,
                "count": other.count,
                "sum": other.total,
                "min": other.low,
                "max": other.high,
                "buckets": other.buckets,
            }
        )

    def quantile(self, ratio: float) -> Optional[float]:
        """The smallest value (seconds) with at least `ratio` of all at or below it, within the relative error.

        None if empty. That is the nearest rank: the ceil(ratio * count)-th value.
        """
        if not self.count or self.gamma is None or self.low is None or self.high is None:
            return None
        rank = max(1, ceil(ratio * self.count))
        if rank >= self.count:
            return self.high
        seen = self.zero
        if seen >= rank:
            return max(0.0, self.low)
        for index in sorted(self.buckets):
            seen += self.buckets[index]
            if seen >= rank:
                value = 2 * self.gamma**index / (self.gamma + 1)
                return min(max(value, self.low), self.high)
        return self.high

    def latency(self) -> dict[str, Optional[float]]:
        """The latency object of summary.json: p50, p95, p99, p999 and max in seconds, None if nothing was measured."""
        return {**{name: self.quantile(ratio) for name, ratio in PERCENTILES}, "max": self.high}
