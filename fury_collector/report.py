"""What a run amounts to: rows in, text and plain objects out. No database, no clock.

Verdicts: an agent's own final word, INCOMPLETE where that or any of its events is missing however they came, the run's is
its worst agent's. Latencies come from merged histograms: the final event's where there is one, else the sum of the samples'.
"""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, Optional, TextIO, Union

from fury_collector import slo
from fury_collector.histogram import Histogram
from fury_collector.rows import AgentRows, EpochRows, RunRows, Transition, called_off, start_skew_s

# Worst first. Wrong data outweighs no data, and that outweighs what was never tried; what is only slow or only not
# yet tidied up comes last, because everything else of such a run holds.
SEVERITY = (
    "DATA_CORRUPTION",
    "DISK_ERROR",
    "BAD_INPUT",
    "PRECONDITION",
    "INCOMPLETE",
    "SLO_MISSED",
    "CLEANUP_UNCONFIRMED",
    "PASS",
)
WIDTH = 120
SENTENCE = 160  # characters of a verdict that a person still reads
GROUPS = 3  # reasons that are spelled out in it
REMARKS = 10  # lines of one kind under the table
NOTE = 320  # characters of a note that are shown there

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Latencies:
    """What was measured of write calls, of fsyncs, and of the calls that read back."""

    writes: Histogram = field(default_factory=Histogram)
    fsyncs: Histogram = field(default_factory=Histogram)
    reads: Histogram = field(default_factory=Histogram)

    def add(self, row: Row) -> None:
        """Add those of a sample or of a final word; one that was stored by an earlier collector has no reads."""
        self.writes.add(row["write_histogram"])
        self.fsyncs.add(row["fsync_histogram"])
        self.reads.add(row.get("read_histogram", {"count": 0}))

    def merge(self, other: Latencies) -> None:
        """Add others to these."""
        self.writes.merge(other.writes)
        self.fsyncs.merge(other.fsyncs)
        self.reads.merge(other.reads)


@dataclass(frozen=True)
class AgentResult:
    """One agent's part of a run; seconds, bytes, and latencies still as histograms."""

    name: str
    host: str
    chunk_mb: float
    verdict: str
    reason: str
    epochs: int
    events_issued: int
    events_stored: int
    written_bytes: int
    rollovers: int
    seconds: float
    first_s: Optional[float]
    first_rtt_s: float
    begin_s: Optional[float]  # when its ramp was over
    last_s: Optional[float]
    writes: Histogram
    fsyncs: Histogram
    reads: Histogram
    read_bytes: int
    ramp_bytes: int
    device_written_bytes: Optional[int]
    cleanup: str
    planned_s: float
    why: str  # what agents with the same trouble have in common
    rescued_events: int
    refused_events: int
    liveness: tuple[Transition, ...]
    facts: dict[str, Any]
    honesty: dict[str, Any]
    notes: tuple[str, ...]
    errors: int
    below_median_ratio: Optional[float] = None  # negative: above it
    slow: bool = False

    @property
    def restarts(self) -> int:
        """How often its process was started again."""
        return max(0, self.epochs - 1)

    @property
    def remark(self) -> str:
        """What a reader of its figures has to know beside the verdict."""
        told = [f"restarted {self.restarts}x"] if self.restarts else []
        if self.rescued_events:
            told.append(f"{_count(self.rescued_events, 'event')} rescued from its host")
        if self.refused_events:
            told.append(f"{_count(self.refused_events, 'event')} refused")
        return ", ".join(told)

    @property
    def finished(self) -> bool:
        """Whether it wrote to the end of its time and all its events are stored."""
        return self.verdict in ("PASS", "SLO_MISSED", "CLEANUP_UNCONFIRMED")

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self.written_bytes / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Result:
    """A whole run judged; `seconds` from the first agent's start to the last one's end."""

    run_id: str
    verdict: str
    reason: str
    started_at: Optional[str]
    seconds: float
    skew_s: Optional[float]
    parameters: dict[str, Any]
    agents: tuple[AgentResult, ...]
    writes: Histogram
    fsyncs: Histogram
    reads: Histogram
    median_rate: Optional[float]
    slo: tuple[slo.Judged, ...] = ()

    @property
    def written_bytes(self) -> int:
        """Durable bytes of the fleet."""
        return sum(agent.written_bytes for agent in self.agents)

    @property
    def read_bytes(self) -> int:
        """Bytes that the fleet read back."""
        return sum(agent.read_bytes for agent in self.agents)

    @property
    def errors(self) -> int:
        """Failed calls to the storage of the fleet."""
        return sum(agent.errors for agent in self.agents)

    @property
    def slow(self) -> list[AgentResult]:
        """The agents that are far below the median, the slowest first."""
        return sorted((agent for agent in self.agents if agent.slow), key=lambda agent: agent.rate)

    @property
    def rollovers(self) -> int:
        """Rollovers of the fleet."""
        return sum(agent.rollovers for agent in self.agents)

    @property
    def rate(self) -> float:
        """Bytes per second of the fleet, from the earliest first write to the latest last one."""
        return self.written_bytes / self.seconds if self.seconds else 0.0

    @property
    def sentence(self) -> str:
        """The verdict sentence."""
        return f"{self.verdict}: {self.reason}"


