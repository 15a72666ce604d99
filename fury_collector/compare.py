"""How runs differ: rows in, plain objects and text out. No database, no clock.

What was asked for and what the machines are come first, so that nobody compares apples with pears. Then every figure of the
runs, the difference with its interval (interval.py has the method and its sources), and one of four words:

- faster, slower: the whole interval lies beyond the margin, the smallest difference that matters;
- no difference: the whole interval lies within it (two one-sided tests, Schuirmann, Journal of Pharmacokinetics and
  Biopharmaceutics 15, 1987): an answer, not the want of one;
- can't tell: neither; with how long the runs would have to be.

A margin is needed even where intervals are narrow: two runs of the same setting are never quite alike, and what one run
shows of its own variation does not hold all of what lies between runs.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Optional

from fury_collector import html, interval
from fury_collector.errors import BadInput
from fury_collector.histogram import PERCENTILES, Histogram
from fury_collector.interval import GAMMA, Difference, Estimate
from fury_collector.report import Result, Row
from fury_collector.rows import AgentRows, RunRows

MARGIN = 5.0  # percent of a rate
LATENCY_MARGIN = 20.0  # percent of a duration: single runs of one setting differ more in it than in their rates
FOREIGN = 0.2  # how much more a disk may have written for each byte of ours in one run than in the other
PACED = 0.98  # of rate_mb_s: a run that reached this was held by it, not by the disk
BATCH_S = 1.0  # the shortest batch
BATCHES = 240  # at most of a run, whatever its length
FLEET = ""  # the scope of the whole run; an agent's is its name
FASTER, SLOWER, SAME, UNKNOWN, MISSING = "faster", "slower", "no difference", "can't tell", "not in both"
KINDS = ("write", "fsync", "read", "rollover")
WIDTH = 120
LISTED = 12  # agents on the terminal, and lines of one kind of difference
VOLATILE = ("calibrated_bytes_per_second", "free_bytes")  # facts that are never the same twice
BUSY = 0.15  # how much host CPU has to differ to be told

_DISTANT = -1_000_000  # the bucket of zero
_STEP = math.log(GAMMA)
_SLACK = 0.011  # of a median that comes from a histogram


@dataclass(frozen=True)
class Metric:
    """One figure: its key in JSON, its name for people, and whether more of it is better."""

    key: str
    name: str
    kind: str
    ratio: float = 0.0

    @property
    def rate(self) -> bool:
        """Whether it is a rate, of which more is better; else it is a duration."""
        return self.kind == "throughput"

    @property
    def narrow(self) -> bool:
        """Whether the margin of rates is its own: half of the rollovers is a rate's other side."""
        return self.rate or self.key == "rollover_p50"

    def shown(self, value: Optional[float]) -> str:
        """A value with its unit."""
        return html.rate(value) if self.rate else html.seconds(value)


METRICS = (
    Metric("throughput", "throughput", "throughput"),
    *(
        Metric(f"{kind}_{name}", f"{kind} p{ratio * 100:g}", kind, ratio)
        for kind in KINDS
        for name, ratio in PERCENTILES
    ),
)


@dataclass(frozen=True)
class Observed:
    """One run as far as a comparison needs it: bounded by agents times batches, whatever the number of its rows."""

    run: RunRows
    result: Result
    step_s: float
    rates: dict[str, list[float]]  # bytes per second in each batch, by scope
    histograms: dict[tuple[str, str], Histogram]  # by scope and kind
    estimates: dict[tuple[str, str], Estimate]  # by scope and a metric's key
    host_cpu_ratio: dict[str, float]
    unsettled_s: float = 0.0  # how long the rate was another one at the beginning

    @property
    def foreign_ratio(self) -> Optional[float]:
        """What others wrote to the run's devices, by what its agents did; None where the kernel's counts are not known."""
        devices: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for agent in self.result.agents:
            said = agent.honesty
            device, whole, own = (
                said.get(key) for key in ("block_device", "block_device_written_bytes", "process_written_bytes")
            )
            if device is None or whole is None or own is None:
                return None
            devices.setdefault((agent.host, device), []).append((whole, own))
        ours = sum(own for counts in devices.values() for _, own in counts)
        # Agents on one device each see all that it wrote.
        everything = sum(max(whole for whole, _ in counts) for counts in devices.values())
        return max(0.0, everything / ours - 1) if ours else None

    @property
    def paced(self) -> bool:
        """Whether its rate is the one that was asked for, and no more was to be seen of the disk."""
        return _paced(self.result)

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.result.run_id


