"""The README's command against real systemd hosts: what is there while it runs, and that nothing is left after it."""

from __future__ import annotations

import csv
import json
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import testinfra

from tests.hosts.lab import Fleet

pytestmark = pytest.mark.hosts

REPO = Path(__file__).parents[2]
PLAYBOOK = str(Path(sys.executable).with_name("ansible-playbook"))
NAMES = ("deb11", "deb12", "deb13")

# Every file but logs and what Ansible itself leaves; users, unit files, listening sockets, processes.
SNAPSHOT = r"""
find / -xdev \( -path /proc -o -path /sys -o -path /var/log -o -path /root/.ansible -o -path /var/cache \) -prune -o -print
find /run /tmp /var/tmp -iname '*fury*'
getent passwd; getent group; systemctl list-unit-files --no-legend --no-pager; ls /var/spool/cron 2>/dev/null
ss -ltnuH | awk '{print $1, $5}' | grep -v '127.0.0.5[34]'
ps -eo user:32,args --no-headers | grep -i fury | grep -v grep
true
"""


def snapshot(fleet: Fleet) -> dict[str, set[str]]:
    """What is on each host, line by line."""
    lines = {name: fleet.host(name).run(["sh", "-c", SNAPSHOT]).stdout.splitlines() for name in NAMES}
    # Interpreters cache what they compile where it is theirs to write; that is Python's.
    return {name: {line for line in found if "__pycache__" not in line} for name, found in lines.items()}


@dataclass
class Run:
    """A finished run: its output, exit code, results, and what was seen on the hosts before, while it ran, and after it."""

    output: str
    exit_code: int
    results: Path
    before: dict[str, set[str]]
    during: dict[str, dict[str, str]]
    after: dict[str, set[str]]


WATCH = r"""
pid=$(systemctl show -p MainPID fury-agent-$0.service | cut -d= -f2)
echo "active=$(systemctl is-active fury-agent-$0.service)"
echo "timer=$(systemctl is-active fury-reaper-agent-$0.timer)"
echo "timer_enabled=$(systemctl is-enabled fury-reaper-agent-$0.timer)"
echo "user=$(ps -o user:32= -p $pid)"
echo "capabilities=$(awk '/CapEff/ {print $2}' /proc/$pid/status)"
echo "no_new_privileges=$(awk '/NoNewPrivs/ {print $2}' /proc/$pid/status)"
echo "listening=$(ss -ltnpH | grep "pid=$pid," | wc -l)"
echo "argv=$(tr '\0' ' ' < /proc/$pid/cmdline)"
echo "files=$(find / -xdev -path /proc -prune -o -user fury-agent-$0 -print | tr '\n' ' ')"
echo "open=$(ls -l /proc/$pid/fd | grep -o '/[^ ]*fury[^ ]*' | tr '\n' ' ')"
echo "chunks=$(ls /var/tmp/fury-$0 | tr '\n' ' ')"
true
"""