def judge(run: RunRows, samples: Iterable[Row]) -> Result:
    """The result of a run from its rows; of `samples` only those of epochs without a final event count."""
    open_epochs = {(a.name, e.epoch): Latencies() for a in run.agents for e in a.epochs if e.final is None}
    for sample in samples:
        latencies = open_epochs.get((sample["agent"], sample["epoch"]))
        if latencies is not None:
            latencies.add(sample)
    agents, median = _compared([_agent(run, agent, open_epochs) for agent in run.agents], run.slow_percent)
    fleet = Latencies()
    for agent in agents:
        fleet.merge(Latencies(agent.writes, agent.fsyncs, agent.reads))
    begins = [agent.begin_s for agent in agents if agent.begin_s is not None]
    lasts = [agent.last_s for agent in agents if agent.last_s is not None]
    seconds = max(lasts) - min(begins) if begins and lasts else max((agent.seconds for agent in agents), default=0.0)
    worst = min((agent.verdict for agent in agents), key=SEVERITY.index, default="INCOMPLETE")
    stopped = run.state.stop_reason
    if stopped is not None and SEVERITY.index(worst) > SEVERITY.index("INCOMPLETE"):
        worst = "INCOMPLETE"
    result = Result(
        run_id=run.run_id,
        verdict=worst,
        reason="",
        started_at=_utc(run.state.start_wall),
        seconds=seconds,
        skew_s=start_skew_s([(agent.first_s, agent.first_rtt_s) for agent in agents if agent.first_s is not None]),
        parameters=run.parameters,
        agents=agents,
        writes=fleet.writes,
        fsyncs=fleet.fsyncs,
        reads=fleet.reads,
        median_rate=median,
    )
    return _with_reason(_held_against(result, run.slo), run)


def _held_against(result: Result, objectives: Sequence[slo.Objective]) -> Result:
    """The result with each objective judged; what was fine but for one that is missed is SLO_MISSED."""
    fleet = _figures_for_slo(result) | {
        "agent_spread_percent": _spread_percent(result),
        "start_skew_ms": None if result.skew_s is None else result.skew_s * 1000,
        "slow_agents": float(len(result.slow)),
    }
    by_agent = {
        agent.name: _figures_for_slo(agent)
        | {"below_median_percent": None if agent.below_median_ratio is None else agent.below_median_ratio * 100}
        for agent in result.agents
    }
    judged = slo.judge(objectives, fleet=fleet, agents=by_agent)
    missed = [one for one in judged if not one.met]
    agents = []
    for agent in result.agents:
        own = [one for one in missed if one.agent == agent.name]
        if own and _worse("SLO_MISSED", agent.verdict) == "SLO_MISSED":
            reason = "; ".join(one.text.partition(": ")[2] for one in own)
            agent = replace(agent, verdict="SLO_MISSED", reason=reason, why=reason)
        agents.append(agent)
    verdict = _worse("SLO_MISSED", result.verdict) if missed else result.verdict
    return replace(result, agents=tuple(agents), verdict=verdict, slo=judged)


