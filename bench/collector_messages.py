"""The collector's memory and descriptors stay flat: what it holds at message 1,000 and at message 1,000,000.

    python -m bench.collector_messages [--messages 1000000] [--events-per-push 20] [--new-connection-every 10]

Starts a real collector on loopback over a database in a temporary directory, sends that many messages (events) from
three agents' point of view, most pushes over one kept connection per agent, every tenth over a new one, and prints a
table; the same figures as JSON lie beside it (--json FILE). Ends with 1 if an event is missing or the figures grow.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import urllib.parse
from pathlib import Path
from typing import Any, Optional

from bench import serving

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("alecto", "megaera", "tisiphone")
EPOCH = "00000000000000ff"
GAMMA = 1.01 / 0.99
HISTOGRAM = {
    "gamma": GAMMA,
    "zero": 0,
    "buckets": {"-345": 40, "-310": 2},
    "count": 42,
    "sum": 0.05,
    "min": 1e-3,
    "max": 2e-3,
}
# What growth may be called flat: caches and the allocator settle in the first 100,000 messages.
RSS_SLACK_KIB = 16 * 1024
DESCRIPTOR_SLACK = 8


def event(seq: int) -> dict[str, Any]:
    """A message as an agent sends it: mostly rollovers, a heartbeat in 20, a sample in 50."""
    common = {"seq": seq, "t_mono_ns": 1_000_000 * seq + 1, "t_wall": 1.7e9 + seq / 1000}
    if seq % 50 == 49:
        return {
            **common,
            "kind": "sample",
            "interval_s": 10.0,
            "written_bytes": seq * 20_000_768,
            "read_bytes": 0,
            "agent_cpu_ratio": 0.11,
            "agent_rss_bytes": 31_000_000,
            "host_cpu_ratio": 0.4,
            "host_memory_used_bytes": 10**9,
            "host_memory_total_bytes": 2 * 10**9,
            "disk_free_bytes": 10**11,
            "write_histogram": HISTOGRAM,
            "fsync_histogram": HISTOGRAM,
            "read_histogram": HISTOGRAM,
        }
    if seq % 20 == 19:
        return {
            **common,
            "kind": "heartbeat",
            "phase": "writing",
            "written_bytes": seq * 20_000_768,
            "rollovers": seq,
            "pending_events": 3,
        }
    return {
        **common,
        "kind": "rollover",
        "chunk": seq,
        "bytes": 20_000_768,
        "ramp_bytes": 0,
        "seconds": 0.0412 + seq % 7 * 1e-4,
        "fsync_seconds": 0.00213,
        "read_seconds": None,
        "write_p50_s": 0.001013,
        "write_p99_s": 0.0019,
        "write_max_s": 0.00311,
    }


class Sender:
    """One agent's way to the collector."""

    def __init__(self, port: int, run_id: str, name: str) -> None:
        self.port, self.name = port, name
        self.path = f"/api/v1/runs/{run_id}/agents/{name}/events"
        self.seq = 0
        self.kept: Optional[http.client.HTTPConnection] = None

    def push(self, number: int, *, new_connection: bool) -> None:
        """Send the next `number` events and insist on their acknowledgement."""
        events = [event(self.seq + index) for index in range(number)]
        body = json.dumps({"v": 1, "epoch": EPOCH, "events": events}).encode()
        if new_connection:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        else:
            self.kept = self.kept or http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            connection = self.kept
        connection.request("POST", self.path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read())
        if new_connection:
            connection.close()
        if response.status != 200 or answer["stored"] != number:
            raise SystemExit(f"the collector answered {response.status} {answer}")
        self.seq += number


