"""Confidence intervals of a run's figures from the run itself, and of the difference of two runs. Numbers in, numbers out.

A run is cut into batches of equal time, whose values are a series. Storage goes on doing what it did a moment ago, so the
values are autocorrelated and their plain standard error is far too small. What counts is the variance at low frequencies:
it is estimated from the series' first B cosine transforms (the equal-weighted cosine estimator), and Student's t with B
degrees of freedom makes the interval (Müller, Journal of Econometrics 141, 2007; Lazarus, Lewis, Stock and Watson, HAR
Inference: Recommendations for Practice, Journal of Business & Economic Statistics 36, 2018, whose B = 0.41 T^(2/3) it is).
A warm-up or a drift within the run lies at the lowest frequencies, and so widens the interval.

- mean: the relative error of the series' mean.
- percentile: the error of the share of values above the percentile, batch by batch, turned back into values by the merged
  histogram (Woodruff, Journal of the American Statistical Association 47, 1952). Averages no percentiles.
- difference: of the logarithms, each side's error apart (MOVER: Zou and Donner, Statistics in Medicine 27, 2008), with
  Satterthwaite's degrees of freedom.

One run cannot show how much runs of the same setting differ, and shared storage keeps its moods for longer than a run. Where
nothing repeats, the variance between runs is taken to be BETWEEN times that between the TENTHS of each run: of noise like 1/f
every scale has the same share, and of noise without memory a longer run has less. Repeats replace the assumption by what they
show.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Optional

LEVEL = 0.95
GAMMA = 1.01 / 0.99  # of the buckets: 1 % relative error, as in the agents' histograms
BETWEEN = 2.0  # chosen by what single runs of one setting do: bench/compare_aa.py
TENTHS = 10
LEAST_BATCHES = 3
LEAST_BEYOND = 10  # values above (and below) a percentile, without which it says nothing


@dataclass(frozen=True)
class Estimate:
    """A figure of one run; `down` and `up` are the standard errors of its logarithm towards lower and higher values.

    `alone_down` and `alone_up` are those of a run without repeats, what lies between runs included; each kind has its degrees
    of freedom.
    `why` says why there is no interval, empty if there is one; `short` by what factor the run was too short for one.
    """

    value: Optional[float]
    down: float = math.inf
    up: float = math.inf
    alone_down: float = math.inf
    alone_up: float = math.inf
    freedom: float = 0.0
    alone_freedom: float = 0.0
    batches: int = 0
    why: str = ""
    short: float = 1.0

    @property
    def known(self) -> bool:
        """Whether there is an interval, on both sides."""
        return self.value is not None and math.isfinite(self.down + self.up)


@dataclass(frozen=True)
class Difference:
    """How far one side is above another, as ratios - 1 (0.05 is 5 % more), with its interval at LEVEL."""

    ratio: Optional[float]
    low: float = -math.inf
    high: float = math.inf
    why: str = ""


def mean(value: Optional[float], series: Sequence[float], *, base: int) -> Estimate:
    """The estimate of a rate whose batches are `series`; `base`: how many batches of the shortest length the run has."""
    if not value:
        return Estimate(value, why="nothing was written")
    if len(series) < LEAST_BATCHES:
        return Estimate(value, batches=len(series), why=_few(len(series)), short=2 * LEAST_BATCHES / (len(series) or 1))
    average = math.fsum(series) / len(series)
    if not average > 0:
        return Estimate(value, batches=len(series), why="nothing was written")
    influence = [batch / average - 1 for batch in series]
    error, freedom = _error(influence, base)
    alone, alone_freedom = _alone(error, freedom, influence)
    return Estimate(value, error, error, alone, alone, freedom, alone_freedom, len(series))


def percentiles(
    figures: Sequence[tuple[float, Optional[float]]],
    counts: Mapping[tuple[int, int], int],
    *,
    base: int,
    width: int = 1,
) -> list[Estimate]:
    """The estimates of percentiles, each given as its ratio and value; `counts`: how many values are in (batch, bucket).

    width: how many batches are to be taken together; a batch in which nothing was measured is one all the same.
    """
    total = sum(counts.values())
    if not total:
        return [Estimate(value, why="nothing was measured") for _, value in figures]
    entries = sorted((bucket, batch // width, number) for (batch, bucket), number in counts.items())
    first = min(batch for _, batch, _ in entries)
    batches = max(batch for _, batch, _ in entries) - first + 1
    measured = [0] * batches
    for _, batch, number in entries:
        measured[batch - first] += number
    estimates = []
    for ratio, value in figures:
        beyond = total * min(ratio, 1 - ratio)
        if beyond < LEAST_BEYOND * (1 - 1e-9):
            why = f"{total} values are too few for it"
            estimates.append(Estimate(value, batches=batches, why=why, short=LEAST_BEYOND / beyond))
            continue
        if batches < LEAST_BATCHES:
            why, short = _few(batches), 2 * LEAST_BATCHES / batches
            estimates.append(Estimate(value, batches=batches, why=why, short=short))
            continue
        middle = _bucket(entries, ratio * total)
        above = [0] * batches
        for bucket, batch, number in reversed(entries):
            if bucket <= middle:
                break
            above[batch - first] += number
        share, mean_number = sum(above) / total, total / batches
        influence = [(a - share * n) / mean_number for a, n in zip(above, measured)]
        error, freedom = _error(influence, base)
        # So few values scatter by themselves; only what is beyond that lies between stretches of time, and runs.
        alone, alone_freedom = _alone(error, freedom, influence, chance=share * (1 - share) / mean_number)
        errors = []
        for one, its_freedom in ((error, freedom), (alone, alone_freedom)):
            t = student_t(its_freedom)
            low, high = ratio - t * one, ratio + t * one
            # Of what lies in a bucket only the bucket is known: the interval goes to its edges.
            step = math.log(GAMMA)
            errors.append(((middle - _bucket(entries, low * total) + 0.5) * step) / t if low > 0 else math.inf)
            errors.append(((_bucket(entries, high * total) - middle + 0.5) * step) / t if high < 1 else math.inf)
        known = all(map(math.isfinite, errors))
        why = "" if known else "it varied too much within the run"
        short = (
            1.0 if math.isfinite(errors[0] + errors[1]) else (student_t(freedom) * error / min(ratio, 1 - ratio)) ** 2
        )
        down, up, alone_down, alone_up = errors
        estimates.append(Estimate(value, down, up, alone_down, alone_up, freedom, alone_freedom, batches, why, short))
    return estimates


def difference(base: Sequence[Estimate], other: Sequence[Estimate]) -> Difference:
    """How far `other` is above `base`, each one run or several of one setting, with the interval."""
    if any(not one.value for one in (*base, *other)):
        return Difference(None, why="not measured in all of them")
    logs = [[math.log(one.value or 1.0) for one in side] for side in (base, other)]
    means = [sum(side) / len(side) for side in logs]
    between = means[1] - means[0]
    spread = sum((value - mean) ** 2 for side, mean in zip(logs, means) for value in side)
    repeats = sum(len(side) - 1 for side in logs)
    ratio = math.expm1(between)
    # How far the sides' own variation explains a difference, downwards and upwards.
    halves = [_summed(lower, upper, alone=not repeats) for lower, upper in ((other, base), (base, other))]
    if repeats:
        error = math.sqrt(spread / repeats * sum(1 / len(side) for side in logs))
        halves = [max(student_t(repeats) * error, half if math.isfinite(half) else 0.0) for half in halves]
    known = all(math.isfinite(half) for half in halves)
    why = "" if known else next((one.why for one in (*base, *other) if one.why), "")
    return Difference(ratio, math.expm1(between - halves[0]), _expm1(between + halves[1]), why)


@lru_cache(maxsize=4096)
def student_t(freedom: float) -> float:
    """The quantile of Student's t that LEVEL's two-sided interval takes, by bisection of the distribution."""
    low, high = 0.0, 1e4
    for _ in range(200):
        middle = (low + high) / 2
        # The share outside of -t to t.
        if _beta(freedom / 2, 0.5, freedom / (freedom + middle * middle)) > 1 - LEVEL:
            low = middle
        else:
            high = middle
        if high - low <= 1e-12 * high:
            break
    return high


def _beta(a: float, b: float, x: float) -> float:
    """The regularized incomplete beta function, by its continued fraction (Abramowitz and Stegun, 26.5.8)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta(b, a, 1 - x)
    # Lentz's method, from the first term on.
    fraction, c, d = 1.0, 1.0, 0.0
    for term in range(500):
        m = term // 2
        if term == 0:
            numerator = 1.0
        elif term % 2:
            numerator = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            numerator = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / (1 + numerator * d)
        c = 1 + numerator / c
        fraction *= c * d
        if term and abs(c * d - 1) < 1e-14:
            break
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    return front * (fraction - 1) / a