@dataclass(frozen=True)
class Side:
    """One run, or several of one setting, under a letter and a name."""

    letter: str
    name: str
    runs: tuple[Observed, ...]

    def value(self, scope: str, metric: Metric) -> Optional[float]:
        """The figure; of several runs the geometric mean, None if one of them has none."""
        values = [estimate.value for estimate in self.estimates(scope, metric)]
        known = [value for value in values if value]
        return statistics.geometric_mean(known) if known and len(known) == len(values) else None

    def estimates(self, scope: str, metric: Metric) -> list[Estimate]:
        """The figure in each run."""
        return [run.estimates.get((scope, metric.key), Estimate(None)) for run in self.runs]


@dataclass(frozen=True)
class Line:
    """One figure of two sides."""

    scope: str
    metric: Metric
    values: tuple[Optional[float], Optional[float]]
    difference: Difference
    word: str
    advice: str = ""


@dataclass(frozen=True)
class Pair:
    """One side against the first one."""

    base: Side
    other: Side
    lines: tuple[Line, ...]

    def of(self, scope: str) -> list[Line]:
        """The lines of the fleet or of an agent."""
        return [line for line in self.lines if line.scope == scope]

    @property
    def headline(self) -> str:
        """What came out of it for the fleet's throughput, and how many of the fleet's figures say what."""
        fleet = self.of(FLEET)
        said = f"{self.other.letter} against {self.base.letter}: "
        if fleet and fleet[0].metric.rate:
            first = fleet[0]
            what = {SAME: "no difference in throughput", UNKNOWN: "can't tell about throughput"}
            said += what.get(first.word, f"{first.word} in throughput")
            if first.difference.ratio is not None:
                said += f", {percent(first.difference.ratio)} ({spoken(first.difference)})"
            said += f"; {first.advice}" if first.advice else ""
        rest = Counter(line.word for line in fleet[1:])
        told = [f"{rest[word]} {word}" for word in (FASTER, SLOWER, SAME, UNKNOWN, MISSING) if rest[word]]
        return said + (f". Latencies and rollovers: {', '.join(told)}" if told else "")


@dataclass(frozen=True)
class Contrast:
    """Something that is not the same everywhere: one value for each side, and of which agents."""

    kind: str  # parameter, agents or machine
    key: str
    values: tuple[str, ...]
    agents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Everything that is told."""

    sides: tuple[Side, ...]
    margin: float  # percent of a rate
    latency_margin: float  # percent of a duration
    contrasts: tuple[Contrast, ...]
    warnings: tuple[str, ...]
    pairs: tuple[Pair, ...] = field(default=())

    @property
    def agents(self) -> list[str]:
        """The agents that every run has."""
        return [agent.name for agent in self.sides[0].runs[0].result.agents if _everywhere(self.sides, agent.name)]


# One run


class _Values:
    """Values of one kind of one scope by batch and bucket."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[int, int]] = Counter()
        self._merged = Histogram()
        self._total, self._low, self._high, self._single = 0.0, math.inf, 0.0, Counter[int]()

    def one(self, batch: int, value: float) -> None:
        """Add one value."""
        bucket = math.ceil(math.log(value) / _STEP) if value > 0 else _DISTANT
        self.counts[batch, bucket] += 1
        self._single[bucket] += 1
        self._total += value
        self._low, self._high = min(self._low, value), max(self._high, value)

    def add(self, batch: int, wire: Row) -> None:
        """Add a histogram in its JSON form."""
        if not wire["count"]:
            return
        self._merged.add(dict(wire))
        same = abs(wire["gamma"] / GAMMA - 1) < 1e-9
        stretch = 1.0 if same else math.log(wire["gamma"]) / _STEP
        for index, number in wire["buckets"].items():
            self.counts[batch, round(int(index) * stretch)] += number
        if wire["zero"]:
            self.counts[batch, _DISTANT] += wire["zero"]

    def merge(self, other: _Values) -> None:
        """Add those of another scope."""
        self.counts.update(other.counts)
        self._merged.merge(other.histogram)

    @property
    def histogram(self) -> Histogram:
        """All of them, whatever their batch."""
        whole = Histogram()
        whole.merge(self._merged)
        if self._single:
            buckets = {bucket: number for bucket, number in self._single.items() if bucket != _DISTANT}
            zero, count = self._single[_DISTANT], self._single.total()
            told = {"zero": zero, "count": count, "sum": self._total, "min": self._low, "max": self._high}
            whole.add({"gamma": GAMMA, "buckets": buckets, **told})
        return whole