def _worse(one: str, other: str) -> str:
    return min(one, other, key=SEVERITY.index)


def _figures_for_slo(whose: Union[AgentResult, Result]) -> dict[str, Optional[float]]:
    return {
        "throughput_mb_s": whose.rate / 1e6,
        "written_gb": whose.written_bytes / 1e9,
        "rollovers": float(whose.rollovers),
        "errors": float(whose.errors),
        **slo.latencies(write=whose.writes, fsync=whose.fsyncs, read=whose.reads),
    }


def _spread_percent(result: Result) -> Optional[float]:
    """How far the slowest of the agents that wrote is behind the fastest, in percent of their median."""
    rates = [agent.rate for agent in result.agents if agent.rate]
    return (max(rates) - min(rates)) / result.median_rate * 100 if rates and result.median_rate else None


def summary(result: Result) -> dict[str, Any]:
    """The object of summary.json; its keys are a contract (docs/results.md), and may be added to, not renamed."""
    return {
        "schema": 1,
        "run_id": result.run_id,
        "verdict": result.verdict,
        "reason": result.reason,
        "started_at": result.started_at,
        "seconds": result.seconds,
        "parameters": result.parameters,
        "fleet": {
            "agents_expected": len(result.agents),
            "agents_finished": sum(agent.finished for agent in result.agents),
            "written_bytes": result.written_bytes,
            "rollovers": result.rollovers,
            "throughput_bytes_per_second": result.rate,
            "start_skew_seconds": result.skew_s,
            "write_latency_seconds": result.writes.latency(),
            "fsync_latency_seconds": result.fsyncs.latency(),
            "read_bytes": result.read_bytes,
            "read_bytes_per_second_per_job": _read_rate(result),
            "read_latency_seconds": result.reads.latency(),
            "median_throughput_bytes_per_second": result.median_rate,
            "slow_agents": [agent.name for agent in result.slow],
            "steady_agents": sum(agent.honesty.get("steady") is True for agent in result.agents),
            "errors": result.errors,
        },
        "slo": [
            {"objective": one.objective.text, "agent": one.agent, "value": one.value, "met": one.met}
            for one in result.slo
        ],
        "agents": [
            {
                "name": agent.name,
                "host": agent.host,
                "verdict": agent.verdict,
                "reason": agent.reason,
                "epochs": agent.epochs,
                "events_issued": agent.events_issued,
                "events_stored": agent.events_stored,
                "written_bytes": agent.written_bytes,
                "rollovers": agent.rollovers,
                "seconds": agent.seconds,
                "throughput_bytes_per_second": agent.rate,
                "write_latency_seconds": agent.writes.latency(),
                "fsync_latency_seconds": agent.fsyncs.latency(),
                "device_written_bytes": agent.device_written_bytes,
                "cleanup": agent.cleanup,
                "rescued_events": agent.rescued_events,
                "refused_events": agent.refused_events,
                "liveness": [
                    {"at": _utc(change.t_wall), "health": change.health, "silent_seconds": round(change.silent_s, 3)}
                    for change in agent.liveness
                ],
                "errors": agent.errors,
                "read_bytes": agent.read_bytes,
                "read_bytes_per_second_per_job": _read_rate(agent),
                "read_latency_seconds": agent.reads.latency(),
                "ramp_bytes": agent.ramp_bytes,
                "slow": agent.slow,
                "below_median_ratio": agent.below_median_ratio,
                "honesty": agent.honesty,
                "notes": list(agent.notes),
                "facts": agent.facts,
            }
            for agent in result.agents
        ],
    }


