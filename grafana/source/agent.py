"""The Agent dashboard: one agent in depth, beside the rest of its fleet."""

from __future__ import annotations

from functools import partial
from typing import Any

from grafana_foundation_sdk.models import units

from grafana.source.panels import (
    EVERY_AGENT,
    FSYNC,
    ONE_AGENT,
    ONE_RUN,
    QUANTILES,
    READ,
    ROLLOVERS,
    WRITE,
    WRITTEN,
    Panel,
    columns,
    graph,
    instant,
    lay_out,
    mark,
    number,
    of_run,
    quantile,
    rows,
    running,
    start,
    target,
)

mine = partial(of_run, agents=ONE_AGENT)
whole = partial(mine, window="$__range", function="max_over_time")


def dashboard() -> Any:
    """Returns the builder of the Agent dashboard."""
    board = start(
        "Fury: Agent",
        "fury-agent",
        "One agent in depth: how it does beside its fleet, where its time goes, and what its host has left.",
        agents=ONE_AGENT,
    ).refresh("5s")
    up = 'up{job="fury_agents", agent="$agent"}'
    deaf = f"sum by (agent) (1 - {up}) > 0 and on () {running(ONE_RUN)}"
    begun = f"max by (agent, instance) ({mine('process_start_time_seconds', None)}) * 1000"
    board = board.annotation(mark("Not scraped", "orange", deaf, "{{agent}} does not answer Prometheus"))
    process = mark("Process start", "purple", begun, "{{agent}} starts at {{instance}}").use_value_for_time(True)
    board = board.annotation(process)
    sections = {
        "Agent": _agent(),
        "Throughput": _throughput(),
        "Latency": _latency(),
        "Host and process": _host(),
    }
    return lay_out(board, sections)


def _agent() -> list[Panel]:
    now, fleet = f"sum({mine(WRITTEN)})", of_run(WRITTEN, agents=EVERY_AGENT)
    figures = [
        number("Throughput", "Durable bytes per second over the last scrapes.", units.BytesPerSecondSI, target(now, "agent")),
        number(
            "Of the median",
            "Its throughput as a share of that of the median agent of the same run. Below 80 % it counts as slow, where "
            "all have the same settings.",
            units.PercentUnit,
            target(f"{now} / quantile(0.5, sum by (agent) ({fleet})) >= 0", "agent"),
            steps=[(None, "red"), (0.8, "green")],
        ),
        number(
            "Written",
            "Durable bytes as last seen in this time range. summary.json has the exact figure.",
            units.BytesSI,
            instant(f"sum({whole(WRITTEN)})", "agent"),
        ),
        number(
            "Rollovers",
            "Chunks filled, synced and closed, as last seen in this time range.",
            units.Short,
            instant(f"sum({whole(ROLLOVERS)})", "agent"),
        ),
        number(
            "Write p99",
            "99 of 100 writes of this time range took at most this long.",
            units.Seconds,
            instant(quantile(0.99, whole(WRITE)), "agent"),
        ),
        number(
            "fsync p99",
            "99 of 100 fsyncs of this time range took at most this long.",
            units.Seconds,
            instant(quantile(0.99, whole(FSYNC)), "agent"),
        ),
        number(
            "Write errors",
            "Failed calls to the storage. The first one ends the agent.",
            units.Short,
            instant(f"sum({whole('fury_write_errors_total')})", "agent"),
            steps=[(None, "green"), (1, "red")],
        ),
        number(
            "In journal",
            "Events in its journal that the collector has not acknowledged.",
            units.Short,
            target(f"sum({mine('fury_journal_events', None)})", "agent"),
            steps=[(None, "green"), (1000, "orange")],
        ),
    ]  # fmt: skip
    info = 'max_over_time(fury_run_info{agent="$agent", run_id="$run"}[$__range])'
    identity = rows(
        "Identity",
        "Which host it runs on, which version it is, where it writes, and how many processes it was: more than one is a "
        "restart.",
        "agent",
        {"A": ("Processes", units.Short), "B": ("Chunk size", units.BytesSI)},
        columns(f"count by (agent, host, version, directory) ({info})", "A"),
        columns(f"max by (agent) ({whole('fury_chunk_bytes')})", "B"),
        words=("host", "version", "directory"),
    )
    return [*((panel, 3, 4) for panel in figures), (identity, 24, 4)]


