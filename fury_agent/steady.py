"""Bytes over time in bounded memory, and whether their rate was steady at the end.

The criterion is the steady state of SNIA's Solid State Storage Performance Test Specification 2.0.2 (October 2020),
section 2.1.24: within the measurement window the greatest minus the least value is at most 20 % of the average, and
the best linear fit rises or falls by at most 10 % of it. SNIA's window is five rounds of a test that goes on until it is
steady; here, where the runtime is given, it is the run's last third in ten equal parts, and the line's rise is taken
over all of it, not from the first part's middle to the last's.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Dict, List, Optional, Tuple

MAX_SLOPE_RATIO = 0.10
MAX_SPREAD_RATIO = 0.20
FINEST_S = 0.125
_BIN_LIMIT = 4096
_PARTS = 10
_MIN_WINDOW_S = 3.0
_MIN_ADDS = 10
_ROUNDING = 1e-9


class _Bin:
    """What was added in one bin, evenly over what it covers: the bytes' first to last instant in it.

    The first and the last bin of a run are seldom full, and their rate is right all the same.
    """

    __slots__ = ("adds", "begin_s", "byte_seconds", "end_s", "size")

    def __init__(self, begin_s: float, end_s: float) -> None:
        self.begin_s = begin_s
        self.end_s = end_s
        self.size = 0.0
        self.adds = 0  # that ended in it
        self.byte_seconds = 0.0  # each byte counted with the span of its add


class Series:
    """Bytes by the time (seconds of one clock, any origin) in which they were moved: at most 4096 bins of 1/8, 1/4, … s.

    One thread adds: several take a lock of theirs around `add`. One other may read at any time without it, and misses
    at most some of the add that is under way.
    """

    def __init__(self) -> None:
        self.width_s = FINEST_S
        self._bins: Dict[int, _Bin] = {}
        self._first = self._last = 0

    def add(self, begin_s: float, end_s: float, size: int) -> None:
        """Spreads `size` bytes evenly over the span; an instant, or a clock that jumped back, is all at `end_s`."""
        if size <= 0:
            return
        begin_s = min(begin_s, end_s)
        first, last = self._reach(begin_s, end_s)
        span_s = end_s - begin_s
        rest = float(size)
        at_s = begin_s
        for index in range(first, last):
            until_s = (index + 1) * self.width_s
            part = size * (until_s - at_s) / span_s
            self._put(index, at_s, until_s, part, span_s)
            rest -= part
            at_s = until_s
        self._put(last, at_s, end_s, max(rest, 0.0), span_s).adds += 1

    def bytes_between(self, begin_s: float, end_s: float) -> float:
        """Bytes of the span (begin_s, end_s]; a bin that lies in it in part counts with that share."""
        return self._between(begin_s, end_s)[0]

    def _between(self, begin_s: float, end_s: float) -> Tuple[float, float, float]:
        """Bytes, adds that ended, and byte seconds of the span."""
        size = adds = byte_seconds = 0.0
        for one in list(self._bins.values()):  # one C call: whole even while another thread adds
            first_s, last_s = one.begin_s, one.end_s
            if last_s > first_s:
                share = (min(end_s, last_s) - max(begin_s, first_s)) / (last_s - first_s)
            else:
                share = 1.0 if begin_s < last_s <= end_s else 0.0
            if share > 0:
                size += one.size * share
                adds += one.adds * share
                byte_seconds += one.byte_seconds * share
        return size, adds, byte_seconds

    def _put(self, index: int, begin_s: float, end_s: float, size: float, span_s: float) -> _Bin:
        one = self._bins.get(index)
        if one is None:
            one = self._bins[index] = _Bin(begin_s, end_s)
        else:
            one.begin_s = min(one.begin_s, begin_s)
            one.end_s = max(one.end_s, end_s)
        one.size += size
        one.byte_seconds += size * span_s
        return one

    def _reach(self, begin_s: float, end_s: float) -> Tuple[int, int]:
        """The indices of the first and the last bin of the span, after the bins were widened as far as it needs."""
        while True:
            # What ends with a bin is in it, not in the next one; what has no length and lies between two is in the next.
            first = math.floor(begin_s / self.width_s)
            last = max(first, math.ceil(end_s / self.width_s) - 1)
            lowest, highest = (min(self._first, first), max(self._last, last)) if self._bins else (first, last)
            if highest - lowest < _BIN_LIMIT:
                self._first, self._last = lowest, highest
                return first, last
            self._widen()

    def _widen(self) -> None:
        merged: Dict[int, _Bin] = {}
        for index, one in self._bins.items():
            two = merged.setdefault(index // 2, _Bin(one.begin_s, one.end_s))
            two.begin_s = min(two.begin_s, one.begin_s)
            two.end_s = max(two.end_s, one.end_s)
            two.size += one.size
            two.adds += one.adds
            two.byte_seconds += one.byte_seconds
        self._bins = merged  # new bins in a new dict: a reader goes on with the old ones
        self._first, self._last = self._first // 2, self._last // 2
        self.width_s *= 2


@dataclasses.dataclass(frozen=True)
class Steadiness:
    """Whether the rate was steady over the window of `seconds`, and by how much.

    `slope_ratio` is the rise (negative: the fall) of the least-squares line through the ten parts' rates over the whole
    window, `spread_ratio` the range of those rates, both divided by the mean rate.
    """

    steady: bool
    slope_ratio: float
    spread_ratio: float
    seconds: float


def steadiness(series: Series, begin_s: float, end_s: float) -> Optional[Steadiness]:
    """How steady the rate was in the last third of a run from `begin_s` to `end_s`, or None where it can't be told.

    That is: in a window shorter than 3 s, with fewer than ten adds in it, or with adds that on average (by bytes) took
    longer than two of the ten parts: spread evenly, they would look steady whatever happened meanwhile.
    """
    window_s = (end_s - begin_s) / 3
    if window_s < _MIN_WINDOW_S - _ROUNDING:
        return None
    start_s = end_s - window_s
    size, adds, byte_seconds = series._between(start_s, end_s)
    part_s = window_s / _PARTS
    if adds < _MIN_ADDS - _ROUNDING or byte_seconds > size * part_s * 2 * (1 + _ROUNDING):
        return None
    edges = [start_s + number * part_s for number in range(_PARTS)] + [end_s]
    rates = [series.bytes_between(begin, end) / part_s for begin, end in zip(edges, edges[1:])]
    mean = math.fsum(rates) / _PARTS
    if mean <= 0:
        return None
    slope_ratio = _slope(rates) * _PARTS / mean
    spread_ratio = (max(rates) - min(rates)) / mean
    steady = abs(slope_ratio) <= MAX_SLOPE_RATIO and spread_ratio <= MAX_SPREAD_RATIO
    return Steadiness(steady, slope_ratio, spread_ratio, window_s)


def _slope(values: List[float]) -> float:
    """The least-squares line's rise from one value to the next."""
    middle = (len(values) - 1) / 2
    squares = math.fsum((number - middle) ** 2 for number in range(len(values)))
    return math.fsum((number - middle) * value for number, value in enumerate(values)) / squares