@pytest.fixture(scope="module")
def run(fleet: Fleet, infra: Mapping[str, testinfra.host.Host], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run of the README's command, looked at in its middle."""
    directory = tmp_path_factory.mktemp("run")
    inventory = fleet.inventory(directory / "inventory")
    before = snapshot(fleet)
    argv = [PLAYBOOK, "-i", str(inventory), "run.yml", "-e", "chunk_mb=20", "-e", "minutes=1"]
    argv += ["-e", f"fury_results={directory}/results"]
    with (directory / "output").open("w") as output:
        process = subprocess.Popen(fleet.controller_argv(argv), cwd=REPO, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 120
        while "started:" not in (directory / "output").read_text() and time.monotonic() < deadline:
            assert process.poll() is None, (directory / "output").read_text()
            time.sleep(0.5)
        during = {}
        for name in NAMES:
            seen = fleet.host(name).run(["sh", "-c", WATCH, name]).stdout
            during[name] = dict(line.split("=", 1) for line in seen.splitlines())
            assert infra[name].service(f"fury-agent-{name}").is_running
            assert infra[name].user(f"fury-agent-{name}").shell == "/usr/sbin/nologin"
            assert infra[name].file(f"/var/lib/fury/agent-{name}/config.json").mode == 0o600
            assert infra[name].file(f"/var/tmp/fury-{name}").mode == 0o700
        exit_code = process.wait(180)
    finally:
        if process.poll() is None:
            process.kill()
    return Run(
        (directory / "output").read_text(), exit_code, directory / "results" / "latest", before, during, snapshot(fleet)
    )


def test_it_passes_and_says_so(run: Run) -> None:
    """Exit code 0, and PASS is the last line."""
    assert run.exit_code == 0, run.output
    assert re.fullmatch(r"PASS: 3 of 3 agents finished, .* at .* MB/s", run.output.splitlines()[-1])


def test_the_terminal_tells_it_in_order(run: Run) -> None:
    """Preflight, armed, started with the skew, progress, drained, statistics, results, torn down, verdict; no Ansible noise."""
    order = [r"^run .*: 3 agents on 3 hosts, 20 MB chunks, 1 minute$",
             r"^armed: 3 of 3 .* live page: https://.*/ \(user fury, password in .*\)$",
             r"^started: .* ms", r"of 60 s \|.* MB/s", r"^drained: ", r"^agent +host", r"^deb11 ", r"^fleet ", r"^results: ",
             r"^torn down: ", r"^PASS: "]  # fmt: skip
    places = [re.search(pattern, run.output, re.M) for pattern in order]
    assert all(places), [pattern for pattern, place in zip(order, places, strict=True) if place is None]
    starts = [place.start() for place in places if place]
    assert starts == sorted(starts), run.output
    for noise in ("TASK", "PLAY", "RETRYING", "Traceback", "WARNING"):
        assert noise not in run.output


@pytest.mark.parametrize("name", NAMES)
def test_an_agent_runs_as_a_unit_with_exactly_these_privileges(run: Run, name: str) -> None:
    """Own user, no capability, no way to get any; one listening socket; nothing in argv but a path."""
    seen = run.during[name]
    assert seen["active"] == "active"
    assert seen["user"] == f"fury-agent-{name}"
    assert seen["capabilities"] == "0000000000000000"
    assert seen["no_new_privileges"] == "1"
    assert seen["listening"] == "1"
    home = f"/var/lib/fury/agent-{name}"
    assert seen["argv"].split()[-4:] == ["--config", f"{home}/config.json", "--mounted-at", f"{home}/chunks"]


@pytest.mark.parametrize("name", NAMES)
def test_the_reaper_is_armed_while_the_agent_lives(run: Run, name: str) -> None:
    """A timer in /etc, enabled, so that it outlives a reload and a reboot."""
    assert (run.during[name]["timer"], run.during[name]["timer_enabled"]) == ("active", "enabled")


@pytest.mark.parametrize("name", NAMES)
def test_an_agents_files_lie_in_its_directories_only(run: Run, name: str) -> None:
    """Whatever its user owns lies in its chunk directory or its home; the ring holds two chunks."""
    seen = run.during[name]
    allowed = (f"/var/tmp/fury-{name}/", f"/var/lib/fury/agent-{name}/")
    assert seen["files"].split()
    for path in seen["files"].split() + seen["open"].split():
        assert f"{path}/".startswith(allowed), path
    assert seen["chunks"].split() == ["chunk-0.dat", "chunk-1.dat"]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_on_a_host(run: Run, name: str) -> None:
    """Every file, user, unit, socket and process is as it was before."""
    assert run.after[name] - run.before[name] == set()
    assert run.before[name] - run.after[name] == set()


def test_the_results_are_whole_and_agree_with_each_other(run: Run) -> None:
    """summary.json, the CSV files and fury.db tell the same figures."""
    summary = json.loads((run.results / "summary.json").read_text())
    assert summary["schema"] == 1
    assert [agent["name"] for agent in summary["agents"]] == list(NAMES)
    rollovers = list(csv.DictReader((run.results / "rollovers.csv").open()))
    with sqlite3.connect(run.results / "fury.db") as database:
        stored = database.execute("select count(*), sum(bytes) from rollovers").fetchone()
    assert summary["fleet"]["rollovers"] == len(rollovers) == stored[0]
    for agent in summary["agents"]:
        assert agent["verdict"] == "PASS"
        assert agent["cleanup"] == "confirmed"
        assert agent["events_issued"] == agent["events_stored"] > 0
        assert agent["seconds"] == pytest.approx(60, abs=3)
        mine = [row for row in rollovers if row["agent"] == agent["name"]]
        assert agent["rollovers"] == len(mine)
        assert 0 <= agent["written_bytes"] - sum(int(row["bytes"]) for row in mine) <= 20_003_000
        assert (run.results / "agents" / agent["name"] / "agent.log").read_text()
    assert summary["fleet"]["written_bytes"] == sum(agent["written_bytes"] for agent in summary["agents"])
    samples = list(csv.DictReader((run.results / "samples.csv").open()))
    assert {row["agent"] for row in samples} == set(NAMES)
    assert len(samples) >= 3 * 5


def test_all_agents_start_at_one_instant(run: Run) -> None:
    """Hosts of one machine share its monotonic clock, which shows the true skew: under 0.1 s and as reported."""
    summary = json.loads((run.results / "summary.json").read_text())
    with sqlite3.connect(run.results / "fury.db") as database:
        started = [row[0] for row in database.execute("select t_mono_ns from events where kind = 'start'")]
    assert len(started) == 3
    true_skew_s = (max(started) - min(started)) / 1e9
    assert true_skew_s <= summary["fleet"]["start_skew_seconds"] + 0.005
    assert summary["fleet"]["start_skew_seconds"] < 0.1