def table(result: Result, *, width: int = WIDTH) -> str:
    """The general statistics: a line per agent, one for the fleet, the verdict sentence; at most `width` columns."""
    unit = "TB" if result.written_bytes >= 1e12 else "GB"
    groups = ["", "", "chunk", "", "", "", "write", "write", "write", "fsync", "fsync", "fsync", ""]
    heads = [
        "agent",
        "host",
        "MB",
        "MB/s",
        unit,
        "rollovers",
        "p50 ms",
        "p99 ms",
        "max ms",
        "p50 ms",
        "p99 ms",
        "max ms",
        "verdict",
    ]
    lines = [
        [
            agent.name,
            agent.host,
            f"{agent.chunk_mb:g}",
            *_figures(agent, unit),
            agent.verdict,
        ]
        for agent in result.agents
    ]
    fleet = [
        "fleet",
        "",
        "",
        *_figures(result, unit),
        result.verdict,
    ]
    cells = [groups, heads, *lines, fleet]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    excess = sum(widths) + 2 * (len(widths) - 1) - width
    for column in (1, 0):  # long names give way, the host's first
        cut = min(max(0, excess), max(0, widths[column] - 8))
        widths[column] -= cut
        excess -= cut
    if excess > 0:  # figures do not give way: rather a narrower gap
        return _laid_out(cells, widths, gap=" ", result=result)
    return _laid_out(cells, widths, gap="  ", result=result)


ROLLOVER_COLUMNS = (
    "agent",
    "host",
    "epoch",
    "seq",
    "t_mono_ns",
    "t_wall",
    "chunk",
    "bytes",
    "seconds",
    "fsync_seconds",
    "write_p50_s",
    "write_p99_s",
    "write_max_s",
    "ramp_bytes",
    "read_seconds",
)
SAMPLE_COLUMNS = (
    "agent",
    "host",
    "epoch",
    "seq",
    "t_mono_ns",
    "t_wall",
    "interval_s",
    "written_bytes",
    "agent_cpu_ratio",
    "agent_rss_bytes",
    "host_cpu_ratio",
    "host_memory_used_bytes",
    "host_memory_total_bytes",
    "disk_free_bytes",
    "writes",
    "write_p50_s",
    "write_p99_s",
    "write_max_s",
    "fsyncs",
    "fsync_p50_s",
    "fsync_p99_s",
    "fsync_max_s",
    "write_p95_s",
    "write_p999_s",
    "fsync_p95_s",
    "fsync_p999_s",
    "read_bytes",
    "reads",
    "read_p50_s",
    "read_p95_s",
    "read_p99_s",
    "read_p999_s",
    "read_max_s",
)


def write_rollovers(rows: Iterable[Row], file: TextIO) -> int:
    """Write rollovers.csv and return the number of its rows."""
    return _csv(rows, file, ROLLOVER_COLUMNS)


def write_samples(rows: Iterable[Row], file: TextIO) -> int:
    """Write samples.csv and return the number of its rows."""
    return _csv((sample_figures(row) for row in rows), file, SAMPLE_COLUMNS)


def sample_figures(row: Row) -> dict[str, Any]:
    """A sample with its histograms as their count and percentiles: what SAMPLE_COLUMNS name."""
    flat = dict(row)
    for name in ("write", "fsync", "read"):
        histogram = Histogram()
        histogram.add(row[f"{name}_histogram"])
        flat[f"{name}s"] = histogram.count
        flat |= {f"{name}_{what}_s": value for what, value in histogram.latency().items()}
    return flat


def _compared(agents: Sequence[AgentResult], slow_percent: int) -> tuple[tuple[AgentResult, ...], Optional[float]]:
    """The agents, each with how far it is below the median rate of those that wrote, and that median."""
    rates = [agent.rate for agent in agents if agent.rate]
    if not rates:
        return tuple(agents), None
    median = statistics.median(rates)
    if len(rates) < 2:
        return tuple(agents), median
    compared = []
    for agent in agents:
        below = 1 - agent.rate / median if agent.rate else None
        slow = below is not None and below * 100 > slow_percent
        compared.append(replace(agent, below_median_ratio=below, slow=slow))
    return tuple(compared), median


