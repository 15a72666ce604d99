"""The Fleet dashboard: how is the run going, and who is slow?"""

from __future__ import annotations

from typing import Any

from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import units

from grafana.source.panels import (
    FSYNC,
    QUANTILES,
    READ,
    ROLLOVERS,
    WRITE,
    WRITTEN,
    Panel,
    bars,
    columns,
    graph,
    instant,
    lay_out,
    number,
    of_collector,
    of_run,
    quantile,
    rows,
    start,
    target,
)

HEALTH = {
    "waiting": "blue",
    "green": "green",
    "late": "yellow",
    "suspect": "orange",
    "lost": "red",
    "finished": "purple",
}


def dashboard() -> Any:
    """Returns the builder of the Fleet dashboard."""
    board = start(
        "Fury: Fleet", "fury-fleet", "One run over the fleet: its state, throughput, latency, hosts and collector."
    ).refresh("5s")
    sections = {
        "Run": _run(),
        "Throughput": _throughput(),
        "Latency": _latency(),
        "Hosts": _hosts(),
        "Collector": _collector(),
    }
    return lay_out(board, sections)


def _run() -> list[Panel]:
    # With names for values Grafana would show an empty box.
    nothing = 'label_replace(vector(1), "state", "no collector", "", "")'
    state = f"max by (state) ({of_collector('fury_collector_run_state', None)}) == 1"
    phase = number(
        "State",
        "Where the run is now, as the collector sees it: arming, starting, running, draining, finished or aborted; or no "
        "collector, where none has answered.",
        units.Short,
        instant(f"{state} or on () {nothing}", "{{state}}"),
        words=True,
    )
    throughput = number(
        "Throughput now",
        "Durable bytes per second of the chosen agents together, over the last scrapes.",
        units.BytesPerSecondSI,
        target(f"sum({of_run(WRITTEN)})", "fleet"),
    )
    written = number(
        "Written",
        "Durable bytes of the chosen agents, each as last seen in this time range. summary.json has the exact figure.",
        units.BytesSI,
        instant(f"sum({of_run(WRITTEN, '$__range', 'max_over_time')})", "fleet"),
    )
    rollovers = number(
        "Rollovers",
        "Chunks filled, synced and closed by the chosen agents, as last seen in this time range.",
        units.Short,
        instant(f"sum({of_run(ROLLOVERS, '$__range', 'max_over_time')})", "fleet"),
    )
    errors = number(
        "Write errors",
        "Failed writes of the chosen agents. One is enough to distrust a disk.",
        units.Short,
        instant(f"sum({of_run('fury_write_errors_total', '$__range', 'max_over_time')})", "fleet"),
        steps=[(None, "green"), (1, "red")],
    )
    skew = number(
        "Start skew",
        "How far apart the agents' first writes were at most, the uncertainty of the clock comparison included.",
        units.Seconds,
        target(f"max({of_collector('fury_collector_start_skew_seconds', None)}) >= 0", "skew"),
        steps=[(None, "green"), (0.1, "orange"), (1, "red")],
    )
    journal = number(
        "In journals",
        "Events that the chosen agents still hold in their journals because the collector has not acknowledged them.",
        units.Short,
        target(f"sum({of_run('fury_journal_events', None)})", "events"),
        steps=[(None, "green"), (1000, "orange")],
    )
    health = bars(
        "Agents by health",
        "Late: no word for 10 s; suspect: 20 s; lost: 40 s; failed: the last word is another verdict than PASS. "
        "All agents of the run, whatever is chosen above.",
        units.Short,
        instant(f"sum by (health) ({of_collector('fury_collector_agents', None)})", "{{health}}"),
        instant(f"sum({of_collector('fury_collector_agents_failed', None)})", "failed", "B"),
        colours={**HEALTH, "failed": "red"},
    )
    whole = "$__range"
    agents = rows(
        "Agents",
        "A row per agent. Throughput is that of the last scrapes; all else covers this time range.",
        "agent",
        {
            "A": ("Throughput", units.BytesPerSecondSI),
            "B": ("Written", units.BytesSI),
            "C": ("Rollovers", units.Short),
            "D": ("Write p99", units.Seconds),
            "E": ("fsync p99", units.Seconds),
            "F": ("Errors", units.Short),
            "G": ("Least free", units.BytesSI),
        },
        # Written comes first: it is there for every agent, also for one that has gone, and its host names the row.
        columns(f"sum by (agent, host) ({of_run(WRITTEN, whole, 'max_over_time')})", "B"),
        columns(f"sum by (agent) ({of_run(WRITTEN)})", "A"),
        columns(f"sum by (agent) ({of_run(ROLLOVERS, whole, 'max_over_time')})", "C"),
        columns(quantile(0.99, of_run(WRITE, whole, "max_over_time"), "agent"), "D"),
        columns(quantile(0.99, of_run(FSYNC, whole, "max_over_time"), "agent"), "E"),
        columns(f"sum by (agent) ({of_run('fury_write_errors_total', whole, 'max_over_time')})", "F"),
        columns(f"min by (agent) ({of_run('fury_disk_free_bytes', whole, 'min_over_time')})", "G"),
        words=("host",),
    )
    figures = [(phase, 4), (throughput, 4), (written, 4), (rollovers, 3), (errors, 3), (skew, 3), (journal, 3)]
    return [*((panel, width, 4) for panel, width in figures), (health, 6, 9), (agents, 18, 9)]


