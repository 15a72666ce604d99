"""What report.html costs for a large run: size of the file, seconds, peak memory of the process that makes it.

    python -m bench.report_size [--rollovers 10000000] [--agents 1000] [--hours 1] [--directory /var/tmp] [--keep FILE]

Makes a database of so many rollovers, with a sample of each agent every 10 s, and runs `python -m fury_collector report`. Most
rollovers take as long as the time allows for, 1 in 50 of them ten times as long; one agent writes at half the rate.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.table import report
from fury_collector import wire
from fury_collector.curves import GAMMA
from fury_collector.db import Database

RUN = "20261124-000000-size"
CHUNK = 20_000_768
SAMPLE_S = 10
WALL = 1_795_500_000.0


def fill(path: Path, *, rollovers: int, agents: int, seconds: int, sample_s: int = SAMPLE_S) -> None:
    """A finished run in a new database; the same one for the same arguments."""
    source = random.Random(9475)
    names = [f"agent{number:04}" for number in range(agents)]
    database = Database(path)
    run_ref = database.add_run(
        wire.plan(
            {
                "run_id": RUN,
                "created_at": "2026-11-24T00:00:00Z",
                "parameters": {"chunk_mb": 20, "minutes": max(1, seconds // 60), "jobs": 4, "io": "direct"},
                "agents": [
                    {
                        "name": name,
                        "host": f"host{name[5:]}.example",
                        "chunk_mb": 20,
                        "seconds": seconds,
                        "directory": "/srv",
                    }
                    for name in names
                ],
            }
        )
    )
    database.close()
    histograms = [_histogram(source) for _ in range(40)]
    empty = json.dumps({"gamma": GAMMA, "zero": 0, "buckets": {}, "count": 0, "sum": 0.0, "min": None, "max": None})
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute(
            "UPDATE runs SET state = 'finished', start_mono_s = 1000, start_wall = ?, end_wall = ?",
            (WALL, WALL + seconds),
        )
        ids = [row[0] for row in connection.execute("SELECT id FROM agents WHERE run_ref = ? ORDER BY id", (run_ref,))]
        for index, (agent, name) in enumerate(zip(ids, names)):
            mine = rollovers // agents + (index < rollovers % agents)
            if index == 7:
                mine //= 2
            boot_ns = source.randrange(10**12, 10**15)  # each host's clock has an origin of its own
            sampled = seconds // sample_s
            last = 1 + mine + sampled
            connection.execute(
                "INSERT INTO epochs VALUES (?, ?, ?, ?, ?, 0, NULL, ?, ?)",
                (agent, agent, f"{agent:016x}", last + 1, last, last, boot_ns + seconds * 10**9),
            )
            connection.executemany(
                "INSERT INTO rollovers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                _rollovers(source, agent, mine, seconds, boot_ns),
            )
            connection.executemany(
                "INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    (
                        *(
                            agent,
                            1 + mine + n,
                            boot_ns + (n + 1) * sample_s * 10**9,
                            WALL + (n + 1) * sample_s,
                            sample_s,
                        ),
                        *(
                            (n + 1) * mine // max(1, sampled) * CHUNK,
                            0.2,
                            40_000_000 + n,
                            source.random(),
                            10**9,
                            8 * 10**9,
                        ),
                        *(10**12, source.choice(histograms), source.choice(histograms), 0, empty),
                    )
                    for n in range(sampled)
                ),
            )
            start = {
                "start_collector_mono_s": 1000 + source.random() / 100,
                "rtt_s": 0.001,
                "chunk_bytes": CHUNK,
                "block_bytes": 1 << 20,
                "planned_seconds": seconds,
                "host": name,
                "facts": {"cpu_model": "EPYC", "cpus": 32, "kernel": f"6.{index % 9}", "file_system": "ext4"},
            }
            final = {
                "verdict": "PASS",
                "reason": "",
                "written_bytes": mine * CHUNK,
                "ramp_bytes": 0,
                "read_bytes": 0,
                "tail_bytes": 0,
                "rollovers": mine,
                "seconds": float(seconds),
                "samples_dropped": 0,
                "heartbeats_coalesced": 0,
                "errors": 0,
                "device_written_bytes": None,
                "read_histogram": json.loads(empty),
                **{name: json.loads(source.choice(histograms)) for name in ("write_histogram", "fsync_histogram")},
                "honesty": {
                    "io_used": "direct",
                    "io_confirmed_by": "statx",
                    "steady": index % 50 != 0,
                    "generator_ratio": 0.05,
                },
                "notes": [f"vda wrote {1 + index / 1000:.2f} times what this agent gave it"],
            }
            connection.executemany(
                "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (agent, 0, "start", boot_ns, WALL, json.dumps(start)),
                    (agent, last, "final", boot_ns + seconds * 10**9, WALL + seconds, json.dumps(final)),
                ],
            )


def _rollovers(source: random.Random, epoch: int, number: int, seconds: int, boot_ns: int) -> Iterator[tuple[Any, ...]]:
    each = seconds / max(1, number)
    for chunk in range(number):
        lasting = each * (10 if source.random() < 0.02 else 1) * (0.75 + source.random() / 2)
        at = (chunk + 1) * each
        yield (
            *(epoch, chunk + 1, boot_ns + int(at * 1e9), WALL + at, chunk, CHUNK, lasting, lasting / 5),
            *(0.001, 0.002, 0.01, 0, None),
        )


def _histogram(source: random.Random) -> str:
    values = [source.lognormvariate(-6.5, 1) for _ in range(600)]
    buckets: dict[int, int] = {}
    for value in values:
        bucket = math.ceil(math.log(value) / math.log(GAMMA))
        buckets[bucket] = buckets.get(bucket, 0) + 1
    wire_form = {"gamma": GAMMA, "zero": 0, "buckets": buckets, "count": len(values), "sum": sum(values)}
    return json.dumps({**wire_form, "min": min(values), "max": max(values)})


def main() -> None:
    """Make the database, then the report in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollovers", type=int, default=10_000_000)
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--keep", type=Path, help="where the page is to stay")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="fury-report-") as home:
        database, page = Path(home) / "fury.db", options.keep or Path(home) / "report.html"
        began = time.monotonic()
        fill(database, rollovers=options.rollovers, agents=options.agents, seconds=int(options.hours * 3600))
        filled_s = time.monotonic() - began
        began = time.monotonic()
        command = [
            sys.executable,
            "-m",
            "fury_collector",
            "report",
            RUN,
            "--database",
            str(database),
            "--html",
            str(page),
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        made_s = time.monotonic() - began
        rss_kb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        report(
            "report_size",
            {
                "seconds": [made_s],
                "peak RSS, MB": [rss_kb / 1000],
                "report.html, MB": [page.stat().st_size / 1e6],
                "database, MB": [database.stat().st_size / 1e6],
            },
            notes={
                "rollovers": options.rollovers,
                "agents": options.agents,
                "hours": options.hours,
                "seconds to make the database": round(filled_s, 1),
            },
        )


if __name__ == "__main__":
    main()