def _agent(run: RunRows, agent: AgentRows, open_epochs: Mapping[tuple[str, str], Latencies]) -> AgentResult:
    latencies = Latencies()
    written = rollovers = read = ramped = 0
    seconds = 0.0
    device: Optional[int] = 0
    firsts: list[tuple[float, float]] = []
    begins: list[float] = []
    lasts: list[float] = []
    for epoch in agent.epochs:
        rollovers += epoch.rollovers
        ramp_s = _ramp_s(agent, epoch)
        lasting = _seconds(epoch, ramp_s)
        seconds += lasting
        if epoch.final is not None:
            final = epoch.final.payload
            written += final["written_bytes"]
            read += final.get("read_bytes", 0)
            ramped += final.get("ramp_bytes", 0)
            latencies.add(final)
            device = device + final["device_written_bytes"] if _both(device, final["device_written_bytes"]) else None
        else:
            written += epoch.rollover_bytes
            read += epoch.read_bytes
            ramped += epoch.ramp_bytes
            latencies.merge(open_epochs[agent.name, epoch.epoch])
            device = None
        if epoch.start is not None and epoch.start.payload["start_collector_mono_s"] is not None:
            firsts.append((epoch.start.payload["start_collector_mono_s"], epoch.start.payload["rtt_s"] or 0.0))
            if lasting > 0:  # else it ended in its ramp
                begins.append(firsts[-1][0] + ramp_s)
                lasts.append(begins[-1] + lasting)
    last_start = next((epoch.start.payload for epoch in reversed(agent.epochs) if epoch.start), None)
    speaker = agent.speaker
    said = speaker.final.payload if speaker is not None and speaker.final is not None else {}
    verdict, reason, why = _verdict(run, agent)
    cleanup = agent.cleanup or "pending"
    if verdict == "PASS" and cleanup == "unconfirmed":
        detail = f": {agent.cleanup_detail}" if agent.cleanup_detail else ""
        verdict, reason = "CLEANUP_UNCONFIRMED", f"nothing confirms that its host was cleaned up{detail}"
    if len(agent.epochs) > 1:
        restarted = f"restarted {len(agent.epochs) - 1}x"
        reason = f"{reason}; {restarted}" if reason else restarted
    return AgentResult(
        name=agent.name,
        host=agent.host,
        chunk_mb=agent.chunk_mb if last_start is None else round(last_start["chunk_bytes"] / 1e6, 1),
        verdict=verdict,
        reason=reason,
        epochs=len(agent.epochs),
        events_issued=sum(epoch.issued for epoch in agent.epochs),
        events_stored=sum(epoch.stored for epoch in agent.epochs),
        written_bytes=written,
        rollovers=rollovers,
        seconds=seconds,
        first_s=min(firsts)[0] if firsts else None,
        first_rtt_s=min(firsts)[1] if firsts else 0.0,
        begin_s=min(begins) if begins else None,
        last_s=max(lasts) if lasts else None,
        writes=latencies.writes,
        fsyncs=latencies.fsyncs,
        reads=latencies.reads,
        read_bytes=read,
        ramp_bytes=ramped,
        device_written_bytes=device if agent.epochs else None,
        cleanup=cleanup,
        planned_s=agent.seconds - agent.ramp_seconds,
        why=why,
        rescued_events=agent.rescued_events,
        refused_events=agent.refused_events,
        liveness=agent.liveness,
        facts={} if last_start is None else last_start["facts"],
        honesty=said.get("honesty", {}),
        notes=tuple(said.get("notes", ())),
        errors=sum(epoch.final.payload["errors"] for epoch in agent.epochs if epoch.final is not None),
    )


