"""How many events a second the writer makes durable, over SQLite and over PostgreSQL on the same disk.

    python -m bench.postgresql_writes [--rounds 5] [--seconds 3] [--agents 40]

Batches are made beforehand and queued as agents send them, each agent's next one when its last one is acknowledged; no HTTP is
in it. The PostgreSQL server is one of the benchmark's own with its default settings, on the same machine. In turns.
"""

from __future__ import annotations

import argparse
import itertools
import queue
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

from bench.rollover_bytes import RUN, batches, plan
from bench.table import report
from fury_collector.db import Database
from fury_collector.stores import Where
from fury_collector.wire import Batch
from tests.postgresql import serving

PER_PUSH = (1, 20, 50)


def rate(where: Where, *, agents: int, per_push: int, seconds: float) -> float:
    """Durable events a second in a new database."""
    database = Database(where, exclusive=True)
    database.add_run(plan(agents))
    database.start()
    ids = [agent.id for agent in database.read_run(RUN).agents]
    made: dict[int, deque[Batch]] = {agent: deque() for agent in range(agents)}
    for agent, batch in batches(int(seconds * 100_000), agents, per_push):
        made[agent].append(batch)
    ready: queue.SimpleQueue[int] = queue.SimpleQueue()
    for agent in range(agents):
        ready.put(agent)
    stored = 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        agent = ready.get()
        if not made[agent]:
            break
        done = database.store(ids[agent], made[agent].popleft())
        done.add_done_callback(lambda _done, which=agent: ready.put(which))  # type: ignore[misc]
        stored += per_push
    database.change(lambda connection: None).result(60)
    took = time.perf_counter() - began
    database.close()
    return stored / took


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often (default 5)")
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement (default 3)")
    parser.add_argument("--agents", type=int, default=40, help="how many send at a time (default 40)")
    options = parser.parse_args()
    rows: dict[str, list[float]] = {}
    with serving() as server, tempfile.TemporaryDirectory(prefix="fury-bench-") as directory:
        for number, per_push in itertools.product(range(options.rounds), PER_PUSH):
            places: dict[str, Where] = {
                "SQLite": Path(directory) / f"{number}-{per_push}.db",
                "PostgreSQL": server.database(),
            }
            for name, where in places.items():
                found = rate(where, agents=options.agents, per_push=per_push, seconds=options.seconds)
                rows.setdefault(f"{name}, {per_push} a push", []).append(found)
    report("postgresql_writes", dict(sorted(rows.items())), notes={"unit": "events/s", "agents": options.agents})
    return 0


if __name__ == "__main__":
    sys.exit(main())
