"""Fixtures: a real database, the application under a clock the test holds, a real process, an agent's words."""

from __future__ import annotations

import http.client
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from fury_collector import Config, create_app, wire
from fury_collector.db import Database
from fury_collector.run import Run
from fury_collector.stores import Where
from tests import browser, postgresql
from tests.secured import Secured

ROOT = Path(__file__).resolve().parents[2]
RUN = "20261124T030405Z-test"
NAMES = ("alecto", "megaera", "tisiphone")
EPOCH = "0123456789abcdef"
GAMMA = 1.01 / 0.99
CHUNK = 20_000_768


def plan(names: tuple[str, ...] = NAMES, *, run_id: str = RUN, seconds: int = 60) -> dict[str, Any]:
    """A plan.json of agents that share one host."""
    return {
        "run_id": run_id,
        "created_at": "2026-11-24T03:04:05Z",
        "parameters": {"chunk_mb": 20, "minutes": 1},
        "agents": [
            {"name": name, "host": "host1", "chunk_mb": 20, "seconds": seconds, "directory": "/var/tmp"}
            for name in names
        ],
    }


def histogram(*values: float) -> dict[str, Any]:
    """The wire form of a histogram of the values (seconds)."""
    import math

    buckets: dict[str, int] = {}
    for value in values:
        if value > 0:
            index = str(math.ceil(math.log(value) / math.log(GAMMA)))
            buckets[index] = buckets.get(index, 0) + 1
    return {
        "gamma": GAMMA,
        "zero": sum(value == 0 for value in values),
        "buckets": buckets,
        "count": len(values),
        "sum": float(sum(values)),
        "min": min(values) if values else None,
        "max": max(values) if values else None,
    }


def ready(epoch: str = EPOCH, **changes: Any) -> dict[str, Any]:
    """The body of a ready question."""
    return {
        "v": 1,
        "epoch": epoch,
        "metrics_address": "127.0.0.1",
        "metrics_port": 41231,
        "chunk_bytes": CHUNK,
        "seconds": 60,
        "calibrated_bytes_per_second": 812345678.0,
        "host": "host1",
        "agent_version": "0.1.0",
        **changes,
    }


def event(seq: int, kind: str, **changes: Any) -> dict[str, Any]:
    """A well-formed event of any kind, one second of the agent's clock after the last."""
    payloads: dict[str, dict[str, Any]] = {
        "start": {
            "start_collector_mono_s": 8123.5,
            "rtt_s": 0.0004,
            "chunk_bytes": CHUNK,
            "block_bytes": 1048576,
            "planned_seconds": 60,
            "host": "host1",
            "facts": {"kernel": "6.18", "cpus": 2},
        },
        "rollover": {
            "chunk": seq,
            "bytes": CHUNK,
            "ramp_bytes": 0,
            "seconds": 0.25,
            "fsync_seconds": 0.01,
            "read_seconds": None,
            "write_p50_s": 0.001,
            "write_p99_s": 0.002,
            "write_max_s": 0.003,
        },
        "sample": {
            "interval_s": 10.0,
            "written_bytes": seq * CHUNK,
            "read_bytes": 0,
            "agent_cpu_ratio": 0.1,
            "agent_rss_bytes": 30_000_000,
            "host_cpu_ratio": 0.5,
            "host_memory_used_bytes": 1_000_000_000,
            "host_memory_total_bytes": 2_000_000_000,
            "disk_free_bytes": 50_000_000_000,
            "write_histogram": histogram(0.001, 0.002),
            "fsync_histogram": histogram(0.01),
            "read_histogram": histogram(),
        },
        "heartbeat": {"phase": "writing", "written_bytes": seq * CHUNK, "rollovers": seq, "pending_events": 0},
        "error": {"message": "write failed: No space left on device", "operation": "write", "path": "/x", "errno": 28},
        "final": {
            "verdict": "PASS",
            "reason": "",
            "written_bytes": 0,
            "ramp_bytes": 0,
            "read_bytes": 0,
            "tail_bytes": 0,
            "rollovers": 0,
            "seconds": 60.0,
            "samples_dropped": 0,
            "heartbeats_coalesced": 0,
            "errors": 0,
            "write_histogram": histogram(0.001, 0.002, 0.003),
            "fsync_histogram": histogram(0.01),
            "read_histogram": histogram(),
            "device_written_bytes": None,
            "honesty": {"io_used": "buffered", "steady": True},
            "notes": [],
        },
    }
    return {
        "seq": seq,
        "kind": kind,
        "t_mono_ns": 1_000_000_000 * (seq + 1),
        "t_wall": 1.0 + seq,
        **payloads[kind],
        **changes,
    }


