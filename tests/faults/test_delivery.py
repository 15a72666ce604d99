"""What lies between an agent and its collector loses, doubles, delays, reorders and garbles; the clock and the limits are off.

A real agent, a real collector and a proxy of the test's own that knows what a push is. No lab, no root.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Optional

import pytest

from tests.faults.stress import REPO, Key, stored

RUN = "delivery"
AGENT = "alecto"
SECONDS = 4


class Collector:
    """A collector as a process, for one agent; it stays until it is closed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        plan = {
            "run_id": RUN,
            "created_at": "2026-11-24T03:04:05Z",
            "parameters": {},
            "agents": [
                {"name": AGENT, "host": "here", "chunk_mb": 1, "seconds": SECONDS, "directory": str(directory)},
            ],
        }
        (directory / "plan.json").write_text(json.dumps(plan))
        state = directory / "collector.json"
        argv = [
            sys.executable,
            "-m",
            "fury_collector",
            "serve",
            "--plain-http",
            "--plan",
            str(directory / "plan.json"),
            "--stay",
        ]
        argv += ["--database", str(directory / "fury.db"), "--port", "0", "--state-file", str(state)]
        with (directory / "collector.log").open("wb") as log:
            self.process = subprocess.Popen(argv, cwd=REPO, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while not state.exists():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)
        self.port = int(json.loads(state.read_text())["port"])

    @property
    def log(self) -> str:
        """What it has said."""
        return (self.directory / "collector.log").read_text()

    def metric(self, name: str) -> int:
        """A figure without labels of its /metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return int(float(next(line for line in lines if line.startswith(f"{name} ")).split()[1]))

    def close(self) -> None:
        """Ends it by SIGTERM."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(15)
        assert "Traceback" not in self.log, self.log


class Push:
    """One batch on its way: a scenario forwards it, as often as it likes, and answers it, or not."""

    def __init__(self, number: int, handler: BaseHTTPRequestHandler, body: bytes, upstream: int) -> None:
        self.number = number
        """Counts from 1 over all pushes of the agent."""
        self._path, self._body, self._upstream = handler.path, body, upstream
        self._handler = handler

    def forward(self) -> tuple[int, bytes]:
        """Status and body of the collector's answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self._upstream, timeout=20)
        try:
            connection.request("POST", self._path, self._body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def answer(self, status: int, body: bytes, *, pause_s: float = 0.0) -> None:
        """Answers; with a pause after each byte."""
        head = (
            f"HTTP/1.1 {status} As You Like It\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self.raw(head.encode() + body, pause_s=pause_s)

    def raw(self, data: bytes, *, pause_s: float = 0.0) -> None:
        """Sends bytes as they are."""
        for piece in [data] if not pause_s else [data[at : at + 1] for at in range(len(data))]:
            self._handler.wfile.write(piece)
            time.sleep(pause_s)

    def cut(self) -> None:
        """Closes the connection after what has been sent, if anything."""
        self._handler.close_connection = True


class Proxy(ThreadingHTTPServer):
    """Listens before a collector and does with each push of events what the scenario says; all else passes."""

    daemon_threads = True

    def __init__(self, upstream: int, scenario: Callable[[Push], None]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.scenario = upstream, scenario
        self.pushes = 0
        self.lock = threading.Lock()
        self.wrong: list[BaseException] = []
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def close(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join(5)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        is_push = self.path.endswith("/events")
        with self.server.lock:
            self.server.pushes += is_push
            number = self.server.pushes
        push = Push(number, self, body, self.server.upstream)
        try:
            if is_push:
                self.server.scenario(push)
            else:
                push.answer(*push.forward())
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the agent has given up this push, as some scenarios want it to
        except Exception as error:  # noqa: BLE001 - a scenario's own mistake is told at the end of the test
            self.server.wrong.append(error)
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


def read_log(path: Path) -> tuple[set[Key], set[Key]]:
    """What the agent issued and what it knows to be stored."""
    issued: list[Key] = []
    acknowledged: list[Key] = []
    for line in path.read_text().splitlines():
        epoch, seq, what = line.split()
        (acknowledged if what == "stored" else issued).append((epoch, int(seq)))
    assert len(issued) == len(set(issued))
    return set(issued), set(acknowledged)


def judge(issued: set[Key], acknowledged: set[Key], have: list[Key]) -> None:
    """Everything that was issued is stored, once, and known to be."""
    assert [key for key, times in Counter(have).items() if times > 1] == [], "stored twice"
    assert set(have) - issued == set(), "stored, and never issued"
    assert acknowledged - set(have) == set(), "acknowledged, and not stored"
    assert issued - set(have) == set(), "issued, and not stored"
    assert issued - acknowledged == set(), "stored, and the agent does not know"


class Outcome:
    """An agent's run from its first to its last word, judged."""

    def __init__(
        self,
        directory: Path,
        scenario: Callable[[Push], None],
        *,
        entry: Sequence[str] = ("-m", "fury_agent"),
        seconds: int = SECONDS,
        chunks: Optional[Path] = None,
        environment: Optional[dict[str, str]] = None,
        preexec: Optional[Callable[[], None]] = None,
        afterwards: Callable[[], None] = lambda: None,
    ) -> None:
        collector = Collector(directory)
        proxy = Proxy(collector.port, scenario)
        (directory / "home").mkdir()
        log = directory / "issued.log"
        argv = [sys.executable, *entry, AGENT, "--chunk-mb", "1", "--seconds", str(seconds), "--json"]
        argv += ["--run-id", RUN, "--collector-url", proxy.url, "--plain-http", "--directory", str(chunks or directory)]
        argv += ["--state-directory", str(directory / "home"), "--event-log", str(log), "--drain-seconds", "60"]
        argv += ["--free-floor-mb", "0", "--heartbeat-seconds", "1", "--sample-seconds", "1", "--allow-few-rollovers"]
        try:
            began = time.monotonic()
            agent = subprocess.Popen(
                argv,
                cwd=REPO,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, **(environment or {})},
                preexec_fn=preexec,
            )
            try:
                self.out, _ = agent.communicate(timeout=90)
            finally:
                if agent.poll() is None:
                    agent.kill()
                    agent.communicate()
            self.took_s = time.monotonic() - began
            afterwards()
            self.duplicates = collector.metric("fury_collector_events_duplicate_total")
            self.stored_total = collector.metric("fury_collector_events_stored_total")
            self.refused = collector.metric("fury_collector_batches_refused_total")
        finally:
            proxy.close()
            collector.close()
        assert proxy.wrong == []
        assert log.exists(), self.out
        self.issued, self.acknowledged = read_log(log)
        self.have = stored(directory).get(AGENT, [])
        judge(self.issued, self.acknowledged, self.have)
        assert agent.returncode == 0, self.out
        self.pushes = proxy.pushes
        self.result: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        assert self.result["verdict"] == "PASS"
        assert self.result["events_issued"] == self.result["events_stored"] == len(self.have) == self.stored_total
        assert self.result["rollovers"] > 0
        assert not (chunks or directory).joinpath(f"fury-{AGENT}").exists()
        assert self.refused == 0