def _verdict(run: RunRows, agent: AgentRows) -> tuple[str, str, str]:
    """An agent's verdict, the reason, and the part of it that other agents may share."""
    speaker = agent.speaker
    if speaker is not None and speaker.final is not None:
        verdict, reason = speaker.final.payload["verdict"], speaker.final.payload["reason"] or ""
        trouble, why = _holes(agent)
        last = agent.last_writer
        if verdict == "PASS" and last is not None and last.final is None:
            trouble, why = _unspoken(last), "ended without a final word"
        if not trouble:
            return verdict, reason, reason
        if SEVERITY.index(verdict) > SEVERITY.index("INCOMPLETE"):
            return "INCOMPLETE", trouble, why
        return verdict, f"{reason}; {trouble}" if reason else trouble, reason or why
    if agent.reachable is False:
        detail = f": {agent.cleanup_detail}" if agent.cleanup_detail else ""
        reason = f"its host could not be reached{detail}"
        return "INCOMPLETE", reason, reason
    last = agent.last_writer
    if last is not None:
        if any(epoch.final is not None for epoch in agent.epochs):
            return "INCOMPLETE", _unspoken(last), "ended without a final word"
        return "INCOMPLETE", f"lost after {sum(map(_seconds, agent.epochs)):.1f} s", "lost"
    if run.state.state == "aborted":
        reason = "was ready, but the run was aborted" if agent.ready else "never got ready"
    else:
        reason = "was ready, but never started" if agent.ready else "never got ready"
    return "INCOMPLETE", reason, reason


def _unspoken(epoch: EpochRows) -> str:
    return f"its last process ended without a final word after {_seconds(epoch):.1f} s"


def _holes(agent: AgentRows) -> tuple[str, str]:
    """What is missing of an agent's events and what holes have in common; both empty if every event is stored.

    A crashed process said no last number: it is whole if nothing is missing below its highest one, and its journal,
    where it had to be fetched, could be read to its end.
    """
    told, why = [], ""
    if agent.refused_events:
        told.append(f"{_count(agent.refused_events, 'event')} refused: {agent.refused_reason}")
        why = "events were refused"
    issued, stored = sum(epoch.issued for epoch in agent.epochs), sum(epoch.stored for epoch in agent.epochs)
    if stored < issued:
        told.append(f"{issued - stored} of {issued} events are missing")
        why = why or "events are missing"
    if agent.journal_damage and (told or any(epoch.final is None for epoch in agent.epochs)):
        told.append(f"its journal is damaged: {agent.journal_damage}")
        why = why or "journal damaged"
    return "; ".join(told), why


def _with_reason(result: Result, run: RunRows) -> Result:
    """The result with its verdict sentence, names given way to its length."""
    for most in (10, 5, 3, 1):
        said = _reason(result, run, most)
        if len(result.verdict) + 2 + len(said) <= SENTENCE:
            break
    return Result(**{**vars(result), "reason": said})


def _reason(result: Result, run: RunRows, most: int) -> str:
    agents = result.agents
    if result.verdict == "PASS":
        return (
            f"{len(agents)} of {len(agents)} agents finished, "
            f"{_size(result.written_bytes)} at {result.rate / 1e6:.1f} MB/s{_remarks(agents, most)}{_slow(result, most)}"
        )
    if result.verdict == "INCOMPLETE":
        finished = sum(agent.finished for agent in agents)
        said = f"{finished} of {len(agents)} agents finished"
        unfinished = [agent for agent in agents if not agent.finished]
        if run.state.state == "aborted" and run.state.reason:
            return _cut(f"{said}; the run was aborted: {run.state.reason}", 2 * SENTENCE)
        if run.state.stop_reason is not None:
            planned = max((agent.planned_s for agent in agents), default=0.0)
            wrote = sum(agent.written_bytes > 0 for agent in agents)
            said = (
                f"{_cut(run.state.stop_reason, 80)} after {result.seconds:.1f} of {planned:g} s; "
                f"{_count(wrote, 'agent')} wrote {_size(result.written_bytes)}"
            )
            unfinished = [agent for agent in unfinished if not called_off(agent.why)]
        parted: dict[str, list[AgentResult]] = {}
        for agent in unfinished:
            parted.setdefault(re.sub(r"[0-9][0-9.]*", "#", agent.why), []).append(agent)
        groups = list(parted.values())
        for alike in groups[:GROUPS]:
            said += f"; {_cut(alike[0].why, 80)}: {_names((agent.name for agent in alike), most)}"
        if len(groups) > GROUPS:
            said += f"; {_count(sum(map(len, groups[GROUPS:])), 'agent')} for other reasons"
        return said + _remarks(agents, most)
    if result.verdict == "SLO_MISSED":
        missed = [one for one in result.slo if not one.met]
        said = _names((one.text for one in missed), min(most, 3))
        return f"{len(missed)} of {_count(len(result.slo), 'objective')} missed: {said}"
    worst = [agent for agent in agents if agent.verdict == result.verdict]
    why = f"{worst[0].name}: {_cut(worst[0].reason, 2 * SENTENCE)}" if worst[0].reason else worst[0].name
    if len(worst) == 1:
        return why
    return f"{len(worst)} of {len(agents)} agents: {_names((agent.name for agent in worst), most)}; {why}"