def _throughput() -> list[Panel]:
    fleet = graph(
        "Fleet throughput",
        "Durable bytes per second of the chosen agents together. A chunk counts when it is synced, so chunks that take "
        "longer than the rate's window make steps.",
        units.BytesPerSecondSI,
        target(f"sum({of_run(WRITTEN)})", "fleet"),
    )
    agents = graph(
        "Throughput per agent",
        "Durable bytes per second of each chosen agent.",
        units.BytesPerSecondSI,
        target(f"sum by (agent) ({of_run(WRITTEN)})", "{{agent}}"),
    )
    rollovers = graph(
        "Rollovers per agent",
        "Chunks filled, synced and closed per second.",
        units.CountsPerSecond,
        target(f"sum by (agent) ({of_run(ROLLOVERS)})", "{{agent}}"),
    )
    reads = graph(
        "Read back per agent",
        "Bytes read back and compared per second; nothing without verify=readback.",
        units.BytesPerSecondSI,
        target(f"sum by (agent) ({of_run('fury_read_bytes_total')})", "{{agent}}"),
    )
    slowest = bars(
        "Slowest agents now",
        "The ten chosen agents with the least durable bytes per second.",
        units.BytesPerSecondSI,
        instant(f"sort(bottomk(10, sum by (agent) ({of_run(WRITTEN)})))", "{{agent}}"),
    )
    return [(fleet, 12, 9), (agents, 12, 9), (rollovers, 8, 9), (reads, 8, 9), (slowest, 8, 9)]


def _latency() -> list[Panel]:
    return [
        (panel, 12, 9)
        for name, metric, what in (
            ("Write", WRITE, "one write call (a block)"),
            ("fsync", FSYNC, "one fsync (at each rollover)"),
            ("Read", READ, "one call that reads back what was written (with verify=readback)"),
        )
        for panel in (
            graph(
                f"{name} latency of the fleet",
                f"How long {what} takes, over all chosen agents: quantiles of their merged histograms, never averages "
                "of quantiles. As exact as the histogram's buckets.",
                units.Seconds,
                *(target(quantile(q, of_run(metric)), f"p{q * 100:g}", ref) for ref, q in QUANTILES.items()),
            ),
            graph(
                f"{name} latency per agent, p99",
                f"99 of 100 times {what} takes at most this long.",
                units.Seconds,
                target(quantile(0.99, of_run(metric), "agent"), "{{agent}}"),
            ),
        )
    ]