def passing(push: Push) -> None:
    """Nothing is wrong."""
    push.answer(*push.forward())


def test_a_way_on_which_nothing_is_wrong_doubles_nothing(tmp_path: Path) -> None:
    """What the others are held against: no push is sent twice."""
    outcome = Outcome(tmp_path, passing)
    assert outcome.duplicates == 0


def test_lost_acknowledgements_cost_duplicates_and_nothing_else(tmp_path: Path) -> None:
    """The collector stores, the answer never comes: the batch is sent again, and its events are counted as duplicates."""
    lost: list[int] = []

    def scenario(push: Push) -> None:
        answer = push.forward()
        if push.number % 3:
            lost.append(len(json.loads(push._body)["events"]))
            push.cut()
        else:
            push.answer(*answer)

    outcome = Outcome(tmp_path, scenario)
    assert len(lost) >= 2
    # Each lost batch comes again; only a heartbeat is replaced by a newer one instead.
    assert 0 < outcome.duplicates <= sum(lost)


def test_an_acknowledgement_beyond_all_patience_is_a_lost_one(tmp_path: Path) -> None:
    """Answered after more than the agent's whole deadline: it has hung up, and sends again."""
    late = threading.Event()

    def scenario(push: Push) -> None:
        answer = push.forward()
        if push.number == 1:
            late.wait(70)
        push.answer(*answer)

    outcome = Outcome(tmp_path, scenario, afterwards=late.set)
    assert outcome.took_s > 10
    assert outcome.duplicates > 0


def test_duplicated_requests_are_stored_once(tmp_path: Path) -> None:
    """Each batch arrives twice, the second one at the same time as the first or right after it."""

    def scenario(push: Push) -> None:
        other = threading.Thread(target=push.forward)
        other.start()
        if push.number % 2:
            other.join()
        answer = push.forward()
        other.join()
        push.answer(*answer)

    outcome = Outcome(tmp_path, scenario)
    assert outcome.duplicates == len(outcome.have)


def test_late_and_reordered_batches_are_stored_once(tmp_path: Path) -> None:
    """Every other batch is held back, passed by the next one, and arrives after it; the last ones after the end of the run."""
    held: list[Push] = []
    seen: list[int] = []

    def scenario(push: Push) -> None:
        if push.number % 2:
            held.append(push)
            push.answer(503, b'{"error": "later"}')
            return
        answer = push.forward()
        seen.append(push.number)
        if len(held) > 2:  # two wait longer, so that what comes late is not what has just been
            old = held.pop(0)
            seen.append(old.number)
            assert old.forward()[0] == 200
        push.answer(*answer)

    def afterwards() -> None:
        for push in reversed(held):
            status, body = push.forward()
            assert (status, json.loads(body)["stored"]) == (200, 0)

    outcome = Outcome(tmp_path, scenario, afterwards=afterwards)
    assert seen != sorted(seen)
    assert outcome.duplicates > 0


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_collector_that_asks_for_patience_gets_it(tmp_path: Path, status: int) -> None:
    """Answers that say "not now" for 3 s: nothing is set aside, everything is sent again, nothing had been stored."""
    began: list[float] = []

    def scenario(push: Push) -> None:
        began.append(time.monotonic())
        if began[-1] - began[0] < 3:
            push.answer(status, b'{"error": "not now"}')
        else:
            push.answer(*push.forward())

    outcome = Outcome(tmp_path, scenario)
    assert outcome.duplicates == 0
    assert outcome.pushes > 3


