"""What a collector that is cut off costs the writer: its write rate while the collector answers and while it does not.

    python -m bench.collector_cut [--runs 3] [--pairs 12] [--chunk-mb 5] [--directory /var/tmp] [--cut stopped|killed]

Agent and collector run on loopback; the journal lies on the file system under test, as on a host with one disk.

stopped: within one run the collector is SIGSTOPped and SIGCONTinued in turns of four seconds, of which the first is not
    counted (what waited is delivered in it). Each stopped turn is compared with the mean of the two beside it, so that a
    disk or neighbours that drift do not count; the figure is the median of these quotients with its 95 % interval.
killed: whole runs, the collector alive and killed a second after the start by turns; each pair of runs is a quotient.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import json
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from bench import serving
from bench.table import report

ROOT = Path(__file__).resolve().parents[1]
TURN_S = 4.0
SETTLE_S = 1.0
START_S = 1.5  # the collector fixes the start this far ahead


@contextlib.contextmanager
def running(
    directory: Path, *, seconds: int, chunk_mb: int, drain_s: int, more: Sequence[str] = ()
) -> Iterator[tuple[Path, subprocess.Popen[bytes], subprocess.Popen[str]]]:
    """A collector and an agent that has just said that it is writing; their directory, and both processes."""
    with tempfile.TemporaryDirectory(prefix="fury-cut-", dir=directory) as name:
        home = Path(name)
        for part in ("data", "state"):
            (home / part).mkdir()
        agent = {
            "name": "cut",
            "chunk_mb": chunk_mb,
            "seconds": seconds,
            "directory": str(home / "data"),
        }
        with serving.collector(home, serving.plan("bench-cut", [agent]), "--stay") as (collector, url):
            argv = [sys.executable, "-m", "fury_agent", "cut", "--chunk-mb", str(chunk_mb), "--seconds", str(seconds)]
            argv += [
                "--directory",
                str(home / "data"),
                "--state-directory",
                str(home / "state"),
                "--run-id",
                "bench-cut",
            ]
            argv += [
                "--plain-http",
                "--collector-url",
                url,
                "--drain-seconds",
                str(drain_s),
            ]
            writer = subprocess.Popen([*argv, *more, "--json"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
            assert writer.stdout is not None
            for line in writer.stdout:
                if "is writing" in line:
                    break
            yield home, collector, writer


def finish(writer: subprocess.Popen[str], verdict: str) -> dict[str, Any]:
    """The agent's result, which has to be of this verdict."""
    out, _ = writer.communicate()
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    if result["verdict"] != verdict:
        sys.exit(f"the agent ended {result['verdict']}: {result['reason']}")
    return result


def turns(directory: Path, *, pairs: int, chunk_mb: int) -> list[float]:
    """MB/s of each turn of one run, the first and every other with the collector answering, the rest stopped."""
    count = 2 * pairs + 1
    edges: list[float] = []
    seconds = int(count * TURN_S + START_S + 4)
    with running(directory, seconds=seconds, chunk_mb=chunk_mb, drain_s=60) as (home, collector, writer):
        time.sleep(START_S + 1)
        for number in range(count):
            collector.send_signal(signal.SIGSTOP if number % 2 else signal.SIGCONT)
            edges.append(time.monotonic())
            time.sleep(TURN_S)
        collector.send_signal(signal.SIGCONT)
        finish(writer, "PASS")
        collector.send_signal(signal.SIGTERM)
        collector.wait(30)
        with contextlib.closing(sqlite3.connect(home / "fury.db")) as database:
            rows = database.execute("SELECT t_mono_ns, bytes FROM rollovers ORDER BY t_mono_ns").fetchall()
    times: list[float] = [row[0] / 1e9 for row in rows]
    written = [0.0]
    for _, size in rows:
        written.append(written[-1] + size)

    def bytes_at(instant_s: float) -> float:
        """Bytes written up to an instant, as if each chunk had been written evenly."""
        after = bisect.bisect(times, instant_s)
        began, ended = times[after - 1], times[after]
        return written[after] + (instant_s - began) / (ended - began) * (written[after + 1] - written[after])

    spans = [(edge + SETTLE_S, edge + TURN_S) for edge in edges]
    return [(bytes_at(end) - bytes_at(begin)) / (end - begin) / 1e6 for begin, end in spans]


def whole_run(directory: Path, *, seconds: int, chunk_mb: int, kill: bool) -> float:
    """MB/s of one run, its collector killed a second after the start or not at all."""
    with running(directory, seconds=seconds, chunk_mb=chunk_mb, drain_s=2) as (_, collector, writer):
        if kill:
            time.sleep(START_S + 1)
            collector.kill()
        return float(finish(writer, "INCOMPLETE" if kill else "PASS")["throughput_bytes_per_second"]) / 1e6


def interval(values: Sequence[float]) -> str:
    """The median's 95 % interval, from the order of the values alone (binomial, normal approximation)."""
    ordered, half = sorted(values), 0.98 * len(values) ** 0.5
    low, high = int(len(ordered) / 2 - half), int(len(ordered) / 2 + half)
    return f"{100 * (ordered[max(0, low)] - 1):+.2f} % to {100 * (ordered[min(len(ordered) - 1, high)] - 1):+.2f} %"


def main() -> None:
    """Measure and print what a cut costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--pairs", type=int, default=12, help="stopped turns in a run; seconds of a whole one: 8 times it"
    )
    parser.add_argument("--chunk-mb", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--cut", choices=("stopped", "killed"), default="stopped")
    options = parser.parse_args()
    alive: list[float] = []
    cut: list[float] = []
    quotients: list[float] = []
    for number in range(options.runs):
        if options.cut == "stopped":
            rates = turns(options.directory, pairs=options.pairs, chunk_mb=options.chunk_mb)
            alive += rates[::2]
            cut += rates[1::2]
            quotients += [rates[n] * 2 / (rates[n - 1] + rates[n + 1]) for n in range(1, len(rates), 2)]
        else:
            pair = {
                kill: whole_run(options.directory, seconds=8 * options.pairs, chunk_mb=options.chunk_mb, kill=kill)
                for kill in ((False, True) if number % 2 else (True, False))
            }
            alive.append(pair[False])
            cut.append(pair[True])
            quotients.append(pair[True] / pair[False])
        os.sync()  # the next run does not pay for this one's journal and database
    rows = {"MB/s, collector answers": alive, f"MB/s, {options.cut}": cut, f"{options.cut} / answers": quotients}
    kind = next((p.fstype for p in psutil.disk_partitions(all=True) if p.mountpoint == str(options.directory)), "/")
    report(
        f"collector_cut_{options.cut}",
        rows,
        notes={
            "chunk_mb": options.chunk_mb,
            "directory": f"{options.directory} ({kind})",
            "load average": os.getloadavg(),
            "change by the cut, median": f"{100 * (statistics.median(quotients) - 1):+.2f} %",
            "95 % interval of the median": interval(quotients),
        },
    )


if __name__ == "__main__":
    main()
