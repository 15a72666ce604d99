"""What a run's rollovers and samples come to over time: streamed into so many bins, whatever their number. No database.

Memory is bounded by agents times bins, not by rows: at most BINS of a run's time, a histogram's buckets, and nothing per row.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Optional

from fury_collector.histogram import Histogram
from fury_collector.rows import AgentRows, EpochRows, RunRows

BINS = 360
SAMPLED_BINS = 180
GAMMA = 1.01 / 0.99  # as the agents' histograms: 1 % relative error
HEAT = 12  # buckets of GAMMA in a cell of the heat map: 27 % of a duration
_STEPS = (0.5, 1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
_SAMPLED_LEAST_S = 5.0
_SAMPLED = ("agent_cpu_ratio", "agent_rss_bytes", "host_cpu_ratio", "host_memory_used_bytes")
_ONE = {"gamma": GAMMA, "zero": 0}


@dataclass
class _Tally:
    """Histograms in their JSON form added up as they are: hundreds of thousands of them, so that not even keys are read."""

    buckets: dict[str, int] = field(default_factory=dict)
    zero: int = 0
    count: int = 0
    total: float = 0.0
    low: float = math.inf
    high: float = 0.0

    def add(self, wire: Mapping[str, Any]) -> None:
        buckets, get = self.buckets, self.buckets.get
        for index, number in wire["buckets"].items():
            buckets[index] = get(index, 0) + number
        self.zero += wire["zero"]
        self.count += wire["count"]
        self.total += wire["sum"]
        self.low = min(self.low, wire["min"])
        self.high = max(self.high, wire["max"])

    def wire(self, gamma: float) -> dict[str, Any]:
        told = {"gamma": gamma, "zero": self.zero, "count": self.count, "sum": self.total, "buckets": self.buckets}
        return {**told, "min": self.low, "max": self.high}


Rollover = tuple[int, int, int, float, Optional[float]]
"""t_mono_ns, bytes, ramp_bytes, seconds, read_seconds of one."""


@dataclass
class Curve:
    """One agent over time. `written` are durable bytes per bin; of samples the mean of each bin, weighted by time."""

    written: array[float]
    sampled: dict[str, array[float]] = field(default_factory=dict)
    weights: dict[str, array[float]] = field(default_factory=dict)
    durations: Histogram = field(default_factory=Histogram)
    begin_s: float = math.inf
    end_s: float = 0.0

    def samples(self, what: str) -> list[Optional[float]]:
        """The mean of each bin, None where no sample says anything."""
        if what not in self.sampled:
            return []
        return [value / weight if weight else None for value, weight in zip(self.sampled[what], self.weights[what])]


class Curves:
    """The bins of a run; `seconds` is its length from the first write on, `step_s` and `sampled_step_s` their widths."""

    def __init__(self, run: RunRows) -> None:
        origin = _origin(run)
        # What turns the clock of an agent's epoch into seconds since the first write.
        self._shifts: dict[tuple[str, str], float] = {}
        ends = [0.0]
        lasting: dict[str, list[tuple[float, float]]] = {}
        for agent in run.agents:
            for epoch in agent.epochs:
                shift, begin, end = _placed(run, agent, epoch, origin)
                self._shifts[agent.name, epoch.epoch] = shift
                if end > begin:
                    lasting.setdefault(agent.name, []).append((begin, end))
                    ends.append(end)
        self.seconds = max(ends) or max((agent.seconds for agent in run.agents), default=0.0) or 1.0
        self.step_s = _step(self.seconds, BINS, _STEPS[0])
        self.bins = max(1, math.ceil(self.seconds / self.step_s - 1e-9))
        self.sampled_step_s = max(self.step_s, _step(self.seconds, SAMPLED_BINS, _SAMPLED_LEAST_S))
        self.sampled_bins = max(1, math.ceil(self.seconds / self.sampled_step_s - 1e-9))
        self.heat_step_s = _step(self.seconds, SAMPLED_BINS, _STEPS[0])
        self.heat_bins = max(1, math.ceil(self.seconds / self.heat_step_s - 1e-9))
        self.agents = {agent.name: Curve(array("d", bytes(8 * self.bins))) for agent in run.agents}
        for name, spans in lasting.items():
            self.agents[name].begin_s = min(begin for begin, _ in spans)
            self.agents[name].end_s = max(end for _, end in spans)
        self.durations = Histogram()
        self.rollovers = 0
        self.heat: dict[tuple[int, int], int] = {}  # (bin of heat_step_s, bucket of HEAT) -> rollovers
        self._tallies: dict[str, dict[tuple[int, float], _Tally]] = {"write": {}, "fsync": {}, "read": {}}

    # What streams in

    def add_rollovers(self, agent: str, epoch: str, rows: Iterable[Rollover]) -> None:
        """Add the rollovers of one process in their order, spread over the time that each took."""
        curve = self.agents[agent]
        written, width, last = curve.written, self.step_s, self.bins - 1
        coarse, coarse_last = self.heat_step_s, self.heat_bins - 1
        shift = self._shifts.get((agent, epoch))
        if shift is None:  # it began after the run was read, which still goes on
            return
        buckets: dict[int, int] = {}
        cells: dict[int, int] = {}
        scale, log = 1 / math.log(GAMMA), math.log
        total, low, high, number = 0.0, math.inf, 0.0, 0
        for t_mono_ns, size, ramp, seconds, read in rows:
            number += 1
            end = t_mono_ns * 1e-9 + shift
            if read:
                end -= read
            begin = end - seconds
            here, until = int(begin / width), int(end / width)
            here = 0 if begin < 0 else here if here < last else last
            until = 0 if end < 0 else until if until < last else last
            if here == until:
                written[until] += size
            else:
                speed = size / seconds
                written[here] += speed * max(0.0, (here + 1) * width - max(begin, 0.0))
                for place in range(here + 1, until):
                    written[place] += speed * width
                # The rest, so that the sum is exact whatever was cut off at the ends.
                written[until] += size - speed * max(0.0, until * width - max(begin, 0.0))
            if ramp < size and seconds > 0:
                bucket = math.ceil(log(seconds) * scale)
                buckets[bucket] = buckets.get(bucket, 0) + 1
                total += seconds
                if seconds < low:
                    low = seconds
                if seconds > high:
                    high = seconds
                place = int(end / coarse)
                place = 0 if place < 0 else place if place < coarse_last else coarse_last
                cell = place << 16 | bucket // HEAT + 0x8000
                cells[cell] = cells.get(cell, 0) + 1
        self.rollovers += number
        counted = sum(buckets.values())
        if counted:
            wire = {**_ONE, "count": counted, "sum": total, "min": low, "max": high, "buckets": buckets}
            curve.durations.add(wire)
            self.durations.add(wire)
        for cell, times in cells.items():
            key = (cell >> 16, (cell & 0xFFFF) - 0x8000)
            self.heat[key] = self.heat.get(key, 0) + times

    def watching(self, samples: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """Hand on samples as they come, and add each on its way: they are large, and are read once."""
        for sample in samples:
            self._add_sample(sample)
            yield sample

    def _add_sample(self, sample: Mapping[str, Any]) -> None:
        shift = self._shifts.get((sample["agent"], sample["epoch"]))
        if shift is None:
            return
        curve = self.agents[sample["agent"]]
        end = sample["t_mono_ns"] * 1e-9 + shift
        begin = max(0.0, end - sample["interval_s"])
        end = min(end, self.seconds)
        width = self.sampled_step_s
        spans = []
        for place in range(max(0, int(begin / width)), min(self.sampled_bins - 1, int(end / width)) + 1):
            overlap = min(end, (place + 1) * width) - max(begin, place * width)
            if overlap > 0:
                spans.append((place, overlap))
        for what in _SAMPLED:
            value = sample[what]
            if value is None:
                continue
            if what not in curve.sampled:
                curve.sampled[what] = array("d", bytes(8 * self.sampled_bins))
                curve.weights[what] = array("d", bytes(8 * self.sampled_bins))
            sums, weights = curve.sampled[what], curve.weights[what]
            for place, overlap in spans:
                sums[place] += value * overlap
                weights[place] += overlap
        for name, tallies in self._tallies.items():
            wire = sample.get(f"{name}_histogram")
            if wire and wire["count"]:
                for place in _mostly(spans, width):
                    key = (place, wire["gamma"])
                    tally = tallies.get(key)
                    if tally is None:
                        tally = tallies[key] = _Tally()
                    tally.add(wire)

    # What comes out

    def at(self, agent: str, epoch: str, t_mono_ns: int) -> float:
        """Seconds since the first write of an instant on an agent's clock, within the run."""
        return min(max(0.0, t_mono_ns * 1e-9 + self._shifts.get((agent, epoch), 0.0)), self.seconds)

    def rates(self, name: str) -> list[Optional[float]]:
        """An agent's bytes per second in each bin; None before it began and after it ended."""
        curve = self.agents[name]
        known = []
        for place, written in enumerate(curve.written):
            covered = self._covered(place, curve.begin_s, curve.end_s)
            if curve.begin_s == math.inf and written:  # nobody knows when it began
                covered = self.step_s
            # A sliver of a bin at either end says more about where it was cut than about the disk.
            known.append(written / covered if covered > 0.25 * self.step_s else None)
        return known

    def fleet_rates(self) -> list[Optional[float]]:
        """The fleet's bytes per second in each bin."""
        summed = [sum(values) for values in zip(*(curve.written for curve in self.agents.values()))]
        return [
            value / self._covered(place, 0.0, self.seconds)
            if self._covered(place, 0.0, self.seconds) > 0.25 * self.step_s
            else None
            for place, value in enumerate(summed)
        ]

    def quantiles(self, kind: str, ratio: float) -> list[Optional[float]]:
        """A percentile of the fleet's calls in each bin of the samples, from merged histograms; 1 is the greatest."""
        binned = self._binned[kind]
        return [binned[place].quantile(ratio) if place in binned else None for place in range(self.sampled_bins)]

    def measured(self, kind: str) -> bool:
        """Whether any sample has calls of that kind."""
        return bool(self._tallies[kind])

    @cached_property
    def _binned(self) -> dict[str, dict[int, Histogram]]:
        binned: dict[str, dict[int, Histogram]] = {}
        for kind, tallies in self._tallies.items():
            histograms = binned.setdefault(kind, {})
            for (place, gamma), tally in tallies.items():
                histograms.setdefault(place, Histogram()).add(tally.wire(gamma))
        return binned

    def _covered(self, place: int, begin_s: float, end_s: float) -> float:
        return min(end_s, (place + 1) * self.step_s) - max(begin_s, place * self.step_s)