def test_answers_that_dribble_are_read(tmp_path: Path) -> None:
    """A byte every few milliseconds is slow, and an answer."""

    def scenario(push: Push) -> None:
        push.answer(*push.forward(), pause_s=0.004)

    outcome = Outcome(tmp_path, scenario)
    assert outcome.duplicates == 0


def test_an_answer_that_dribbles_for_ever_is_given_up(tmp_path: Path) -> None:
    """Each byte comes in time and the answer never ends: the deadline is one for the whole request."""

    def scenario(push: Push) -> None:
        status, body = push.forward()
        if push.number == 1:
            push.answer(status, body + b" " * 1000, pause_s=0.1)
        else:
            push.answer(status, body)

    outcome = Outcome(tmp_path, scenario)
    assert 10 < outcome.took_s < 80
    assert outcome.duplicates > 0


def test_garbled_answers_are_no_acknowledgements(tmp_path: Path) -> None:
    """Random bytes, an answer to nothing, half an answer, half a body of random bytes: none is believed, stored or not."""
    chance = random.Random(3)

    def scenario(push: Push) -> None:
        kind = push.number % 5
        if kind == 1:
            push.raw(chance.randbytes(200))
            push.cut()
            return
        if kind == 2:
            push.answer(200, b'{"stored": 0, "duplicates": 0, "receipt": true, "command": null}')
            return
        status, body = push.forward()
        if kind == 3:
            push.raw(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body[: len(body) // 2])
            push.cut()
        elif kind == 4:
            push.answer(200, body[: len(body) // 2] + chance.randbytes(len(body) // 2))
        else:
            push.answer(status, body)

    outcome = Outcome(tmp_path, scenario)
    assert outcome.duplicates > 0


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, where chunks of 1 MB are quick enough for a thousand events a second."""
    if os.geteuid() != 0:
        pytest.skip("10,000 events within seconds need a file system in memory, and only root may mount one")
    where = tmp_path / "memory"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(where)], check=True)
    yield where
    subprocess.run(["umount", str(where)], check=True)


def test_ten_thousand_events_need_few_open_files(tmp_path: Path, memory: Path) -> None:
    """LimitNOFILE=64, and a connection that breaks at every other push: no descriptor stays behind."""

    def scenario(push: Push) -> None:
        answer = push.forward()
        if push.number % 2:
            push.cut()
        else:
            push.answer(*answer)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    outcome = Outcome(tmp_path, scenario, seconds=12, chunks=memory, preexec=limited)
    assert len(outcome.have) >= 10_000


@pytest.fixture
def faketime() -> str:
    """The library that fakes clocks; skips where it is not installed, and fails in CI."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not found and os.environ.get("CI"):
        pytest.fail("in CI libfaketime must be there: it is in tests/packages.txt")
    if not found:
        pytest.skip("libfaketime is not installed: apt install faketime")
    return str(found[0])


# libfaketime 0.9.10 answers clock_nanosleep, which time.sleep is from Python 3.11 on, with EINVAL: select, which it was before.
SLEEP_BY_SELECT = """
import runpy, select, time
time.sleep = lambda seconds: select.select([], [], [], seconds) and None
runpy.run_module("fury_agent", run_name="__main__", alter_sys=True)
"""


def test_jumps_of_the_clock_change_nothing(tmp_path: Path, faketime: str) -> None:
    """The agent's wall clock jumps a day ahead and two back while it writes: seconds stay what they were."""
    clock = tmp_path / "clock"
    clock.write_text("+0\n")
    environment = {
        "LD_PRELOAD": faketime,
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }

    def jump(offset: str) -> None:
        new = clock.with_suffix(".new")
        new.write_text(f"{offset}\n")
        new.replace(clock)

    offsets = iter(("+1d", "-1d", "+0"))
    last_s = time.monotonic()

    def scenario(push: Push) -> None:
        nonlocal last_s
        if time.monotonic() > last_s + 1.2:
            jump(next(offsets, "+0"))
            last_s = time.monotonic()
        passing(push)

    outcome = Outcome(tmp_path, scenario, entry=("-c", SLEEP_BY_SELECT), environment=environment)
    with sqlite3.connect(tmp_path / "fury.db") as database:
        ((earliest, latest),) = database.execute("select min(t_wall), max(t_wall) from rollovers").fetchall()
    assert latest - earliest > 1.9 * 86_400, "the clock did not jump"
    assert outcome.result["seconds"] == pytest.approx(SECONDS, abs=0.5)
    assert outcome.took_s < 20
    assert outcome.duplicates == 0
