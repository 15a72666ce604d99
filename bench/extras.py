"""What everything but writing costs the writer: an agent with all of it against one with none, in pairs of runs on loopback.

    python -m bench.extras [--pairs 10] [--seconds 20] [--scrapes 600] [--chunk-mb 20] [--io direct] [--directory /var/tmp]

All of it: a collector on this machine that gets heartbeats, samples and rollovers, the journal on the file system under test, and
a scrape of /metrics each second. None of it: the agent by hand, no collector, no journal, no heartbeats, no samples, no scrape.
Histograms, the console's lines and the metrics server are in both. Which of a pair goes first changes from pair to pair. The
figure is the median of the pairs' quotients with its 95 % interval; the target is a cost below 1 %.

On two or more hosts the collector's own CPU and its database's writes are not on the agent's host; here they are, so this is the
worst case. Buffered runs on one disk fall into groups that differ by more than what is to be seen, whatever runs beside them:
hence direct ones.

Then /metrics alone: one more agent with all of it, scraped each 50 ms on a new connection; the time from connecting until the
last byte. Target: p99 below 10 ms.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.collector_cut import ROOT, START_S, finish, interval, running
from bench.table import report

COST_TARGET = 0.01
LATENCY_TARGET_S = 0.010
SCRAPE_S = 1.0
FAST_SCRAPE_S = 0.05
TIMEOUT_S = 10.0
DRAIN_S = 30
SETTLE_S = 3.0
"""Pause after each run. An agent with a collector starts some seconds after its process, which must not be its advantage."""
NEVER_S = 3600


def metrics_address(home: Path) -> str:
    """Where the agent's /metrics listens, as the collector tells Prometheus."""
    collector = json.loads((home / "collector.json").read_text())["url"]
    with urllib.request.urlopen(f"{collector}/api/v1/targets", timeout=TIMEOUT_S) as answer:
        targets: list[str] = json.load(answer)[0]["targets"]
    return targets[0]


def scrape(address: str) -> float:
    """Seconds of one scrape, on a connection of its own."""
    began = time.monotonic()
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    took = time.monotonic() - began
    if response.status != 200 or b"fury_written_bytes_total" not in body:
        sys.exit(f"/metrics answered {response.status}")
    return took


@contextlib.contextmanager
def scraped(address: str, *, every_s: float) -> Iterator[list[float]]:
    """The seconds of scrapes that go on in a thread meanwhile."""
    latencies: list[float] = []
    ended = threading.Event()

    def scrape_on() -> None:
        while not ended.wait(every_s):
            try:
                latencies.append(scrape(address))
            except (OSError, http.client.HTTPException) as error:
                if not ended.is_set():
                    print(f"a scrape failed: {error}", file=sys.stderr)
                    latencies.append(math.inf)

    thread = threading.Thread(target=scrape_on)
    thread.start()
    try:
        yield latencies
    finally:
        ended.set()
        thread.join()


def with_all(directory: Path, *, seconds: int, chunk_mb: int, io: str, every_s: float) -> tuple[float, list[float]]:
    """MB/s of a run with everything, and the seconds of its scrapes."""
    more = ("--io", io)
    with running(directory, seconds=seconds, chunk_mb=chunk_mb, drain_s=DRAIN_S, more=more) as (home, _, writer):
        try:
            began = time.monotonic()
            with scraped(metrics_address(home), every_s=every_s) as latencies:
                time.sleep(max(0.0, began + seconds - 0.5 - time.monotonic()))  # it stops serving at its end
            rate = float(finish(writer, "PASS")["throughput_bytes_per_second"]) / 1e6
        finally:
            if writer.poll() is None:
                writer.kill()
            writer.wait()
    return rate, latencies


def with_none(directory: Path, *, seconds: int, chunk_mb: int, io: str) -> float:
    """MB/s of a run by hand with everything off that can be."""
    with tempfile.TemporaryDirectory(prefix="fury-extras-", dir=directory) as name:
        argv = [sys.executable, "-m", "fury_agent", "cut", "--chunk-mb", str(chunk_mb), "--seconds", str(seconds)]
        argv += [
            "--io",
            io,
            "--directory",
            name,
            "--heartbeat-seconds",
            str(NEVER_S),
            "--sample-seconds",
            str(NEVER_S),
            "--json",
        ]
        writer = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            return float(finish(writer, "PASS")["throughput_bytes_per_second"]) / 1e6
        finally:
            if writer.poll() is None:
                writer.kill()
            writer.wait()


def worst_cost(quotients: Sequence[float]) -> float:
    """The cost at the worse end of the median's 95 % interval."""
    low = int(len(quotients) / 2 - 0.98 * len(quotients) ** 0.5)
    return 1 - sorted(quotients)[max(0, low)]


def rank(values: Sequence[float], quantile: float) -> float:
    """The nearest rank."""
    return sorted(values)[max(1, math.ceil(quantile * len(values))) - 1]


def main() -> None:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--scrapes", type=int, default=600)
    parser.add_argument("--chunk-mb", type=int, default=20)
    parser.add_argument("--io", choices=("buffered", "direct", "sync"), default="direct")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"))
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    directory, seconds, chunk_mb = options.directory, options.seconds, options.chunk_mb
    all_of_it: list[float] = []
    none_of_it: list[float] = []
    for number in range(options.pairs):
        for everything in (True, False) if number % 2 else (False, True):
            if everything:
                rate, _ = with_all(directory, seconds=seconds, chunk_mb=chunk_mb, io=options.io, every_s=SCRAPE_S)
                all_of_it.append(rate)
            else:
                none_of_it.append(with_none(directory, seconds=seconds, chunk_mb=chunk_mb, io=options.io))
            os.sync()  # the next run does not pay for this one's files and discards
            time.sleep(SETTLE_S)
    quotients = [ours / plain for ours, plain in zip(all_of_it, none_of_it, strict=True)]
    # A scrape itself takes some milliseconds, and nothing is written in the first second and a half.
    long = math.ceil(options.scrapes * FAST_SCRAPE_S * 1.2 + START_S)
    _, latencies = with_all(directory, seconds=long, chunk_mb=chunk_mb, io=options.io, every_s=FAST_SCRAPE_S)
    latencies = latencies[math.ceil((START_S + 0.5) / FAST_SCRAPE_S) :]
    cost, worst, p99 = 1 - statistics.median(quotients), worst_cost(quotients), rank(latencies, 0.99)
    verdict = "PASS" if worst < COST_TARGET else "miss" if cost >= COST_TARGET else "not decided, more --pairs"
    report(
        "extras",
        {
            "MB/s, all": all_of_it,
            "MB/s, none": none_of_it,
            "all / none": quotients,
            "/metrics, ms": [1000 * latency for latency in latencies],
        },
        notes={
            "chunk_mb": chunk_mb,
            "io": options.io,
            "seconds of a run": seconds,
            "load average": os.getloadavg(),
            "change, median": f"{-100 * cost:+.2f} %",
            "95 % interval of the median": interval(quotients),
            "cost": f"{verdict}, wanted < {100 * COST_TARGET:g} %, the whole interval",
            "/metrics p50, p99, max": f"{1000 * rank(latencies, 0.5):.2f}, {1000 * p99:.2f}, {1000 * max(latencies):.2f} ms",
            "/metrics p99": f"{'PASS' if p99 < LATENCY_TARGET_S else 'miss'}, wanted < {1000 * LATENCY_TARGET_S:g} ms",
        },
    )


if __name__ == "__main__":
    main()