def quantile(values: Sequence[float], ratio: float) -> float:
    """The nearest rank of sorted values."""
    return values[min(len(values), max(1, math.ceil(ratio * len(values)))) - 1]


def _mostly(spans: Sequence[tuple[int, float]], width: float) -> Iterator[int]:
    """The bins that a sample belongs to: those that it covers at least half of, else the one that has most of it."""
    covered = [place for place, overlap in spans if overlap >= width / 2]
    if covered:
        yield from covered
    elif spans:
        yield max(spans, key=lambda span: span[1])[0]


def _step(seconds: float, most: int, least: float) -> float:
    """The round width of which at most so many cover the time."""
    for step in _STEPS:
        if step >= least and seconds / step <= 1.02 * most:  # a run lasts a little longer than it was told to
            return step
    return math.ceil(seconds / most / 86400) * 86400.0


def _origin(run: RunRows) -> tuple[Optional[float], Optional[float]]:
    """The instant of the first write: on the collector's monotonic clock, and on the wall clock."""
    starts = [epoch.start for agent in run.agents for epoch in agent.epochs if epoch.start is not None]
    mono = [s.payload["start_collector_mono_s"] for s in starts if s.payload["start_collector_mono_s"] is not None]
    wall = min((s.t_wall for s in starts), default=None) if run.state.start_wall is None else run.state.start_wall
    return min(mono, default=run.state.start_mono_s), wall