def _hosts() -> list[Panel]:
    cpu, free = of_run("fury_host_cpu_ratio", None), of_run("fury_disk_free_bytes", None)
    used, total = of_run("fury_host_memory_used_bytes", None), of_run("fury_host_memory_total_bytes", None)
    agent_cpu, agent_memory = of_run("process_cpu_seconds_total"), of_run("process_resident_memory_bytes", None)
    graphs = (
        graph(
            "CPU of the host",
            "Busy share of all cores of the agent's host.",
            units.PercentUnit,
            target(f"max by (agent) ({cpu})", "{{agent}}"),
        ),
        graph(
            "Memory of the host",
            "Used share of the memory of the agent's host.",
            units.PercentUnit,
            target(f"max by (agent) ({used}) / max by (agent) ({total})", "{{agent}}"),
        ),
        graph(
            "Free space",
            "Bytes free on the file system that the agent writes to.",
            units.BytesSI,
            target(f"min by (agent) ({free})", "{{agent}}"),
        ),
        graph(
            "CPU of the agent",
            "CPU seconds per second of the agent itself: 100 % is one core. Near that, the agent is the limit and not "
            "the disk.",
            units.PercentUnit,
            target(f"sum by (agent) ({agent_cpu})", "{{agent}}"),
        ),
        graph(
            "Memory of the agent",
            "Resident memory of the agent itself.",
            units.BytesIEC,
            target(f"sum by (agent) ({agent_memory})", "{{agent}}"),
        ),
        graph(
            "Journal",
            "Events not yet acknowledged by the collector. It grows while the collector or the network is away.",
            units.Short,
            target(f"sum by (agent) ({of_run('fury_journal_events', None)})", "{{agent}}"),
        ),
    )
    return [(panel, 8, 8) for panel in graphs]


def _collector() -> list[Panel]:
    health = graph(
        "Agents by health over time",
        "All agents of the run. Late: no word for 10 s; suspect: 20 s; lost: 40 s.",
        units.Short,
        target(f"sum by (health) ({of_collector('fury_collector_agents', None)})", "{{health}}"),
        stacked=True,
    )
    for name, colour in HEALTH.items():
        fixed = models.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": colour})
        health = health.override_by_name(name, [fixed])
    events = graph(
        "Events",
        "Events stored, and those that came again and changed nothing; pushes and the batches that were refused.",
        units.EventsPerSecond,
        target(f"sum({of_collector('fury_collector_events_stored_total')})", "stored", "A"),
        target(f"sum({of_collector('fury_collector_events_duplicate_total')})", "duplicate", "B"),
        target(f"sum({of_collector('fury_collector_pushes_total')})", "pushes", "C"),
        target(f"sum({of_collector('fury_collector_batches_refused_total')})", "batches refused", "D"),
    )
    push = of_collector("fury_collector_push_duration_seconds_bucket")
    pushes = graph(
        "Push latency",
        "How long the collector takes to answer a push, its commit included.",
        units.Seconds,
        *(target(quantile(q, push), f"p{q * 100:g}", ref) for ref, q in QUANTILES.items()),
    )
    cpu = graph(
        "CPU of the collector",
        "CPU seconds per second of the collector's process: 100 % is one core.",
        units.PercentUnit,
        target(f"sum({of_collector('process_cpu_seconds_total')})", "collector"),
    )
    memory = graph(
        "Memory of the collector",
        "Resident memory of the collector's process. It stays flat, whatever the run's length.",
        units.BytesIEC,
        target(f"sum({of_collector('process_resident_memory_bytes', None)})", "collector"),
    )
    descriptors = graph(
        "Open files of the collector",
        "File descriptors of the collector's process: connections and database. They stay flat.",
        units.Short,
        target(f"sum({of_collector('process_open_fds', None)})", "open files"),
    )
    pending = graph(
        "Not delivered",
        "Events that agents have still to deliver, by what they said last. All agents of the run, also those that Prometheus "
        "does not reach.",
        units.Short,
        target(f"sum({of_collector('fury_collector_events_pending', None)})", "events"),
    )
    silence = graph(
        "Longest silence",
        "Since when the agent has been silent that was heard least recently: late after 10 s, suspect after 20 s, lost after "
        "40 s.",
        units.Seconds,
        target(f"max({of_collector('fury_collector_silence_seconds', None)})", "silence"),
    )
    delivery = [(pending, 12, 8), (silence, 12, 8)]
    of_process = [(panel, 8, 8) for panel in (cpu, memory, descriptors)]
    return [(health, 8, 10), (events, 8, 10), (pushes, 8, 10), *of_process, *delivery]