def _throughput() -> list[Panel]:
    fleet = f"sum by (agent) ({of_run(WRITTEN, agents=EVERY_AGENT)})"
    throughput = graph(
        "Throughput beside the fleet",
        "Durable bytes per second of this agent, and of the slowest, the median and the fastest agent of its run.",
        units.BytesPerSecondSI,
        target(f"sum by (agent) ({mine(WRITTEN)})", "{{agent}}", "A"),
        target(f"min({fleet})", "slowest", "B"),
        target(f"quantile(0.5, {fleet})", "median", "C"),
        target(f"max({fleet})", "fastest", "D"),
    )
    rollovers = graph(
        "Rollovers",
        "Chunks filled, synced and closed per second.",
        units.CountsPerSecond,
        target(f"sum by (agent) ({mine(ROLLOVERS)})", "{{agent}}"),
    )
    spent = graph(
        "Where the time goes",
        "Share of the time that its writers spend in each kind of call; 100 % is one job's. What is missing is its own "
        "work: making data, opening and closing chunks, or waiting where the rate is limited.",
        units.PercentUnit,
        *(
            target(f"sum({mine(f'fury_{call}_duration_seconds_sum')})", legend, ref)
            for ref, call, legend in (("A", "write", "write"), ("B", "fsync", "fsync"), ("C", "read", "read back"))
        ),
        stacked=True,
    )
    reads = graph(
        "Read back",
        "Bytes read back and compared per second; nothing without verify=readback.",
        units.BytesPerSecondSI,
        target(f"sum by (agent) ({mine('fury_read_bytes_total')})", "{{agent}}"),
    )
    return [(throughput, 12, 10), (spent, 12, 10), (rollovers, 12, 8), (reads, 12, 8)]


def _latency() -> list[Panel]:
    fleet = partial(of_run, agents=EVERY_AGENT)
    return [
        (
            graph(
                f"{name} latency",
                f"How long {what} takes: quantiles of its histogram, as exact as the buckets, and the fleet's p99 beside.",
                units.Seconds,
                *(target(quantile(q, mine(metric)), f"p{q * 100:g}", ref) for ref, q in QUANTILES.items()),
                target(quantile(0.99, fleet(metric)), "p99 of the fleet", "D"),
            ),
            8,
            10,
        )
        for name, metric, what in (
            ("Write", WRITE, "one write call (a block)"),
            ("fsync", FSYNC, "one fsync (at each rollover)"),
            ("Read", READ, "one call that reads back what was written (with verify=readback)"),
        )
    ]


def _host() -> list[Panel]:
    used, total = mine("fury_host_memory_used_bytes", None), mine("fury_host_memory_total_bytes", None)
    graphs = (
        graph(
            "CPU",
            "Busy share of all cores of the host, and CPU seconds per second of the agent itself, where 100 % is one core. "
            "Near that, the agent is the limit and not the disk.",
            units.PercentUnit,
            target(f"max({mine('fury_host_cpu_ratio', None)})", "host", "A"),
            target(f"sum({mine('process_cpu_seconds_total')})", "agent", "B"),
        ),
        graph(
            "Memory of the host",
            "Memory that is not available, and all there is.",
            units.BytesIEC,
            target(f"max({used})", "used", "A"),
            target(f"max({total})", "total", "B"),
        ),
        graph(
            "Memory of the agent",
            "Resident memory of the agent itself. It stays flat, whatever the run's length.",
            units.BytesIEC,
            target(f"sum({mine('process_resident_memory_bytes', None)})", "resident"),
        ),
        graph(
            "Free space",
            "Bytes free to the agent on the file system that it writes to.",
            units.BytesSI,
            target(f"min({mine('fury_disk_free_bytes', None)})", "free"),
        ),
        graph(
            "Journal",
            "Events not yet acknowledged by the collector. It grows while the collector or the network is away.",
            units.Short,
            target(f"sum({mine('fury_journal_events', None)})", "events"),
        ),
        graph(
            "Open files",
            "File descriptors of the agent's process. They stay flat.",
            units.Short,
            target(f"sum({mine('process_open_fds', None)})", "open files"),
        ),
    )
    return [(panel, 8, 8) for panel in graphs]
