"""What a run amounts to: rows in, text and plain objects out. No database, no clock.

Verdicts: an agent's own final word, INCOMPLETE where that or any of its events is missing, the run's is its worst
agent's. Latencies come from merged histograms: the final event's where there is one, else the sum of the samples'.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Optional, TextIO

from fury_collector.histogram import Histogram
from fury_collector.rows import AgentRows, EpochRows, RunRows, start_skew_s

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

Row = Mapping[str, Any]


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
    last_s: Optional[float]
    writes: Histogram
    fsyncs: Histogram
    device_written_bytes: Optional[int]
    cleanup: str

    @property
    def finished(self) -> bool:
        """Whether it wrote to the end of its time and all its events are stored."""
        return self.verdict in ("PASS", "SLO_MISSED", "CLEANUP_UNCONFIRMED", "DATA_CORRUPTION")

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

    @property
    def written_bytes(self) -> int:
        """Durable bytes of the fleet."""
        return sum(agent.written_bytes for agent in self.agents)

    @property
    def rollovers(self) -> int:
        """Rollovers of the fleet."""
        return sum(agent.rollovers for agent in self.agents)

    @property
    def rate(self) -> float:
        """Bytes per second of the fleet over its common time."""
        return self.written_bytes / self.seconds if self.seconds else 0.0

    @property
    def sentence(self) -> str:
        """The verdict sentence."""
        return f"{self.verdict}: {self.reason}"


def judge(run: RunRows, samples: Iterable[Row]) -> Result:
    """The result of a run from its rows; of `samples` only those of epochs without a final event count."""
    open_epochs = {
        (a.name, e.epoch): (Histogram(), Histogram()) for a in run.agents for e in a.epochs if e.final is None
    }
    for sample in samples:
        pair = open_epochs.get((sample["agent"], sample["epoch"]))
        if pair is not None:
            pair[0].add(sample["write_histogram"])
            pair[1].add(sample["fsync_histogram"])
    agents = tuple(_agent(run, agent, open_epochs) for agent in run.agents)
    writes, fsyncs = Histogram(), Histogram()
    for agent in agents:
        writes.merge(agent.writes)
        fsyncs.merge(agent.fsyncs)
    firsts = [agent.first_s for agent in agents if agent.first_s is not None]
    lasts = [agent.last_s for agent in agents if agent.last_s is not None]
    seconds = max(lasts) - min(firsts) if firsts and lasts else max((agent.seconds for agent in agents), default=0.0)
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
        writes=writes,
        fsyncs=fsyncs,
    )
    return _with_reason(result, run)


def summary(result: Result) -> dict[str, Any]:
    """The object of summary.json; its keys are a contract (DESIGN.md), and may be added to, not renamed."""
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
        },
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
            }
            for agent in result.agents
        ],
    }


def table(result: Result, *, width: int = WIDTH) -> str:
    """The general statistics: a line per agent, one for the fleet, the verdict sentence; at most `width` columns."""
    groups = ["", "", "chunk", "", "", "", "write", "write", "write", "fsync", "fsync", ""]
    heads = [
        "agent",
        "host",
        "MB",
        "MB/s",
        "GB",
        "rollovers",
        "p50 ms",
        "p99 ms",
        "max ms",
        "p50 ms",
        "p99 ms",
        "verdict",
    ]
    lines = [
        [
            agent.name,
            agent.host,
            f"{agent.chunk_mb:g}",
            *_figures(agent.rate, agent.written_bytes, agent.rollovers, agent.writes, agent.fsyncs),
            agent.verdict,
        ]
        for agent in result.agents
    ]
    fleet = [
        "fleet",
        "",
        "",
        *_figures(result.rate, result.written_bytes, result.rollovers, result.writes, result.fsyncs),
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


def write_rollovers(rows: Iterable[Row], file: TextIO) -> int:
    """Write rollovers.csv and return the number of its rows."""
    return _csv(
        rows,
        file,
        (
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
        ),
    )


def write_samples(rows: Iterable[Row], file: TextIO) -> int:
    """Write samples.csv, histograms as their count and percentiles, and return the number of its rows."""
    return _csv(
        (_flat(row) for row in rows),
        file,
        (
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
        ),
    )


def _agent(
    run: RunRows, agent: AgentRows, open_epochs: Mapping[tuple[str, str], tuple[Histogram, Histogram]]
) -> AgentResult:
    writes, fsyncs = Histogram(), Histogram()
    written = rollovers = 0
    seconds = 0.0
    device: Optional[int] = 0
    firsts: list[tuple[float, float]] = []
    lasts: list[float] = []
    for epoch in agent.epochs:
        rollovers += epoch.rollovers
        lasting = _seconds(epoch)
        seconds += lasting
        if epoch.final is not None:
            final = epoch.final.payload
            written += final["written_bytes"]
            writes.add(final["write_histogram"])
            fsyncs.add(final["fsync_histogram"])
            device = device + final["device_written_bytes"] if _both(device, final["device_written_bytes"]) else None
        else:
            written += epoch.rollover_bytes
            pair = open_epochs[agent.name, epoch.epoch]
            writes.merge(pair[0])
            fsyncs.merge(pair[1])
            device = None
        if epoch.start is not None and epoch.start.payload["start_collector_mono_s"] is not None:
            firsts.append((epoch.start.payload["start_collector_mono_s"], epoch.start.payload["rtt_s"] or 0.0))
            lasts.append(firsts[-1][0] + lasting)
    verdict, reason = _verdict(run, agent, seconds)
    cleanup = agent.cleanup or "pending"
    if verdict == "PASS" and cleanup == "unconfirmed":
        detail = f": {agent.cleanup_detail}" if agent.cleanup_detail else ""
        verdict, reason = "CLEANUP_UNCONFIRMED", f"nothing confirms that its host was cleaned up{detail}"
    chunk_bytes = next((e.start.payload["chunk_bytes"] for e in reversed(agent.epochs) if e.start), None)
    return AgentResult(
        name=agent.name,
        host=agent.host,
        chunk_mb=agent.chunk_mb if chunk_bytes is None else round(chunk_bytes / 1e6, 1),
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
        last_s=max(lasts) if lasts else None,
        writes=writes,
        fsyncs=fsyncs,
        device_written_bytes=device if agent.epochs else None,
        cleanup=cleanup,
    )


def _verdict(run: RunRows, agent: AgentRows, seconds: float) -> tuple[str, str]:
    last = agent.epochs[-1] if agent.epochs else None
    final = next((epoch.final for epoch in reversed(agent.epochs) if epoch.final is not None), None)
    current = agent.ready.epoch if agent.ready is not None else None
    if final is not None and last is not None:
        latest = next((epoch for epoch in agent.epochs if epoch.epoch == current), last)
        verdict, reason = final.payload["verdict"], final.payload["reason"] or ""
        issued, stored = sum(epoch.issued for epoch in agent.epochs), sum(epoch.stored for epoch in agent.epochs)
        if latest.final is None and verdict == "PASS":
            return "INCOMPLETE", f"its last process ended without a final word after {_seconds(latest):.1f} s"
        if stored < issued and SEVERITY.index(verdict) > SEVERITY.index("INCOMPLETE"):
            return "INCOMPLETE", f"{issued - stored} of {issued} events are missing"
        if len(agent.epochs) > 1:
            reason = (
                f"{reason}; restarted {len(agent.epochs) - 1}×" if reason else f"restarted {len(agent.epochs) - 1}×"
            )
        return verdict, reason
    if agent.reachable is False:
        detail = f": {agent.cleanup_detail}" if agent.cleanup_detail else ""
        return "INCOMPLETE", f"its host could not be reached{detail}"
    if last is not None and last.start is not None:
        return "INCOMPLETE", f"lost after {seconds:.1f} s"
    if run.state.state == "aborted":
        return "INCOMPLETE", "was ready, but the run was aborted" if agent.ready else "never got ready"
    return "INCOMPLETE", "was ready, but never started" if agent.ready else "never got ready"


def _with_reason(result: Result, run: RunRows) -> Result:
    agents = result.agents
    if result.verdict == "PASS":
        said = (
            f"{len(agents)} of {len(agents)} agents finished, "
            f"{result.written_bytes / 1e9:.1f} GB at {result.rate / 1e6:.1f} MB/s"
        )
    elif result.verdict == "INCOMPLETE":
        finished = sum(agent.finished for agent in agents)
        said = f"{finished} of {len(agents)} agents finished"
        parted: dict[str, list[str]] = {}
        for agent in agents:
            if not agent.finished:
                lost = agent.reason.startswith("lost after")
                parted.setdefault("lost" if lost else agent.reason, []).append(agent.name)
        for why, names in parted.items():
            said += f"; {why}: {_names(names)}"
        if run.state.state == "aborted" and run.state.reason:
            said += f"; the run was aborted: {run.state.reason}"
        elif run.state.stop_reason is not None:
            said += f"; the run was stopped: {run.state.stop_reason}"
    else:
        worst = [agent for agent in agents if agent.verdict == result.verdict]
        why = f"{worst[0].name}: {worst[0].reason}" if worst[0].reason else worst[0].name
        more = f"{len(worst)} of {len(agents)} agents: {_names(agent.name for agent in worst)}; "
        said = more + why if len(worst) > 1 else why
    return Result(**{**vars(result), "reason": said})


def _seconds(epoch: EpochRows) -> float:
    """How long a process wrote: by its own final word, else from its start to the last that was heard of it."""
    if epoch.final is not None:
        return float(epoch.final.payload["seconds"])
    return max(0.0, (epoch.last_t_mono_ns - epoch.start.t_mono_ns) / 1e9) if epoch.start is not None else 0.0


def _both(one: Optional[int], other: Optional[int]) -> bool:
    return one is not None and other is not None


def _figures(rate: float, written: int, rollovers: int, writes: Histogram, fsyncs: Histogram) -> list[str]:
    return [
        f"{rate / 1e6:.1f}",
        f"{written / 1e9:.2f}",
        str(rollovers),
        _ms(writes.quantile(0.50)),
        _ms(writes.quantile(0.99)),
        _ms(writes.high),
        _ms(fsyncs.quantile(0.50)),
        _ms(fsyncs.quantile(0.99)),
    ]


def _ms(seconds: Optional[float]) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.2f}" if seconds < 1 else f"{seconds * 1000:.0f}"


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
    return "\n".join([*text[:2], rule, *text[2:-1], rule, text[-1], "", result.sentence])


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    shown = ", ".join(listed[:10])
    return shown if len(listed) <= 10 else f"{shown} and {len(listed) - 10} more"


def _utc(wall: Optional[float]) -> Optional[str]:
    if wall is None:
        return None
    return datetime.fromtimestamp(wall, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _flat(row: Row) -> dict[str, Any]:
    flat = dict(row)
    for name in ("write", "fsync"):
        histogram = Histogram()
        histogram.add(row[f"{name}_histogram"])
        flat[f"{name}s"] = histogram.count
        flat[f"{name}_p50_s"] = histogram.quantile(0.50)
        flat[f"{name}_p99_s"] = histogram.quantile(0.99)
        flat[f"{name}_max_s"] = histogram.high
    return flat


def _csv(rows: Iterable[Row], file: TextIO, columns: Sequence[str]) -> int:
    writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    count = 0
    for row in rows:
        writer.writerow(row)
        count += 1
    return count
