"""Intervals hold the truth as often as they say, on data whose truth is known; Student's t is the tables'."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from fury_collector.interval import GAMMA, Difference, Estimate, difference, mean, percentiles, student_t

TRIALS = 400


def wander(chance: random.Random, length: int, *, phi: float, spread: float) -> list[float]:
    """An AR(1) series around zero with this standard deviation, begun in its steady state."""
    value, series = chance.gauss(0, spread), []
    for _ in range(length):
        series.append(value)
        value = phi * value + chance.gauss(0, spread * math.sqrt(1 - phi**2))
    return series


def counted(batches: list[list[float]]) -> Counter[tuple[int, int]]:
    """Values by batch and bucket."""
    counts: Counter[tuple[int, int]] = Counter()
    for number, values in enumerate(batches):
        counts.update((number, math.ceil(math.log(value) / math.log(GAMMA))) for value in values)
    return counts


@pytest.mark.parametrize(
    ("freedom", "known"),
    [
        (1, 12.7062047362),
        (1.3, 7.5005293256),
        (2, 4.3026527297),
        (3, 3.1824463053),
        (16, 2.1199052992),
        (1e4, 1.9602012399),
    ],
)
def test_student_t_is_that_of_the_tables(freedom: float, known: float) -> None:
    """To ten digits, for broken degrees of freedom too."""
    assert student_t(freedom) == pytest.approx(known, rel=1e-9)


@pytest.mark.parametrize(("length", "phi"), [(20, 0.0), (20, 0.5), (60, 0.7), (240, 0.8)])
def test_the_interval_of_a_rate_holds_the_truth_95_times_in_100(length: int, phi: float) -> None:
    """Though each second is like the one before it, where the plain standard error would hold it 60 times in 100."""
    chance = random.Random(length)
    held = 0
    for _ in range(TRIALS):
        series = [100 + value for value in wander(chance, length, phi=phi, spread=10)]
        average = sum(series) / length
        estimate = mean(average, series, base=length)
        held += abs(math.log(average / 100)) <= student_t(estimate.freedom) * estimate.up
    assert 0.91 <= held / TRIALS <= 0.985


@pytest.mark.parametrize("ratio", [0.5, 0.95, 0.99])
def test_the_interval_of_a_percentile_holds_the_truth_95_times_in_100(ratio: float) -> None:
    """Where good and bad seconds follow each other: latencies of a batch share a level that wanders."""
    chance = random.Random(7)
    truth = math.exp(math.sqrt(0.3**2 + 0.5**2) * {0.5: 0.0, 0.95: 1.6449, 0.99: 2.3263}[ratio])
    held = 0
    for _ in range(TRIALS // 2):
        levels = wander(chance, 60, phi=0.6, spread=0.3)
        counts = counted([[math.exp(level + chance.gauss(0, 0.5)) for _ in range(50)] for level in levels])
        ordered = sorted(bucket for (_, bucket), number in counts.items() for _ in range(number))
        value = GAMMA ** (ordered[math.ceil(ratio * len(ordered)) - 1] - 0.5)
        (estimate,) = percentiles([(ratio, value)], counts, base=60)
        t = student_t(estimate.freedom)
        held += -t * estimate.down <= math.log(truth / value) <= t * estimate.up
    assert 0.90 <= held / (TRIALS // 2) <= 0.99


def test_single_runs_that_differ_by_chance_hold_no_difference_95_times_in_100() -> None:
    """At least, if runs of one setting scatter by 5 % and the tenths of each by as much."""
    chance = random.Random(3)
    held = 0
    for _ in range(TRIALS):
        sides = []
        for _ in range(2):
            between = chance.gauss(0, 0.05)
            series = [math.exp(between) * (100 + value) for value in wander(chance, 60, phi=0.5, spread=8)]
            sides.append([mean(sum(series) / 60, series, base=60)])
        found = difference(*sides)
        held += found.low <= 0 <= found.high
    assert held / TRIALS >= 0.95


def test_a_drift_within_the_run_widens_the_interval() -> None:
    """What goes up all the time has no mean to be sure of, however little it scatters."""
    chance = random.Random(1)
    flat = [100 + chance.gauss(0, 1) for _ in range(60)]
    rising = [value + number for number, value in enumerate(flat)]
    assert mean(129.5, rising, base=60).up > 10 * mean(100.0, flat, base=60).up


def test_repeats_replace_what_is_assumed_of_single_runs() -> None:
    """Runs that are sure of themselves but unlike each other leave a wide interval, and like ones a narrow one."""

    def sides(base: tuple[float, ...], other: tuple[float, ...]) -> Difference:
        return difference(
            *([Estimate(value, 0.001, 0.001, 0.001, 0.001, 10.0, 10.0) for value in side] for side in (base, other))
        )

    unlike, alike, single = sides((100, 120), (90, 110)), sides((100, 100.1), (90, 90.1)), sides((100,), (90,))
    assert unlike.low < -0.3
    assert unlike.high > 0.3
    assert -0.11 < alike.low < alike.high < -0.09
    assert -0.11 < single.low < single.high < -0.09


def test_repeats_are_not_surer_than_each_of_them() -> None:
    """Two runs that happen to come out the same do not make an interval of no width."""
    unsure = Estimate(100.0, 0.1, 0.1, 0.1, 0.1, 10.0, 10.0)
    found = difference([unsure, unsure], [unsure, unsure])
    assert found.low < -0.15
    assert found.high > 0.15


@pytest.mark.parametrize(("values", "batches"), [(100, 20), (5000, 2)])
def test_too_few_values_or_batches_have_no_interval_and_say_why(values: int, batches: int) -> None:
    """p99 of 100 values is one value; two batches know nothing of their variation."""
    chance = random.Random(5)
    counts = counted([[chance.lognormvariate(0, 1) for _ in range(values // batches)] for _ in range(batches)])
    (estimate,) = percentiles([(0.99, 10.0)], counts, base=20)
    assert not estimate.known
    assert "too few" in estimate.why
    assert estimate.short > 1


def test_values_that_are_all_the_same_are_known_to_their_bucket() -> None:
    """1 % either way, which is what the histogram knows."""
    (estimate,) = percentiles([(0.5, 0.01)], counted([[0.01] * 50] * 20), base=20)
    t = student_t(estimate.freedom)
    assert t * estimate.up == pytest.approx(0.01, abs=0.001)
    assert t * estimate.down == pytest.approx(0.01, abs=0.001)