class _Observing:
    """The figures of a run as its rows stream by, agent by agent: of an agent that is done only what is told is kept."""

    def __init__(self, run: RunRows, result: Result) -> None:
        self.result = result
        self.seconds = max((agent.seconds for agent in result.agents), default=0.0) or 1.0
        self.batches = max(1, min(BATCHES, round(self.seconds / BATCH_S)))
        self.step_s = self.seconds / self.batches
        self.begins = {agent.name: _begin_s(agent) for agent in run.agents}
        self.written = {agent.name: [0.0] * self.batches for agent in run.agents}
        self.ends: dict[str, float] = {}
        self.chunk_s = 0.0
        self.fleet = {kind: _Values() for kind in KINDS}
        self.histograms: dict[tuple[str, str], Histogram] = {}
        self.estimates: dict[tuple[str, str], Estimate] = {}
        self.intervals: list[float] = []
        self.host_cpu_ratio: dict[str, float] = {}
        for agent in result.agents:  # what the report shows, also of what no sample tells any more
            latencies = (agent.writes, agent.fsyncs, agent.reads)
            self.histograms |= {(agent.name, kind): one for kind, one in zip(KINDS, latencies)}
        self.histograms |= {
            (FLEET, kind): one for kind, one in zip(KINDS, (result.writes, result.fsyncs, result.reads))
        }

    def batch_of(self, instant_s: float) -> int:
        """The batch of an instant; what lies outside is in the first or the last."""
        return min(self.batches - 1, max(0, int(instant_s / self.step_s)))

    def rollovers(self, name: str, rows: Iterable[Row]) -> None:
        """Take in the rollovers of one agent."""
        begin_s = self.begins.get(name)
        found = {"fsync": _Values(), "rollover": _Values()}
        for row in rows if begin_s is not None else ():
            if row["ramp_bytes"] >= row["bytes"]:
                continue
            end = row["t_mono_ns"] / 1e9 - (begin_s or 0.0) - (row["read_seconds"] or 0.0)
            size = row["bytes"] - row["ramp_bytes"]
            _spread(self.written[name], size, max(0.0, end - row["seconds"]), end, self.step_s)
            self.ends[name] = max(end, self.ends.get(name, 0.0))
            found["fsync"].one(self.batch_of(end), row["fsync_seconds"])
            found["rollover"].one(self.batch_of(end), row["seconds"])
        self.histograms[name, "rollover"] = found["rollover"].histogram
        self.chunk_s = max(self.chunk_s, self.histograms[name, "rollover"].quantile(0.5) or 0.0)
        for kind, values in found.items():
            self._done(name, kind, values)

    def samples(self, name: str, rows: Iterable[Row]) -> None:
        """Take in the samples of one agent."""
        begin_s = self.begins.get(name)
        found = {"write": _Values(), "read": _Values()}
        intervals, busy, weight = [], 0.0, 0.0
        for row in rows if begin_s is not None else ():
            end = row["t_mono_ns"] / 1e9 - (begin_s or 0.0)
            middle = (max(0.0, end - row["interval_s"]) + end) / 2
            if end > 0:
                intervals.append(row["interval_s"])
                if row["host_cpu_ratio"] is not None:
                    busy += row["host_cpu_ratio"] * row["interval_s"]
                    weight += row["interval_s"]
            for kind, values in found.items():
                values.add(self.batch_of(middle), row[f"{kind}_histogram"])
        if weight:
            self.host_cpu_ratio[name] = busy / weight
        self.intervals += [statistics.median(intervals)] if intervals else []
        for kind, values in found.items():
            self._done(name, kind, values)

    def _done(self, name: str, kind: str, values: _Values) -> None:
        self.fleet[kind].merge(values)
        self._percentiles(name, kind, values)

    def _percentiles(self, scope: str, kind: str, values: _Values) -> None:
        histogram, total = self.histograms[scope, kind], values.counts.total()
        if not histogram.count or not total:
            return
        sampled = kind in ("write", "read")
        if sampled:
            width = max(1, round((statistics.median(self.intervals) if self.intervals else 0.0) / self.step_s))
        else:
            width = math.ceil(self.batches / total)
        metrics = [metric for metric in METRICS if metric.kind == kind]
        found = interval.percentiles(
            [(metric.ratio, histogram.quantile(metric.ratio)) for metric in metrics],
            values.counts,
            base=self.batches if sampled else self.batches // width,
            width=width,
        )
        self.estimates |= {(scope, metric.key): estimate for metric, estimate in zip(metrics, found)}

    def finish(self, run: RunRows) -> Observed:
        """The rates, and what the fleet comes to."""
        lasted = {agent.name: agent.seconds for agent in self.result.agents}
        for agent in run.agents:
            tail = sum(epoch.final.payload.get("tail_bytes", 0) for epoch in agent.epochs if epoch.final is not None)
            end = self.ends.get(agent.name, 0.0)
            if tail and end < lasted[agent.name]:
                _spread(self.written[agent.name], tail, end, lasted[agent.name], self.step_s)
        self.histograms[FLEET, "rollover"] = self.fleet["rollover"].histogram
        for kind, values in self.fleet.items():
            self._percentiles(FLEET, kind, values)
        rates = {FLEET: [sum(column) / self.step_s for column in zip(*self.written.values())]}
        rates |= {name: [size / self.step_s for size in sizes] for name, sizes in self.written.items()}
        width = max(1, math.ceil(self.chunk_s * (1 - _SLACK) / self.step_s))
        wholes = {FLEET: (self.result.rate, self.seconds)}
        wholes |= {agent.name: (agent.rate, agent.seconds) for agent in self.result.agents}
        for scope, (rate, seconds) in wholes.items():
            series = _coarse(rates.get(scope, [])[: max(1, round(seconds / self.step_s))], width)
            found = interval.mean(rate, series, base=len(series))
            if _paced(self.result):  # the rate it was told holds from run to run
                found = replace(found, alone_down=found.down, alone_up=found.up, alone_freedom=found.freedom)
            self.estimates[scope, METRICS[0].key] = found
        return Observed(
            run=run,
            result=self.result,
            step_s=self.step_s,
            rates=rates,
            histograms=self.histograms,
            estimates=self.estimates,
            host_cpu_ratio=self.host_cpu_ratio,
            unsettled_s=_unsettled(_coarse(rates[FLEET], width)) * width * self.step_s,
        )