def _remarks(agents: Sequence[AgentResult], most: int) -> str:
    said = ""
    restarted = [agent for agent in agents if agent.restarts]
    if len(restarted) == 1:
        said += f"; {restarted[0].name} restarted {restarted[0].restarts}x"
    elif restarted:
        said += f"; {_names((agent.name for agent in restarted), most)} restarted"
    rescued = [agent for agent in agents if agent.rescued_events]
    if rescued:
        number = _count(sum(agent.rescued_events for agent in rescued), "event")
        names, whose = (
            _names((agent.name for agent in rescued), most),
            "its host" if len(rescued) == 1 else "their hosts",
        )
        said += f"; {number} of {names} rescued from {whose}, the collector was not reachable"
    return said


def _slow(result: Result, most: int) -> str:
    return f"; slow: {_names((agent.name for agent in result.slow), most)}" if result.slow else ""


def _ramp_s(agent: AgentRows, epoch: EpochRows) -> float:
    """How long a process' ramp took: one that takes up after a crash has what is left of the agent's."""
    if epoch.start is None:
        return 0.0
    first_ns = min(one.start.t_mono_ns for one in agent.epochs if one.start is not None)
    return max(0.0, agent.ramp_seconds - (epoch.start.t_mono_ns - first_ns) / 1e9)


def _seconds(epoch: EpochRows, ramp_s: float = 0.0) -> float:
    """How long a process wrote after its ramp: by its final word, else from its start to the last that was heard of it."""
    if epoch.final is not None:
        return float(epoch.final.payload["seconds"])
    if epoch.start is None:
        return 0.0
    return max(0.0, (epoch.last_t_mono_ns - epoch.start.t_mono_ns) / 1e9 - ramp_s)


def _both(one: Optional[int], other: Optional[int]) -> bool:
    return one is not None and other is not None


def _figures(whose: Union[AgentResult, Result], unit: str) -> list[str]:
    written = f"{whose.written_bytes / 1e9:.2f}" if unit == "GB" else _three_digits(whose.written_bytes / 1e12)
    latencies = (
        latency
        for histogram in (whose.writes, whose.fsyncs)
        for latency in (histogram.quantile(0.50), histogram.quantile(0.99), histogram.high)
    )
    return [f"{whose.rate / 1e6:.1f}", written, str(whose.rollovers), *map(_ms, latencies)]


def _ms(seconds: Optional[float]) -> str:
    return "-" if seconds is None else _three_digits(seconds * 1000)


def _three_digits(value: float) -> str:
    """Three significant digits, but at most three places after the point, and no whole number is rounded."""
    # The limits are where rounding would add a digit.
    places = next((places for limit, places in ((0.9995, 3), (9.995, 2), (99.95, 1)) if value < limit), 0)
    return f"{value:.{places}f}"


