"""Runs on the lab's hosts for tests that break something in the middle, and the oracle that judges what came out.

Each agent writes the key of every event that it issues, and of every event that it knows to be stored, to a file outside the
delivery path (`event_log`). The oracle holds those files against the run's database and summary.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.hosts.lab import Fleet, Host

REPO = Path(__file__).parents[2]
PLAYBOOK = str(Path(sys.executable).with_name("ansible-playbook"))
EVENT_LOG = "/opt/issued/log"
"""Below a directory that agents may write to and their units don't hide, as they do /tmp and /var/tmp."""
PORT = 20000 + os.getpid() % 10000  # of this test process: another's collector on the same machine is not met
Key = tuple[str, int]


@dataclass
class Stress:
    """One run of run.yml over a fleet, started in the background."""

    fleet: Fleet
    directory: Path
    variables: dict[str, Any] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def results(self) -> Path:
        """The newest run's results."""
        return self.directory / "results" / "latest"

    @property
    def output(self) -> str:
        """What the terminal has shown so far."""
        log = self.directory / "output"
        return log.read_text() if log.exists() else ""

    def start(self) -> None:
        """Start it; returns at once."""
        inventory = self.fleet.inventory(self.directory / "inventory")
        variables = {
            "chunk_mb": 1,
            "free_floor_mb": 10,
            "drain_seconds": 20,
            "allow_few_rollovers": True,
            "event_log": EVENT_LOG,
            "fury_collector_port": PORT,
            "fury_results": str(self.directory / "results"),
            **self.variables,
        }
        argv = [PLAYBOOK, "-i", str(inventory), "run.yml", "-e", json.dumps(variables)]
        for host in self.fleet.hosts:
            log = host.root / EVENT_LOG.lstrip("/")
            log.parent.mkdir(exist_ok=True)
            log.parent.chmod(0o1777)
            log.unlink(missing_ok=True)
        with (self.directory / "output").open("wb") as output:
            self.process = subprocess.Popen(
                self.fleet.controller_argv(argv), cwd=REPO, stdout=output, stderr=subprocess.STDOUT
            )

    def await_output(self, pattern: str, timeout_s: float = 90) -> str:
        """What the terminal has shown once ``pattern`` (multi-line regular expression) is in it."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if re.search(pattern, self.output, re.M):
                return self.output
            assert self.process is not None
            assert self.process.poll() is None, self.output
            time.sleep(0.1)
        raise AssertionError(f"{pattern!r} did not appear in {timeout_s:g} s:\n{self.output}")

    def finish(self, timeout_s: float = 240) -> int:
        """The exit code, once it has ended by itself."""
        assert self.process is not None
        code = self.process.wait(timeout_s)
        assert "Traceback" not in self.output, self.output
        return code

    def kill(self) -> None:
        """kill -9 of ansible-playbook and all its workers."""
        assert self.process is not None
        if self.process.poll() is None:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
            self.process.kill()
            self.process.wait(10)

    def teardown(self) -> subprocess.CompletedProcess[str]:
        """teardown.yml over the same hosts."""
        argv = [PLAYBOOK, "-i", str(self.directory / "inventory"), "teardown.yml", "-e", f"fury_collector_port={PORT}"]
        return self.fleet.controller_run(argv, cwd=REPO)

    def interrupt(self) -> None:
        """Ctrl-C."""
        assert self.process is not None
        psutil.Process(self.process.pid).send_signal(signal.SIGINT)

    def collector(self) -> psutil.Process:
        """The collector's process, on the controller."""
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if "fury_collector" in words and "serve" in words and any(str(self.directory) in word for word in words):
                return process
        raise AssertionError("no collector runs")

    def verdict(self) -> str:
        """The last line."""
        return self.output.rstrip().splitlines()[-1]

    def summary(self) -> dict[str, Any]:
        """summary.json."""
        loaded: dict[str, Any] = json.loads((self.results / "summary.json").read_text())
        return loaded

    def agent(self, name: str) -> dict[str, Any]:
        """An agent's object of summary.json."""
        return next(agent for agent in self.summary()["agents"] if agent["name"] == name)


def agent_pid(host: Host) -> int:
    """The agent's process id on its host."""
    shown = host.enter(["systemctl", "show", "-p", "MainPID", f"fury-agent-{host.name}.service"]).stdout
    return int(shown.strip().split("=")[1])