def observe(run: RunRows, result: Result, rollovers: Iterable[Row], samples: Iterable[Row]) -> Observed:
    """The figures of a run with their errors; rows are to come agent by agent, and are never held."""
    observing = _Observing(run, result)
    for name, rows in itertools.groupby(rollovers, key=lambda row: str(row["agent"])):
        observing.rollovers(name, rows)
    for name, rows in itertools.groupby(samples, key=lambda row: str(row["agent"])):
        observing.samples(name, rows)
    return observing.finish(run)


def _paced(result: Result) -> bool:
    rate = result.parameters.get("rate_mb_s")
    if not isinstance(rate, (int, float)) or isinstance(rate, bool) or not rate:
        return False
    return all(agent.rate >= PACED * rate * 1e6 for agent in result.agents)


def _begin_s(agent: AgentRows) -> Optional[float]:
    """When an agent's ramp was over, on its own clock."""
    starts = [epoch.start.t_mono_ns / 1e9 for epoch in agent.epochs if epoch.start is not None]
    return min(starts) + agent.ramp_seconds if starts else None


def _spread(sizes: list[float], size: float, begin_s: float, end_s: float, step_s: float) -> None:
    """Add bytes to the batches that the time they took lies in, evenly; what lies beyond the last one is in none."""
    if end_s <= begin_s:
        return
    first, last = int(begin_s / step_s), int(end_s / step_s)
    for batch in range(max(0, first), min(last, len(sizes) - 1) + 1):
        covered = min(end_s, (batch + 1) * step_s) - max(begin_s, batch * step_s)
        sizes[batch] += size * max(0.0, covered) / (end_s - begin_s)