def life(rollovers: int = 3, **final: Any) -> list[dict[str, Any]]:
    """All events of an agent that wrote `rollovers` chunks and ended well."""
    words = [event(0, "start")]
    words += [event(1 + index, "rollover", chunk=index) for index in range(rollovers)]
    words.append(event(1 + rollovers, "sample"))
    words.append(event(2 + rollovers, "heartbeat", phase="draining"))
    words.append(event(3 + rollovers, "final", **{"written_bytes": rollovers * CHUNK, "rollovers": rollovers, **final}))
    return words


def journal(
    path: Path, events: list[dict[str, Any]], *, epoch: str = EPOCH, refused: Optional[dict[int, str]] = None
) -> Path:
    """A journal as an agent leaves it; the events of the numbers in `refused` with a collector's sentence."""
    with sqlite3.connect(path) as connection:
        connection.executescript(
            "PRAGMA journal_mode = WAL; PRAGMA user_version = 1; "
            "CREATE TABLE IF NOT EXISTS events(epoch TEXT, seq INTEGER, kind TEXT, body BLOB, refused TEXT, "
            "PRIMARY KEY (epoch, seq)) WITHOUT ROWID;"
        )
        connection.executemany(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?)",
            [(epoch, e["seq"], e["kind"], json.dumps(e).encode(), (refused or {}).get(e["seq"])) for e in events],
        )
    connection.close()
    return path


@dataclass
class Clock:
    """A clock the test moves."""

    now: float = 8000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Collector:
    """The application over a real database, its clock, and what it printed."""

    app: Flask
    client: FlaskClient
    database: Database
    clock: Clock
    lines: list[str] = field(default_factory=list)

    @property
    def run(self) -> Run:
        run: Run = self.app.extensions["fury_run"]
        return run

    def pass_time(self, seconds: float, *, step: float = 0.5) -> None:
        """Move the clock on in steps as the server does."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(end, self.clock.now + step)
            self.run.tick()

    def post(self, path: str, body: Any) -> Any:
        """Post JSON to a path under the run and return the response."""
        return self.client.post(f"/api/v1/runs/{RUN}/{path}", json=body)

    def ready(self, name: str, epoch: str = EPOCH, **changes: Any) -> Any:
        return self.post(f"agents/{name}/ready", ready(epoch, **changes))

    def push(self, name: str, *events: dict[str, Any], epoch: str = EPOCH) -> Any:
        return self.post(f"agents/{name}/events", {"v": 1, "epoch": epoch, "events": list(events)})

    def state(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.client.get(f"/api/v1/runs/{RUN}").get_json()
        return answer

    def arm_and_start(self, names: tuple[str, ...] = NAMES) -> None:
        """Make all agents ready and go past the start instant."""
        for name in names:
            assert self.ready(name).status_code == 200
        self.pass_time(1.6)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[postgresql.Server]:
    """A PostgreSQL server; a test that stops it starts it again."""
    why = postgresql.missing()
    if why is not None:
        if os.environ.get("CI"):
            pytest.fail(f"CI {why}")
        pytest.skip(why)
    with postgresql.serving() as server:
        yield server


# For tests that hold over both stores, in whatever fixture of theirs the database is.
over_both_stores = pytest.mark.parametrize("where", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Where:
    """The database of a test, not made yet: tmp_path/fury.db, or with `over_both_stores` an empty one of PostgreSQL too."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return tmp_path / "fury.db"
    server: postgresql.Server = request.getfixturevalue("postgresql_server")
    return server.database()


def engine_of(where: Where) -> sa.Engine:
    """A way around the collector into a database."""
    return sa.create_engine(where if isinstance(where, sa.URL) else f"sqlite:///{where}", poolclass=sa.NullPool)


def database_options(where: Where) -> tuple[str, str]:
    """How a command is told of a database."""
    if isinstance(where, sa.URL):
        return "--database-url", where.render_as_string(hide_password=False)
    return "--database", str(where)


Open = Callable[..., Collector]


@pytest.fixture
def collector_at(where: Where) -> Iterator[Open]:
    """Opens a collector over the test's database; a second call is a restart over the same database."""
    opened: list[Database] = []

    def build(
        document: Optional[dict[str, Any]] = None, *, clock: Optional[Clock] = None, wall_ahead: float = 1e9
    ) -> Collector:
        for database in opened:
            database.close()
        database = Database(where, exclusive=True)
        database.start()
        opened.append(database)
        lines: list[str] = []
        held = clock or Clock()
        app = create_app(
            Config(
                wire.plan(document or plan()),
                database,
                clock=held,
                wall=lambda: held.now + wall_ahead,
                tell=lines.append,
            )
        )
        return Collector(app, app.test_client(), database, held, lines)

    yield build
    for database in opened:
        database.close()