def held(pid: int) -> tuple[int, int]:
    """Resident memory in KiB and open descriptors of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    rss = int(status.split("VmRSS:")[1].split()[0])
    return rss, len(os.listdir(f"/proc/{pid}/fd"))


def measure(messages: int, per_push: int, new_every: int, directory: Path) -> dict[str, Any]:
    """Send the messages to a collector of our own and return what was seen."""
    run_id = "bench-messages"
    document = serving.plan(run_id, [{"name": name} for name in NAMES])
    with serving.collector(directory, document, "--barrier-seconds", "86400") as (collector, url):
        port = urllib.parse.urlsplit(url).port or 0
        senders = [Sender(port, run_id, name) for name in NAMES]
        points: list[dict[str, Any]] = []
        marks = [mark for mark in (1_000, *range(messages // 10, messages + 1, messages // 10)) if mark <= messages]
        sent = pushes = 0
        began = time.perf_counter()
        while sent < messages:
            mark = marks[0]
            number = min(per_push, mark - sent)
            senders[pushes % len(senders)].push(number, new_connection=pushes % new_every == new_every - 1)
            sent += number
            pushes += 1
            if sent >= mark:
                marks.pop(0)
                rss, descriptors = held(collector.pid)
                seconds = time.perf_counter() - began
                points.append(
                    {"messages": sent, "seconds": round(seconds, 1), "rss_kib": rss, "descriptors": descriptors}
                )
                print(f"{sent:>9,} messages  {seconds:8.1f} s  {rss:>8,} KiB  {descriptors:>4} descriptors", flush=True)
        seconds = time.perf_counter() - began
        collector.terminate()
        code = collector.wait(60)
        subprocess.run(
            [
                sys.executable,
                "-m",
                "fury_collector",
                "export",
                "latest",
                "--output",
                str(directory / "out"),
                "--database",
                str(directory / "fury.db"),
            ],
            cwd=ROOT,
            check=True,
            capture_output=True,
        )
        summary = json.loads((directory / "out" / "summary.json").read_text())
        stored = sum(agent["events_stored"] for agent in summary["agents"])
        return {
            "messages": sent,
            "pushes": pushes,
            "events_per_push": per_push,
            "new_connection_every": new_every,
            "seconds": round(seconds, 1),
            "messages_per_second": round(sent / seconds),
            "pushes_per_second": round(pushes / seconds),
            "stored": stored,
            "exit_code": code,
            "database_bytes": (directory / "fury.db").stat().st_size,
            "points": points,
            "machine": f"Linux {platform.release()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
        }


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--messages", type=int, default=1_000_000, help="how many events to send (default 1000000)")
    parser.add_argument("--events-per-push", type=int, default=20, help="events in one push (default 20)")
    parser.add_argument(
        "--new-connection-every", type=int, default=10, help="each how manieth push takes a new connection"
    )
    parser.add_argument("--json", type=Path, help="where to write the figures as JSON too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fury-bench-") as directory:
        figures = measure(options.messages, options.events_per_push, options.new_connection_every, Path(directory))
    first, last = figures["points"][0], figures["points"][-1]
    print()
    print(f"{'':<14}{'message ' + format(first['messages'], ','):>18}{'message ' + format(last['messages'], ','):>20}")
    print(f"{'RSS':<14}{first['rss_kib']:>14,} KiB{last['rss_kib']:>16,} KiB")
    print(f"{'descriptors':<14}{first['descriptors']:>18}{last['descriptors']:>20}")
    print(
        f"{figures['messages_per_second']:,} messages/s in {figures['pushes_per_second']:,} pushes/s, "
        f"one at a time ({figures['machine']})"
    )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    grown = last["rss_kib"] - first["rss_kib"] > RSS_SLACK_KIB
    leaked = last["descriptors"] - first["descriptors"] > DESCRIPTOR_SLACK
    missing = figures["stored"] != figures["messages"]
    for wrong, what in ((grown, "memory grew"), (leaked, "descriptors grew"), (missing, "events are missing")):
        if wrong:
            print(f"NOT FLAT: {what}")
    return int(grown or leaked or missing)


if __name__ == "__main__":
    sys.exit(main())