def logged(host: Host) -> tuple[dict[Key, str], set[Key]]:
    """What an agent issued (key to kind), and what it knew to be stored."""
    path = host.root / EVENT_LOG.lstrip("/")
    issued: dict[Key, str] = {}
    acknowledged: set[Key] = set()
    for line in path.read_text().splitlines() if path.exists() else []:
        epoch, seq, what = line.split()
        if what == "stored":
            acknowledged.add((epoch, int(seq)))
        else:
            issued[epoch, int(seq)] = what
    return issued, acknowledged


def stored(results: Path) -> dict[str, list[Key]]:
    """Every event in the run's database by agent."""
    with sqlite3.connect(results / "fury.db") as database:
        rows = database.execute(
            "select agents.name, epochs.epoch, seq from (select epoch_id, seq from rollovers union all "
            "select epoch_id, seq from samples union all select epoch_id, seq from events) "
            "join epochs on epochs.id = epoch_id join agents on agents.id = agent_ref"
        ).fetchall()
    found: dict[str, list[Key]] = {}
    for name, epoch, seq in rows:
        found.setdefault(name, []).append((epoch, seq))
    return found


def judge(stress: Stress) -> dict[str, int]:
    """The oracle: acknowledged ⊆ stored ⊆ issued, nothing twice, and the summary is the sum of what is stored.

    Returns counts for a closing note: issued, stored, lost (issued by an agent that ended well and not stored), doubled.
    """
    summary = stress.summary()
    in_database = stored(stress.results)
    counts: Counter[str] = Counter()
    for host in stress.fleet.hosts:
        issued, acknowledged = logged(host)
        have = in_database.get(host.name, [])
        doubled = len(have) - len(set(have))
        assert doubled == 0, (host.name, Counter(have).most_common(3))
        assert acknowledged <= set(have), (host.name, sorted(acknowledged - set(have))[:5])
        assert set(have) <= set(issued), (host.name, sorted(set(have) - set(issued))[:5])
        agent = next(agent for agent in summary["agents"] if agent["name"] == host.name)
        if agent["verdict"] == "PASS" and agent["epochs"] == 1:
            assert set(have) == set(issued), (host.name, sorted(set(issued) - set(have))[:5])
            counts["lost"] += len(set(issued) - set(have))
        counts["issued"] += len(issued)
        counts["stored"] += len(have)
        counts["doubled"] += doubled
        assert agent["events_stored"] == len(have)
    with sqlite3.connect(stress.results / "fury.db") as database:
        rows = database.execute(
            "select agents.name, sum(ramp_bytes < bytes), sum(bytes - ramp_bytes) from rollovers "
            "join epochs on epochs.id = epoch_id join agents on agents.id = agent_ref group by 1"
        ).fetchall()
        tails = dict(
            database.execute(
                "select agents.name, sum(json_extract(body, '$.tail_bytes')) from events join epochs on epochs.id = epoch_id "
                "join agents on agents.id = agent_ref where kind = 'final' group by 1"
            ).fetchall()
        )
    for name, rollovers, count in rows:
        agent = next(agent for agent in summary["agents"] if agent["name"] == name)
        assert (agent["rollovers"], agent["written_bytes"]) == (rollovers, count + tails.get(name, 0)), name
    assert summary["fleet"]["written_bytes"] == sum(agent["written_bytes"] for agent in summary["agents"])
    with (Path(os.environ.get("FURY_FAULT_COUNTS") or stress.directory / "counts.jsonl")).open("a") as log:
        log.write(json.dumps({"run": summary["run_id"], **counts}) + "\n")
    return dict(counts)


LEFT = r"""
ls -d /var/lib/fury /mnt/disk/fury-* /var/tmp/fury-* /run/.fury-* 2>/dev/null
ls /etc/systemd/system /etc/systemd/system/*.wants 2>/dev/null | grep fury
getent passwd | grep ^fury; getent group | grep ^fury
ps -eo args --no-headers | grep -E 'fury_(agent|host)' | grep -v grep
systemctl list-units --all --plain --no-legend 'fury*'
true
"""


def left(host: Host) -> list[str]:
    """Whatever of Fury is on a host."""
    return host.enter(["sh", "-c", LEFT]).stdout.split("\n")[:-1]
