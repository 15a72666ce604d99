"""A mergeable latency histogram whose percentiles are within 1 % of the truth.

DDSketch's logarithmic mapping (Masson, Rim, Lee, VLDB 2019), without collapsing: a latency between 1 ns and 1 h
needs at most about 1,450 buckets.
"""

from __future__ import annotations

import math
from typing import Any, Dict, Iterator, Optional, Tuple

RELATIVE_ERROR = 0.01
GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_PER_LOG_GAMMA = 1 / math.log(GAMMA)
_log = math.log
_ceil = math.ceil


def bucket_value(index: int) -> float:
    """The value reported for a bucket: within `RELATIVE_ERROR` of everything in it."""
    return 2 * GAMMA**index / (GAMMA + 1)


class Histogram:
    """Counts of values (seconds) by bucket. One thread adds; any other may `copy` at any time without a lock."""

    __slots__ = ("buckets", "maximum", "minimum", "sum", "zero")

    def __init__(self) -> None:
        self.buckets: Dict[int, int] = {}
        self.zero = 0
        self.sum = 0.0
        self.minimum: Optional[float] = None
        self.maximum: Optional[float] = None

    @property
    def count(self) -> int:
        """How many values were added."""
        return self.zero + sum(self.buckets.values())

    def add(self, value: float) -> None:
        """Counts one value; a negative one (a clock that jumped) counts as zero."""
        if value > 0:
            index = _ceil(_log(value) * _PER_LOG_GAMMA)
            buckets = self.buckets
            buckets[index] = buckets.get(index, 0) + 1
            self.sum += value
        else:
            value = 0.0
            self.zero += 1
        if self.maximum is None or value > self.maximum:
            self.maximum = value
        if self.minimum is None or value < self.minimum:
            self.minimum = value

    def copy(self) -> Histogram:
        """An independent histogram with the same counts."""
        other = Histogram()
        other.buckets = self.buckets.copy()  # one C call: whole even while another thread adds
        other.zero = self.zero
        other.sum = self.sum
        other.minimum = self.minimum
        other.maximum = self.maximum
        return other

    def merge(self, other: Histogram) -> None:
        """Adds everything `other` has counted."""
        buckets = self.buckets
        for index, count in other.buckets.items():
            buckets[index] = buckets.get(index, 0) + count
        self.zero += other.zero
        self.sum += other.sum
        if other.minimum is not None and (self.minimum is None or other.minimum < self.minimum):
            self.minimum = other.minimum
        if other.maximum is not None and (self.maximum is None or other.maximum > self.maximum):
            self.maximum = other.maximum

    def since(self, earlier: Histogram) -> Histogram:
        """What was added after the copy `earlier` was taken of this histogram.

        Counts and sum are exact; minimum and maximum are the outermost buckets' values, clipped to the whole's.
        """
        delta = Histogram()
        for index, count in self.buckets.items():
            added = count - earlier.buckets.get(index, 0)
            if added > 0:
                delta.buckets[index] = added
        delta.zero = self.zero - earlier.zero
        if not delta.buckets and not delta.zero:
            return delta
        delta.sum = max(0.0, self.sum - earlier.sum)
        delta.minimum = 0.0 if delta.zero else self._clip(bucket_value(min(delta.buckets)))
        delta.maximum = self._clip(bucket_value(max(delta.buckets))) if delta.buckets else 0.0
        return delta

    def percentile(self, quantile: float) -> Optional[float]:
        """The smallest value with at least the share `quantile` (0 to 1) of all at or below it, None when there are none.

        That is the nearest rank: the ceil(quantile * count)-th value.
        """
        count = self.count
        if not count:
            return None
        rank = max(1, _ceil(quantile * count))
        if rank >= count:
            return self.maximum
        seen = self.zero
        if seen >= rank:
            return 0.0
        for index in sorted(self.buckets):
            seen += self.buckets[index]
            if seen >= rank:
                return self._clip(bucket_value(index))
        return self.maximum

    def summary(self) -> Dict[str, Optional[float]]:
        """The figures of summary.json: p50, p95, p99, p999 and max in seconds, null when nothing was counted."""
        return {
            "p50": self.percentile(0.50),
            "p95": self.percentile(0.95),
            "p99": self.percentile(0.99),
            "p999": self.percentile(0.999),
            "max": self.maximum,
        }

    def cumulative(self, bounds: Tuple[float, ...]) -> Iterator[int]:
        """For each of the ascending `bounds`, how many values are at most that, as far as the buckets can tell."""
        seen = self.zero
        ordered = sorted(self.buckets.items())
        position = 0
        for bound in bounds:
            while position < len(ordered) and bucket_value(ordered[position][0]) <= bound:
                seen += ordered[position][1]
                position += 1
            yield seen

    def to_dict(self) -> Dict[str, Any]:
        """The form in which histograms travel in events (docs/protocol.md)."""
        return {
            "gamma": GAMMA,
            "zero": self.zero,
            "buckets": {str(index): count for index, count in sorted(self.buckets.items())},
            "count": self.count,
            "sum": self.sum,
            "min": self.minimum,
            "max": self.maximum,
        }

    def _clip(self, value: float) -> float:
        if self.minimum is not None and value < self.minimum:
            return self.minimum
        if self.maximum is not None and value > self.maximum:
            return self.maximum
        return value