def _placed(
    run: RunRows, agent: AgentRows, epoch: EpochRows, origin: tuple[Optional[float], Optional[float]]
) -> tuple[float, float, float]:
    """How an epoch's clock becomes seconds since the first write, and when it began and ended to write by that."""
    mono, wall = origin
    begin = 0.0
    if epoch.start is not None:
        instant = epoch.start.payload["start_collector_mono_s"]
        if instant is not None and mono is not None:
            begin = instant - mono
        elif wall is not None:
            begin = max(0.0, epoch.start.t_wall - wall)
        shift = begin - epoch.start.t_mono_ns * 1e-9
    else:  # its first word is lost: by any other, on the wall clock
        known = epoch.final or epoch.heartbeat
        if known is not None and wall is not None:
            shift = known.t_wall - wall - known.t_mono_ns * 1e-9
        else:
            shift = agent.seconds - epoch.last_t_mono_ns * 1e-9
    end = max(begin, epoch.last_t_mono_ns * 1e-9 + shift)
    if epoch.final is not None:
        ramp = agent.ramp_seconds if epoch.final.payload["seconds"] else 0.0
        end = min(end, begin + ramp + epoch.final.payload["seconds"])
    if epoch.start is None:
        begin = max(0.0, end - agent.seconds)
    return shift, begin, end
