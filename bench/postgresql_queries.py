"""Whether the queries of one run stay fast on PostgreSQL as other runs pile up beside it: their time and their plans.

    python -m bench.postgresql_queries [--runs 10] [--rollovers 10000000] [--agents 100] [--plans]

Starts a PostgreSQL server of its own in a temporary directory with its default settings, stores the runs one after the other as
the network brings them (agents in turns, a sample for every ten rollovers), and measures what a report of one run in the middle
asks the database for: first with that run alone, then with all of them. Every plan in which a large table is read whole is
printed, with --plans every other one too. Ends with 1 if a query of one run reads rows of others.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy as sa

from bench.rollover_bytes import CHUNK, plan
from bench.table import report
from fury_collector.db import Database
from tests.postgresql import serving

LARGE = ("rollovers", "samples")
HISTOGRAM = json.dumps(
    {"gamma": 1.01 / 0.99, "zero": 0, "buckets": {"-345": 40}, "count": 40, "sum": 0.05, "min": 1e-3, "max": 2e-3}
)
FILL = {
    "rollovers": """
        INSERT INTO rollovers (epoch_id, seq, t_mono_ns, t_wall, chunk, bytes, seconds, fsync_seconds,
                               write_p50_s, write_p99_s, write_max_s)
        SELECT e.id, n, n * 1000000000, 1.79e9 + n, n, {chunk}, random(), random(), random(), random(), random()
        FROM generate_series(1::bigint, {each}) AS n CROSS JOIN ({epochs}) AS e ORDER BY n, e.id""",
    "samples": """
        INSERT INTO samples (epoch_id, seq, t_mono_ns, t_wall, interval_s, written_bytes, agent_cpu_ratio, agent_rss_bytes,
                             disk_free_bytes, write_histogram, fsync_histogram)
        SELECT e.id, {each} + n, n * 10000000000, 1.79e9 + n, 10, 0, random(), 30000000, 1, '{histogram}', '{histogram}'
        FROM generate_series(1::bigint, {each} / 10) AS n CROSS JOIN ({epochs}) AS e ORDER BY n, e.id""",
}


def fill(where: sa.URL, number: int, *, agents: int, each: int) -> str:
    """Add one run; its id."""
    run_id = f"run{number:03}"
    database = Database(where)
    run_ref = database.add_run(plan(agents, run_id=run_id))
    database.close()
    mine = f"SELECT id FROM agents WHERE run_ref = {run_ref}"
    engine = sa.create_engine(where, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO epochs (agent_ref, epoch, stored, top_seq, last_t_mono_ns) "
            f"SELECT id, '0123456789abcdef', {each + each // 10}, {each + each // 10}, 1 FROM ({mine}) AS a"
        )
        epochs = f"SELECT id FROM epochs WHERE agent_ref IN ({mine})"
        for statement in FILL.values():
            connection.exec_driver_sql(statement.format(chunk=CHUNK, each=each, epochs=epochs, histogram=HISTOGRAM))
    return run_id


def asked(database: Database, run_id: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """What a report, an export and a collector that takes the run up ask for."""
    number = database.read_run(run_id).id
    yield "the run with its sums", lambda: database.read_run(run_id)
    yield "its rollovers", lambda: sum(1 for _ in database.rollovers(number))
    yield "its samples", lambda: sum(1 for _ in database.samples(number))
    yield "its curves", lambda: [sum(1 for _ in rows) for _, _, rows in database.rollover_times(number)]
    yield "its errors", lambda: database.errors(number, most=200)


def measure(where: sa.URL, run_id: str) -> tuple[dict[str, float], list[tuple[str, Any]]]:
    """Seconds of each question, and every statement with its parameters."""
    statements: list[tuple[str, Any]] = []

    def seen(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if not any(statement == known for known, _ in statements):
            statements.append((statement, parameters))

    database = Database(where, read_only=True)
    took = {}
    sa.event.listen(sa.Engine, "before_cursor_execute", seen)
    try:
        for name, ask in asked(database, run_id):
            ask()  # once for the server's cache
            began = time.perf_counter()
            ask()
            took[name] = time.perf_counter() - began
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", seen)
        database.close()
    return took, [(text, values) for text, values in statements if any(name in text for name in LARGE)]


def explained(where: sa.URL, statements: list[tuple[str, Any]]) -> Iterator[tuple[str, str, bool]]:
    """Each statement with its plan, and whether it reads a large table whole."""
    engine = sa.create_engine(where, poolclass=sa.NullPool)
    with engine.connect() as connection:
        for text, values in statements:
            lines = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS, COSTS OFF) {text}", values).scalars().all()
            whole = any("Seq Scan on " + name in line for line in lines for name in LARGE)
            yield " ".join(text.split()), "\n".join(lines), whole


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=10, help="how many runs (default 10)")
    parser.add_argument("--rollovers", type=int, default=10_000_000, help="of all of them (default 10000000)")
    parser.add_argument("--agents", type=int, default=100, help="of each run (default 100)")
    parser.add_argument("--plans", action="store_true", help="print every plan")
    options = parser.parse_args()
    each = options.rollovers // options.runs // options.agents
    rows: dict[str, list[float]] = {}
    wrong = 0
    with serving() as server:
        where = server.database()
        engine = sa.create_engine(where, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
        began = time.perf_counter()
        for number in range(options.runs):
            run_id = fill(where, number, agents=options.agents, each=each)
            if number == options.runs // 2:
                wanted = run_id
            if number not in (0, options.runs - 1):
                continue
            with engine.connect() as connection:
                connection.exec_driver_sql("VACUUM (ANALYZE)")
            filled = time.perf_counter() - began
            alone = number == 0
            took, statements = measure(where, run_id if alone else wanted)
            said = f"of {each * options.agents * (number + 1):,} rollovers"
            rows |= {f"{name}, {said}": [seconds] for name, seconds in took.items()}
            if alone:
                continue
            for text, found, whole in explained(where, statements):
                wrong += whole
                if whole or options.plans:
                    print(f"{text}\n{found}\n")
            with engine.connect() as connection:
                size = connection.exec_driver_sql("SELECT pg_total_relation_size('rollovers')").scalar_one()
                began = time.perf_counter()
                Database(where, read_only=True).list_runs()
                rows["the list of all runs"] = [time.perf_counter() - began]
                version = connection.exec_driver_sql("SHOW server_version").scalar()
    report(
        "postgresql_queries",
        rows,
        notes={
            "seconds": f"of rollovers {each * options.agents:,} in the run that is asked for",
            "PostgreSQL": version,
            "bytes per rollover, index included": round(size / (each * options.agents * options.runs), 1),
            "seconds to fill": round(filled),
            "plans that read a large table whole": wrong,
        },
    )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