@pytest.fixture
def collector(collector_at: Open) -> Collector:
    """A collector of three agents with a clock the test moves."""
    return collector_at()


class Process:
    """A real collector process on a loopback port of its own choice, without TLS unless ``secured`` has its credentials."""

    def __init__(
        self,
        directory: Path,
        document: dict[str, Any],
        *options: str,
        before: str = "",
        secured: Optional[Secured] = None,
        where: Optional[Where] = None,
    ) -> None:
        self.directory = directory
        self.secured = secured
        self.state_file = directory / "state.json"
        self.output = directory / "output.txt"
        plan_file = directory / "plan.json"
        plan_file.write_text(json.dumps(document))
        self.run_id = document["run_id"]
        self.state_file.unlink(missing_ok=True)
        with self.output.open("a") as out:
            self.popen = subprocess.Popen(
                [
                    *(
                        sys.executable,
                        "-c",
                        f"{before}\nfrom fury_collector.__main__ import main\nmain()",
                        "serve",
                        *(["--plain-http"] if secured is None else ["--credentials-directory", str(secured.collector)]),
                        "--plan",
                        str(plan_file),
                    ),
                    *database_options(where or directory / "fury.db"),
                    *("--port", "0", "--state-file", str(self.state_file)),
                    *options,
                ],
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
            )
        deadline = time.monotonic() + 20
        while not self.state_file.exists():
            assert self.popen.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline, "the collector did not get to listen"
            time.sleep(0.02)
        self.port: int = json.loads(self.state_file.read_text())["port"]
        self._connection: Optional[http.client.HTTPConnection] = None
        self.headers: Optional[http.client.HTTPMessage] = None

    @property
    def url(self) -> str:
        """Where it is found."""
        return f"{'http' if self.secured is None else 'https'}://127.0.0.1:{self.port}"

    def connect(self) -> http.client.HTTPConnection:
        """A new connection to it, which believes its certificate."""
        if self.secured is None:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=self.secured.context)

    def request(self, method: str, path: str, body: Any = None, *, shown: Optional[str] = None) -> tuple[int, Any]:
        """One request over the keep-alive connection, with ``shown`` as its Authorization: status and JSON answer."""
        if self._connection is None:
            self._connection = self.connect()
        try:
            self._connection.request(
                method,
                path,
                None if body is None else json.dumps(body),
                ({"Content-Type": "application/json"} if body is not None else {})
                | ({} if shown is None else {"Authorization": shown}),
            )
            response = self._connection.getresponse()
            self.headers = response.headers
            raw = response.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            self._connection = None
            raise
        return response.status, json.loads(raw) if raw[:1] in (b"{", b"[") else raw

    def ready(self, name: str, epoch: str = EPOCH) -> tuple[int, Any]:
        return self.request(
            "POST", f"/api/v1/runs/{self.run_id}/agents/{name}/ready", ready(epoch), shown=self._bearer(name)
        )

    def push(self, name: str, *events: dict[str, Any], epoch: str = EPOCH) -> tuple[int, Any]:
        body = {"v": 1, "epoch": epoch, "events": list(events)}
        return self.request("POST", f"/api/v1/runs/{self.run_id}/agents/{name}/events", body, shown=self._bearer(name))

    def _bearer(self, name: str) -> Optional[str]:
        return None if self.secured is None else self.secured.bearer(name)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.popen.kill()
        self.popen.wait(10)

    def end(self) -> int:
        """SIGTERM; the exit code."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(20)


@pytest.fixture
def serve(tmp_path: Path, where: Where) -> Iterator[Callable[..., Process]]:
    """Starts real collectors over the test's database and ends those that are left."""
    started: list[Process] = []

    def start(
        document: Optional[dict[str, Any]] = None, *options: str, before: str = "", secured: Optional[Secured] = None
    ) -> Process:
        process = Process(tmp_path, document or plan(), *options, before=before, secured=secured, where=where)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.popen.poll() is None:
            os.kill(process.popen.pid, signal.SIGKILL)
            process.popen.wait(10)


@pytest.fixture(scope="session")
def chromium() -> Iterator[browser.Chromium]:
    """A browser; every test has pages of its own in it."""
    if browser.find() is None:
        if os.environ.get("CI"):
            pytest.fail("CI needs chromium on PATH")
        pytest.skip("needs a Chromium")
    with browser.Chromium.start() as started:
        yield started