def _laid_out(cells: Sequence[Sequence[str]], widths: Sequence[int], *, gap: str, result: Result) -> str:
    left = (0, 1, len(widths) - 1)
    text = []
    for row in cells:
        parts = []
        for column, cell in enumerate(row):
            shown = cell if len(cell) <= widths[column] else cell[: widths[column] - 1] + "…"
            parts.append(shown.ljust(widths[column]) if column in left else shown.rjust(widths[column]))
        text.append(gap.join(parts).rstrip())
    rule = "-" * max(len(line) for line in text)
    return "\n".join([*text[:2], rule, *text[2:-1], rule, text[-1], *_below(result), "", result.sentence])


def _below(result: Result) -> list[str]:
    """The lines under the table: what was read back, who is slow, what else is to be known of agents, their notes."""
    lines = []
    if result.read_bytes or result.reads.count:
        p50, p99 = (_ms(result.reads.quantile(ratio)) for ratio in (0.50, 0.99))
        told = f"p50 {p50} ms, p99 {p99} ms, max {_ms(result.reads.high)} ms"
        rate = f"{(_read_rate(result) or 0.0) / 1e6:.1f} MB/s a job"
        lines.append(f"read back: {_size(result.read_bytes)} at {rate}, {told}")
    slow = [
        f"{agent.name} is slow: {agent.rate / 1e6:.1f} MB/s, "
        f"{(agent.below_median_ratio or 0) * 100:.0f} % below the fleet's median"
        for agent in result.slow
    ]
    remarked = [f"{agent.name}: {agent.remark}" for agent in result.agents if agent.remark]
    notes = _noted(result.agents)
    # What is missed comes first: with many agents the rest is what nobody looks for.
    objectives = [f"SLO {one.text}" for one in sorted(result.slo, key=lambda one: one.met)]
    for kind, more in (
        (slow, "that are slow"),
        (remarked, "with remarks"),
        (notes, "notes"),
        (objectives, "objectives"),
    ):
        lines += kind[:REMARKS]
        if len(kind) > REMARKS:
            lines.append(f"and {len(kind) - REMARKS} more {more}, see summary.json")
    return lines


def _noted(agents: Iterable[AgentResult]) -> list[str]:
    """The agents' notes, the same of several on one line; where those are too many, such as differ in figures only too."""
    lines: list[str] = []
    for alike in (lambda note: note, lambda note: re.sub(r"[0-9][0-9.]*", "#", note)):
        said: dict[str, list[tuple[str, str]]] = {}
        for agent in agents:
            for note in dict.fromkeys(" ".join(note.split()) for note in agent.notes):
                said.setdefault(alike(note), []).append((agent.name, note))
        lines = []
        for group in said.values():
            name, note = group[0]
            whose = "" if all(other == note for _, other in group) else f" (the figures are those of {name})"
            lines.append(f"{_names(dict.fromkeys(name for name, _ in group), 3)}: {_cut(note, NOTE)}{whose}")
        if len(lines) <= REMARKS:
            break
    return lines


def _names(names: Iterable[str], most: int) -> str:
    listed = list(names)
    shown = ", ".join(listed[:most])
    return shown if len(listed) <= most else f"{shown} and {len(listed) - most} more"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _read_rate(whose: Union[AgentResult, Result]) -> Optional[float]:
    """Bytes read back per second spent in reading, by one job on average; None without any."""
    return whose.read_bytes / whose.reads.total if whose.reads.total else None


def _size(size_bytes: int) -> str:
    if size_bytes >= 1e12:
        return f"{size_bytes / 1e12:.1f} TB"
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e8 else f"{size_bytes / 1e6:.0f} MB"


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _utc(wall: Optional[float]) -> Optional[str]:
    if wall is None:
        return None
    return datetime.fromtimestamp(wall, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _csv(rows: Iterable[Row], file: TextIO, columns: Sequence[str]) -> int:
    writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    count = 0
    for row in rows:
        writer.writerow(row)
        count += 1
    return count
