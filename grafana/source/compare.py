"""The Compare runs dashboard: what several runs reached, next to each other.

Runs happen at different times, and Prometheus can't lay them over each other: what is compared are figures of each run
within the time range. `fury_collector compare` has the curves over each other, with intervals.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from grafana_foundation_sdk.models import units

from grafana.source.panels import (
    FSYNC,
    QUANTILES,
    ROLLOVERS,
    SEVERAL_RUNS,
    WRITE,
    WRITTEN,
    Panel,
    bars,
    columns,
    graph,
    instant,
    lay_out,
    matrix,
    of_run,
    quantile,
    rows,
    running,
    start,
    target,
)

live = partial(of_run, runs=SEVERAL_RUNS)
whole = partial(live, window="$__range", function="max_over_time")
TYPICAL = "The median over the run's time, so that its start and its end don't count."


def typical(by: str) -> str:
    """Returns the median over time of the throughput by these labels."""
    return f"quantile_over_time(0.5, (sum by ({by}) ({live(WRITTEN)}) > 0)[$__range:2s])"


def dashboard() -> Any:
    """Returns the builder of the Compare runs dashboard."""
    board = start(
        "Fury: Compare runs",
        "fury-compare",
        "Several runs next to each other: throughput, latency and rollovers of fleet and agents. Choose a time range that "
        "holds them all.",
        runs=SEVERAL_RUNS,
    ).refresh("1m")
    return lay_out(board, {"Runs": _runs(), "Agents": _agents(), "Over time": _over_time()})


def _runs() -> list[Panel]:
    at = f"timestamp({running(SEVERAL_RUNS)})[$__range:2s]"
    runs = rows(
        "Runs",
        "A row per run. Start and time are as the collector told Prometheus, to 2 s; bytes, rollovers and errors as last seen; "
        f"latency over all writes. Throughput: {TYPICAL}",
        "run_id",
        {
            "B": ("Started", units.DatetimeISO),
            "C": ("Ran for", units.Seconds),
            "D": ("Agents", units.Short),
            "A": ("Written", units.BytesSI),
            "E": ("Rollovers", units.Short),
            "F": ("Throughput", units.BytesPerSecondSI),
            "G": ("Write p99", units.Seconds),
            "H": ("fsync p99", units.Seconds),
            "I": ("Errors", units.Short),
        },
        columns(f"sum by (run_id) ({whole(WRITTEN)})", "A"),
        columns(f"min_over_time({at}) * 1000", "B"),
        columns(f"max_over_time({at}) - min_over_time({at})", "C"),
        columns(f"count by (run_id) (count by (run_id, agent) ({whole(WRITTEN)}))", "D"),
        columns(f"sum by (run_id) ({whole(ROLLOVERS)})", "E"),
        columns(typical("run_id"), "F"),
        columns(quantile(0.99, whole(WRITE), "run_id"), "G"),
        columns(quantile(0.99, whole(FSYNC), "run_id"), "H"),
        columns(f"sum by (run_id) ({whole('fury_write_errors_total')})", "I"),
    )
    throughput = bars(
        "Throughput",
        f"Durable bytes per second of the chosen agents together. {TYPICAL}",
        units.BytesPerSecondSI,
        instant(f"sort({typical('run_id')})", "{{run_id}}"),
    )
    latency = (
        bars(
            f"{name} latency",
            f"How long {what} took in the whole run: quantiles of the merged histograms of the chosen agents, as exact as "
            "the buckets.",
            units.Seconds,
            *(
                instant(f"sort({quantile(q, whole(metric), 'run_id')})", f"p{q * 100:g} {{{{run_id}}}}", ref)
                for ref, q in QUANTILES.items()
            ),
        )
        for name, metric, what in (("Write", WRITE, "one write call (a block)"), ("fsync", FSYNC, "one fsync (at each rollover)"))
    )  # fmt: skip
    return [(runs, 24, 7), *((panel, 8, 9) for panel in (throughput, *latency))]


def _agents() -> list[Panel]:
    tables = (
        matrix(
            "Throughput per agent",
            f"Durable bytes per second, a column per run. {TYPICAL}",
            units.BytesPerSecondSI,
            columns(typical("agent, run_id"), "A"),
        ),
        matrix(
            "Rollovers per agent",
            "Chunks filled, synced and closed in each run.",
            units.Short,
            columns(f"sum by (agent, run_id) ({whole(ROLLOVERS)})", "A"),
        ),
        matrix(
            "Write p99 per agent",
            "99 of 100 writes of each run took at most this long.",
            units.Seconds,
            columns(quantile(0.99, whole(WRITE), "agent, run_id"), "A"),
        ),
        matrix(
            "fsync p99 per agent",
            "99 of 100 fsyncs of each run took at most this long.",
            units.Seconds,
            columns(quantile(0.99, whole(FSYNC), "agent, run_id"), "A"),
        ),
    )
    return [(panel, 12, 8) for panel in tables]


def _over_time() -> list[Panel]:
    throughput = graph(
        "Throughput over time",
        "Durable bytes per second of the chosen agents of each run: is it steady, and do the runs change in the same way?",
        units.BytesPerSecondSI,
        target(f"sum by (run_id) ({live(WRITTEN)})", "{{run_id}}"),
    )
    latency = graph(
        "Write p99 over time",
        "99 of 100 writes of the last scrapes took at most this long.",
        units.Seconds,
        target(quantile(0.99, live(WRITE), "run_id"), "{{run_id}}"),
    )
    return [(throughput, 12, 9), (latency, 12, 9)]
