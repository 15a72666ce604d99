"""What a rollover costs on the disk: bytes of the database file for each, keys, pages and free room included.

    python -m bench.rollover_bytes [--rollovers 1000000] [--agents 40] [--events-per-push 20]

Stores so many rollovers with values as agents measure them through the collector's own path (wire.batch, Database.store),
the agents in turns as on a network, and compares the file with that of the same run without any rollover. The second line is
what SQLite's dbstat says of the table alone. Ends with 1 above 120 bytes.
"""

from __future__ import annotations

import argparse
import random
import sqlite3
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from bench.table import report
from fury_collector import wire
from fury_collector.db import Database
from fury_collector.rows import Stored

RUN = "20261124-000000-bytes"
CHUNK = 20_000_768
LIMIT = 120


def plan(agents: int, *, run_id: str = RUN) -> wire.Plan:
    """A run of so many agents."""
    one = {"host": "host", "chunk_mb": 20, "seconds": 3600, "directory": "/srv"}
    named = [{"name": f"agent{number:05}", **one} for number in range(agents)]
    return wire.plan(
        {"run_id": run_id, "created_at": "2026-11-24T00:00:00Z", "parameters": {"chunk_mb": 20}, "agents": named}
    )


def rollover(source: random.Random, seq: int, boot_ns: int) -> dict[str, Any]:
    """A rollover as an agent reports it, one a second."""
    seconds = source.gauss(0.25, 0.02)
    return {
        "seq": seq,
        "kind": "rollover",
        "t_mono_ns": boot_ns + seq * 10**9 + source.randrange(10**8),
        "t_wall": 1.7955e9 + seq + source.random(),
        "chunk": seq,
        "bytes": CHUNK,
        "ramp_bytes": 0,
        "seconds": seconds,
        "fsync_seconds": seconds * source.random() / 10,
        "read_seconds": seconds * source.random(),
        "write_p50_s": source.gauss(0.001, 1e-5),
        "write_p99_s": source.gauss(0.002, 1e-4),
        "write_max_s": source.gauss(0.01, 1e-3),
    }


def batches(rollovers: int, agents: int, per_push: int) -> Iterator[tuple[int, wire.Batch]]:
    """The agents' pushes in turns: number of the agent from 0, and what it sends."""
    source = random.Random(9475)
    boots = [source.randrange(10**12, 10**15) for _ in range(agents)]
    each = rollovers // agents
    for first in range(0, each, per_push):
        for agent, boot_ns in enumerate(boots):
            events = [rollover(source, seq, boot_ns) for seq in range(first, min(each, first + per_push))]
            yield agent, wire.batch({"v": 1, "epoch": f"{agent:016x}", "events": events})


def fill(path: Path, *, rollovers: int, agents: int, per_push: int) -> int:
    """Store them in a new database; how many they are."""
    database = Database(path, exclusive=True)
    database.add_run(plan(agents))
    database.start()
    ids = [agent.id for agent in database.read_run(RUN).agents]
    waiting: deque[Future[Stored]] = deque()
    stored = 0
    for agent, batch in batches(rollovers, agents, per_push):
        waiting.append(database.store(ids[agent], batch))
        while len(waiting) > agents:  # each waits for its answer before it sends again
            stored += len(waiting.popleft().result().fresh)
    stored += sum(len(one.result().fresh) for one in waiting)
    database.close()
    return stored


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rollovers", type=int, default=1_000_000, help="how many (default 1000000)")
    parser.add_argument("--agents", type=int, default=40, help="from how many agents (default 40)")
    parser.add_argument("--events-per-push", type=int, default=20, help="rollovers in one push (default 20)")
    options = parser.parse_args()
    shape = {"agents": options.agents, "per_push": options.events_per_push}
    with tempfile.TemporaryDirectory(prefix="fury-bench-") as directory:
        empty, full = Path(directory) / "empty.db", Path(directory) / "full.db"
        fill(empty, rollovers=0, **shape)
        stored = fill(full, rollovers=options.rollovers, **shape)
        cost = (full.stat().st_size - empty.stat().st_size) / stored
        with sqlite3.connect(full) as connection:
            used, wasted = connection.execute(
                "SELECT sum(pgsize), sum(unused) FROM dbstat WHERE name = 'rollovers'"
            ).fetchone()
        connection.close()
    report(
        "rollover_bytes",
        {"bytes of the file per rollover": [cost], "bytes of the table per rollover": [used / stored]},
        notes={
            "rollovers": stored,
            **shape,
            "free in its pages": f"{wasted / used:.0%}",
        },
    )
    if cost > LIMIT:
        print(f"ABOVE {LIMIT} bytes")
    return int(cost > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