def _error(influence: Sequence[float], base: int) -> tuple[float, float]:
    """The standard error of the mean of a series around zero, and its degrees of freedom."""
    length = len(influence)
    wanted = max(1, round(0.41 * max(base, length) ** (2 / 3)))
    freedom = max(1, min(wanted, length // 2))
    variance = 0.0  # at low frequencies, of the whole series
    for k in range(1, freedom + 1):
        angle = math.pi * k / length
        transform = math.fsum(value * math.cos(angle * (n + 0.5)) for n, value in enumerate(influence))
        variance += 2 / length * transform**2 / freedom
    return math.sqrt(variance / length), float(freedom)


def _bucket(entries: Sequence[tuple[int, int, int]], rank: float) -> int:
    """The bucket in which the value of this rank lies."""
    seen = 0
    for bucket, _, number in entries:
        seen += number
        if seen >= rank - 1e-9:
            return bucket
    return entries[-1][0]


def _alone(error: float, freedom: float, influence: Sequence[float], *, chance: float = 0.0) -> tuple[float, float]:
    """The standard error of a run without repeats, and Satterthwaite's degrees of freedom for it.

    chance: the variance that a batch's number of values alone explains.
    """
    parts = min(TENTHS, len(influence))
    edges = [round(part * len(influence) / parts) for part in range(parts + 1)]
    means = [math.fsum(influence[begin:end]) / (end - begin) for begin, end in itertools.pairwise(edges)]
    between = math.fsum(mean * mean for mean in means) / (parts - 1) - chance * parts / len(influence)
    between = BETWEEN * max(0.0, between)
    variance = error**2 + between
    if not variance:
        return 0.0, freedom
    return math.sqrt(variance), variance**2 / (error**4 / freedom + between**2 / (parts - 1))


def _summed(lower: Sequence[Estimate], upper: Sequence[Estimate], *, alone: bool) -> float:
    """How far the mean logarithm of `lower` may be below and that of `upper` above what was seen, taken together."""
    parts = [(one.alone_down if alone else one.down, one, len(lower)) for one in lower]
    parts += [(one.alone_up if alone else one.up, one, len(upper)) for one in upper]
    if not all(math.isfinite(error) for error, _, _ in parts):
        return math.inf
    errors = [(error / number, one.alone_freedom if alone else one.freedom) for error, one, number in parts]
    variance = sum(error**2 for error, _ in errors)
    if not variance:
        return 0.0
    return student_t(variance**2 / sum(error**4 / freedom for error, freedom in errors)) * math.sqrt(variance)


def _expm1(value: float) -> float:
    return math.expm1(value) if value < 700 else math.inf


def _few(number: int) -> str:
    return f"{number} {'stretch' if number == 1 else 'stretches'} of time are too few"
