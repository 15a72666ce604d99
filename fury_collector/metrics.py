"""The collector's own metrics; names and labels are in docs/protocol.md, the run id only on the info series."""

from __future__ import annotations

from collections.abc import Iterator

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fury_collector.run import STATES, Run


class Metrics:
    """Counters of one application in a registry of its own."""

    def __init__(self, run: Run) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(_OfRun(run))
        self.pushes = Counter("fury_collector_pushes", "Pushes of events that were answered.", registry=self.registry)
        self.stored = Counter("fury_collector_events_stored", "Events stored, each once.", registry=self.registry)
        self.duplicates = Counter(
            "fury_collector_events_duplicate", "Events that were stored already.", registry=self.registry
        )
        self.refused = Counter(
            "fury_collector_batches_refused", "Pushes that were refused whole.", registry=self.registry
        )
        self.duration = Histogram(
            "fury_collector_push_duration_seconds",
            "From a push's body to its answer, the commit included.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
            registry=self.registry,
        )

    def text(self) -> bytes:
        """The exposition of GET /metrics."""
        return prometheus_client.generate_latest(self.registry)


class _OfRun(Collector):
    """What is read off the run at the moment of the scrape."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        agents = GaugeMetricFamily("fury_collector_agents", "Agents by health.", labels=["health"])
        for health, number in self._run.health().items():
            agents.add_metric([health], number)
        yield agents
        yield GaugeMetricFamily(
            "fury_collector_agents_failed",
            "Agents whose last word is another verdict than PASS.",
            value=self._run.failed(),
        )
        yield GaugeMetricFamily(
            "fury_collector_events_pending",
            "Events that agents had not delivered yet, by their newest heartbeats.",
            value=self._run.pending(),
        )
        yield GaugeMetricFamily(
            "fury_collector_silence_seconds",
            "For how long the agent has been silent that was heard least recently, of those that have not finished.",
            value=self._run.silence(),
        )
        info = GaugeMetricFamily("fury_collector_run_info", "The run that is served.", labels=["run_id"])
        info.add_metric([self._run.run_id], 1)
        yield info
        current = GaugeMetricFamily(
            "fury_collector_run_state", "1 for the run's state, 0 for others.", labels=["state"]
        )
        for state in STATES:
            current.add_metric([state], state == self._run.state)
        yield current
        skew = GaugeMetricFamily(
            "fury_collector_start_skew_seconds",
            "How far apart first writes were at most: an upper bound, the uncertainty of the clock comparison included.",
        )
        if self._run.start_skew_s is not None:
            skew.add_metric([], self._run.start_skew_s)
        yield skew