def _coarse(series: Sequence[float], width: int) -> list[float]:
    """The means of so many batches each; what is left over at the end is in none."""
    return [sum(series[at : at + width]) / width for at in range(0, len(series) - width + 1, width)]


def _unsettled(series: Sequence[float]) -> int:
    """How many batches at the beginning are better left out (the marginal standard error rule, White, SIMULATION 69, 1997)."""
    length = len(series)
    if length < 8:
        return 0

    def error(cut: int) -> float:
        rest = series[cut:]
        return statistics.pvariance(rest) / len(rest)

    best = min(range(length // 2 + 1), key=error)
    if not best:
        return 0
    head, rest = statistics.fmean(series[:best]), statistics.fmean(series[best:])
    return best if rest and abs(head / rest - 1) * best / length * 100 > MARGIN / 2 else 0


# Several runs


def compare(
    groups: Sequence[tuple[str, Sequence[Observed]]],
    *,
    margin: float = MARGIN,
    latency_margin: float = LATENCY_MARGIN,
) -> Comparison:
    """Compare each of the named groups of runs with the first one; a single run is a group of one.

    margin, latency_margin: the smallest difference that matters, percent.
    """
    if len(groups) < 2:
        raise BadInput("one run alone is nothing to compare: name two or more, or groups of them with --group")
    if len(groups) > 26:
        raise BadInput(f"{len(groups)} runs are more than a table holds (26): put repeats together with --group")
    sides = tuple(Side(chr(65 + n), name, tuple(runs)) for n, (name, runs) in enumerate(groups))
    common = [agent.name for agent in sides[0].runs[0].result.agents if _everywhere(sides, agent.name)]
    margins = (margin, latency_margin)
    pairs = tuple(_pair(sides[0], other, common, margins) for other in sides[1:])
    return Comparison(sides, margin, latency_margin, tuple(_contrasts(sides, common)), tuple(_warnings(sides)), pairs)


def _everywhere(sides: Sequence[Side], name: str) -> bool:
    return all(any(agent.name == name for agent in run.result.agents) for side in sides for run in side.runs)


def _pair(base: Side, other: Side, common: Sequence[str], margins: tuple[float, float]) -> Pair:
    lines = []
    for scope in (FLEET, *common):
        for metric in METRICS:
            values = base.value(scope, metric), other.value(scope, metric)
            if values != (None, None):
                lines.append(_line(base, other, scope, metric, margins[0] if metric.narrow else margins[1]))
    return Pair(base, other, tuple(lines))


def _line(base: Side, other: Side, scope: str, metric: Metric, margin: float) -> Line:
    estimates = base.estimates(scope, metric), other.estimates(scope, metric)
    difference = interval.difference(*estimates)
    single = all(len(side.runs) == 1 for side in (base, other))  # repeats show what disturbs them
    if single and metric.kind in ("throughput", "rollover"):
        difference = _credited(difference, _burden(base.runs[0]), _burden(other.runs[0]), metric)
    values = base.value(scope, metric), other.value(scope, metric)
    if difference.ratio is None:
        return Line(scope, metric, values, difference, MISSING)
    low, high = difference.low * 100, difference.high * 100
    if -margin < low and high < margin:
        less = f"it is less than {margin:g} %" if low > 0 or high < 0 else ""
        return Line(scope, metric, values, difference, SAME, less)
    if low > margin or high < -margin:
        shares = [side.runs[0].foreign_ratio or 0.0 for side in (base, other)]
        if single and metric.kind in ("write", "fsync", "read") and _unequal(shares):
            busier = base if shares[0] > shares[1] else other
            return Line(scope, metric, values, difference, UNKNOWN, f"others used {busier.letter}'s disk")
        return Line(scope, metric, values, difference, FASTER if (low > margin) == metric.rate else SLOWER)
    runs = [len(side.runs) for side in (base, other)]
    seconds = min(run.result.seconds for side in (base, other) for run in side.runs)
    short = max(one.short for side in estimates for one in side)
    return Line(scope, metric, values, difference, UNKNOWN, _advice(difference, margin, short, seconds, max(runs)))


def _burden(run: Observed) -> float:
    """What the disk wrote for each byte of the run's; 1 where nothing is known, and where the rate was not the disk's doing."""
    return 1.0 if run.paced else 1 + (run.foreign_ratio or 0.0)


def _credited(difference: Difference, base: float, other: float, metric: Metric) -> Difference:
    """The interval, wider to where it would lie if what others wrote to the disks had been the runs' own bytes."""
    credit = other / base if metric.rate else base / other
    low, high = (1 + difference.low) * min(1.0, credit) - 1, (1 + difference.high) * max(1.0, credit) - 1
    return replace(difference, low=low, high=high)


def _unequal(ratios: Sequence[float]) -> bool:
    return bool(ratios) and (1 + max(ratios)) / (1 + min(ratios)) > 1 + FOREIGN


def _advice(difference: Difference, margin: float, short: float, seconds: float, runs: int) -> str:
    """How much longer, or how many more, runs would have to be to tell; as the interval shrinks with the root of the time."""
    half = (difference.high - difference.low) * 50
    distance = abs(abs((difference.ratio or 0.0) * 100) - margin)
    factor = (half / max(distance, margin / 2)) ** 2 if math.isfinite(half) else 4 * short
    factor = max(factor, short, 1.2)
    if runs > 1:
        wanted = math.ceil(runs * factor)
        return f"takes {wanted} runs of each" if wanted <= 50 else "repeats are too unlike each other"
    wanted_s = seconds * factor
    if factor > 100 or wanted_s > 86400:
        return "takes repeats (--group)"
    shown = f"{math.ceil(wanted_s / 10) * 10} s" if wanted_s < 120 else f"{math.ceil(wanted_s / 60)} min"
    return f"takes runs of {shown}"


def _contrasts(sides: Sequence[Side], common: Sequence[str]) -> Iterable[Contrast]:
    """What was asked for, who took part and on what machines, as far as it is not the same in all runs."""
    keys = dict.fromkeys(key for side in sides for run in side.runs for key in run.result.parameters)
    for key in keys:
        values = [_of_side(side, lambda run, key=key: run.result.parameters.get(key)) for side in sides]  # type: ignore[misc]
        if _differ(values):
            yield Contrast("parameter", key, _told(values))
    planned = [_of_side(side, lambda run: sorted({agent.planned_s for agent in run.result.agents})) for side in sides]
    if _differ(planned) and not {"seconds", "minutes"} & {key for key in keys if _differ(_parameter(sides, key))}:
        yield Contrast("parameter", "planned seconds", _told(planned))
    rosters = [_of_side(side, lambda run: sorted(agent.name for agent in run.result.agents)) for side in sides]
    if _differ(rosters):
        yield Contrast("agents", "agents", _told(rosters))
    found: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for name in common:
        for key, values in _machine(sides, name).items():
            if _differ(values):
                found.setdefault((key, _told(values)), []).append(name)
    for (key, told), names in found.items():
        yield Contrast("machine", key, told, tuple(names))


def _parameter(sides: Sequence[Side], key: str) -> list[list[Any]]:
    return [_of_side(side, lambda run: run.result.parameters.get(key)) for side in sides]


def _machine(sides: Sequence[Side], name: str) -> dict[str, list[list[Any]]]:
    """What an agent said of its host and of how it wrote, key by key: for each side the values of its runs."""
    said = [[_facts(run, name) for run in side.runs] for side in sides]
    keys = dict.fromkeys(key for side in said for facts in side for key in facts if key not in VOLATILE)
    return {key: [_distinct(facts.get(key) for facts in side) for side in said] for key in sorted(keys)}


def _facts(run: Observed, name: str) -> dict[str, Any]:
    agent = next(agent for agent in run.result.agents if agent.name == name)
    settings = {"host": agent.host, "chunk_mb": agent.chunk_mb, "io_used": agent.honesty.get("io_used")}
    return {**agent.facts, **settings}


def _of_side(side: Side, get: Callable[[Observed], Any]) -> list[Any]:
    return _distinct(get(run) for run in side.runs)


def _distinct(values: Iterable[Any]) -> list[Any]:
    kept: list[Any] = []
    for value in values:
        if value not in kept:
            kept.append(value)
    return kept


def _differ(values: Sequence[list[Any]]) -> bool:
    return any(len(side) > 1 for side in values) or any(side != values[0] for side in values)


def _told(values: Sequence[list[Any]]) -> tuple[str, ...]:
    return tuple(" or ".join(_shown(value) for value in side) for side in values)


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return html.names([_shown(one) for one in value], 6)
    return f"{value:g}" if isinstance(value, float) else html.cut(str(value), 60)


def _warnings(sides: Sequence[Side]) -> Iterable[str]:
    """What makes a figure less than it seems."""
    for side in sides:
        for run in side.runs:
            whose = side.letter if len(side.runs) == 1 else f"{side.letter} ({run.run_id})"
            result = run.result
            if result.verdict != "PASS":
                partly = "" if all(agent.finished for agent in result.agents) else "; its figures are of a part of it"
                yield f"{whose} is {result.verdict}: {result.reason}{partly}"
            restarted = [agent.name for agent in result.agents if agent.restarts]
            if restarted:
                yield f"{whose}: {html.names(restarted)} restarted in the middle"
            if run.unsettled_s:
                yield (
                    f"{whose} had not settled for its first {run.unsettled_s:.0f} s, which widens its intervals: "
                    "run it with ramp_seconds, which leaves them out"
                )
    foreign = [(side.letter, run.foreign_ratio) for side in sides for run in side.runs]
    shares = [(letter, ratio) for letter, ratio in foreign if ratio is not None]
    if _unequal([ratio for _, ratio in shares]):
        told = ", ".join(f"{letter} {ratio * 100:.0f} %" for letter, ratio in shares)
        yield f"others wrote to the same disks, not equally much (in percent of what the agents wrote): {told}"
    seen = [run.run_id for side in sides for run in side.runs]
    for run_id in dict.fromkeys(run_id for run_id in seen if seen.count(run_id) > 1):
        yield f"{run_id} is compared with itself"
    busy = [[statistics.fmean(run.host_cpu_ratio.values()) for run in s.runs if run.host_cpu_ratio] for s in sides]
    known = [(side.letter, statistics.fmean(ratios)) for side, ratios in zip(sides, busy) if ratios]
    if known and max(ratio for _, ratio in known) - min(ratio for _, ratio in known) > BUSY:
        told = ", ".join(f"{letter} {ratio * 100:.0f} %" for letter, ratio in known)
        yield f"the hosts' CPUs were not equally busy: {told}"
    if all(len(side.runs) == 1 for side in sides):
        yield (
            "one run of each: how far runs of one setting lie apart is assumed, not seen; "
            "repeats by turns (--group) show it"
        )


# What people and machines read


def document(comparison: Comparison) -> dict[str, Any]:
    """The object that --json prints; keys may be added, not renamed."""
    return {
        "schema": 1,
        "margin_percent": comparison.margin,
        "latency_margin_percent": comparison.latency_margin,
        "confidence": interval.LEVEL,
        "sides": [
            {
                "letter": side.letter,
                "name": side.name,
                "runs": [
                    {
                        "run_id": run.run_id,
                        "verdict": run.result.verdict,
                        "reason": run.result.reason,
                        "started_at": run.result.started_at,
                        "seconds": run.result.seconds,
                        "agents": len(run.result.agents),
                    }
                    for run in side.runs
                ],
            }
            for side in comparison.sides
        ],
        "contrasts": [
            {"kind": one.kind, "key": one.key, "values": list(one.values), "agents": list(one.agents)}
            for one in comparison.contrasts
        ],
        "warnings": list(comparison.warnings),
        "comparisons": [
            {
                "base": pair.base.letter,
                "other": pair.other.letter,
                "headline": pair.headline,
                "figures": [
                    {
                        "agent": line.scope or None,
                        "metric": line.metric.key,
                        "unit": "bytes_per_second" if line.metric.rate else "seconds",
                        "values": list(line.values),
                        "difference_percent": _finite(line.difference.ratio),
                        "low_percent": _finite(line.difference.low),
                        "high_percent": _finite(line.difference.high),
                        "word": line.word,
                        "why": line.difference.why or None,
                        "advice": line.advice or None,
                        "batches": [
                            [one.batches for one in side.estimates(line.scope, line.metric)]
                            for side in (pair.base, pair.other)
                        ],
                    }
                    for line in pair.lines
                ],
            }
            for pair in comparison.pairs
        ],
    }


def table(comparison: Comparison) -> str:
    """The comparison on a terminal: what is not the same first, then the figures of the fleet and of the agents."""
    sides = comparison.sides
    widest = max(len(side.name) for side in sides)
    lines = []
    for side in sides:
        for number, run in enumerate(side.runs):
            result = run.result
            whose = f"{side.letter}  {side.name:<{widest}}" if not number else " " * (widest + 3)
            repeat = f"{run.run_id}, " if len(side.runs) > 1 else ""
            lines.append(
                f"{whose}  {repeat}{result.verdict}, {html.count(len(result.agents))} agents, "
                f"{result.seconds:.1f} s, {result.started_at or 'never started'}"
            )
    lines += ["", *_contrast_lines(comparison)]
    lines += [f"! {html.cut(warning, 2 * WIDTH)}" for warning in comparison.warnings]
    for pair in comparison.pairs:
        lines += ["", *_figures(pair)]
    lines += ["", method(comparison)]
    lines += [pair.headline for pair in comparison.pairs]
    return "\n".join(lines)


def method(comparison: Comparison) -> str:
    """How the words are to be read."""
    return (
        f"95 % intervals. Faster, slower: all of it is beyond {comparison.margin:g} % "
        f"({comparison.latency_margin:g} % for durations). No difference: all of it is within."
    )


def _finite(ratio: Optional[float]) -> Optional[float]:
    return None if ratio is None or not math.isfinite(ratio) else ratio * 100


def percent(ratio: Optional[float]) -> str:
    """A difference as people read it."""
    if ratio is None:
        return "–"
    if not math.isfinite(ratio):
        return "any"
    return f"{ratio * 100:+.1f} %" if abs(ratio) < 10 else f"{ratio * 100:+.0f} %"


def spoken(difference: Difference) -> str:
    """Its interval as people read it."""
    low, high = difference.low, difference.high
    if not math.isfinite(high):
        return "unknown" if low <= -1 else f"{percent(low)} or more"
    return f"{percent(low)} to {percent(high)}"


def _contrast_lines(comparison: Comparison) -> list[str]:
    lines = []
    for kind, title, same in (
        ("parameter", "Parameters that differ", "Parameters: the same"),
        ("agents", "Agents that differ", ""),
        ("machine", "Machine facts that differ", "Machine facts: the same"),
    ):
        found = [one for one in comparison.contrasts if one.kind == kind]
        if not found:
            lines += [same] if same else []
            continue
        lines.append(f"{title}:")
        for one in found[:LISTED]:
            values = ", ".join(
                f"{side.letter} {html.cut(value, 40)}" for side, value in zip(comparison.sides, one.values)
            )
            whose = f" ({html.names(one.agents)})" if one.agents else ""
            lines.append(f"  {one.key}: {values}{whose}")
        if len(found) > LISTED:
            lines.append(f"  and {len(found) - LISTED} more, see --json or --html")
    return lines


def _figures(pair: Pair) -> list[str]:
    base, other = pair.base.letter, pair.other.letter
    heads = (f"{other} against {base}", base, other, "difference", "95 % interval", "")
    rows = [heads, *(_cells(line, "fleet ") for line in pair.of(FLEET))]
    throughput = [line for line in pair.lines if line.scope != FLEET and line.metric.rate]
    throughput.sort(key=lambda line: -abs(line.difference.ratio or 0.0))
    rows += [_cells(line, f"{html.cut(html.visible(line.scope), 20)} ") for line in throughput[:LISTED]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    text = []
    for row in rows:
        cells = [cell.ljust(w) if n in (0, 5) else cell.rjust(w) for n, (cell, w) in enumerate(zip(row, widths))]
        text.append("  ".join(cells).rstrip())
    text.insert(1, "-" * max(len(line) for line in text))
    if len(throughput) > LISTED:
        text.append(f"and {len(throughput) - LISTED} more agents that differ less, see --json or --html")
    return text


def _cells(line: Line, whose: str) -> tuple[str, ...]:
    word = f"{line.word}: {line.advice}" if line.advice else line.word
    values = (line.metric.shown(value) for value in line.values)
    known = spoken(line.difference) if line.difference.ratio is not None else "–"
    return (f"{whose}{line.metric.name}", *values, percent(line.difference.ratio), known, word)
