"""Agents and hosts die, hang and come back, one way on each host, all in one run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.stress import Stress, agent_pid, judge, left
from tests.hosts.lab import Fleet, HostSpec

pytestmark = pytest.mark.hosts

SECONDS = 50


@pytest.fixture(scope="module")
def run(lab: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stress]:
    """One run: an agent is killed, one is stopped for 15 s, one for ever, a host reboots, and one loses its power."""
    names = {"killed": "bookworm", "paused": "trixie", "stubborn": "bookworm", "rebooted": "trixie", "dark": "bullseye"}
    with Fleet([HostSpec(name, suite) for name, suite in names.items()]) as fleet:
        stress = Stress(fleet, tmp_path_factory.mktemp("processes"), {"seconds": SECONDS, "chunk_mb": 4})
        stress.start()
        try:
            stress.await_output(r"^started: ")
            time.sleep(5)
            for name, number in {"killed": 9, "paused": 19, "stubborn": 19}.items():
                host = fleet.host(name)
                host.enter(["kill", f"-{number}", str(agent_pid(host))])
            fleet.host("dark").kill()
            fleet.host("rebooted").reboot()
            time.sleep(10)
            fleet.host("paused").enter(["kill", "-18", str(agent_pid(fleet.host("paused")))])
            stress.finish()
            yield stress
        finally:
            stress.kill()
            stress.teardown()


def test_a_killed_agent_comes_back_and_writes_on_for_the_remaining_time(run: Stress) -> None:
    """A second epoch; both are stored; the end is the planned one; it is said."""
    agent = run.agent("killed")
    assert agent["verdict"] == "PASS", run.output
    assert agent["epochs"] == 2
    assert "restarted 1" in agent["reason"]
    assert left(run.fleet.host("killed")) == []


def test_a_paused_agent_is_late_and_recovers(run: Stress) -> None:
    """SIGSTOP for 15 s shows as late; what it wrote around that counts."""
    agent = run.agent("paused")
    assert agent["verdict"] == "PASS", run.output
    assert {"late", "recovered"} <= {step["health"] for step in agent["liveness"]}


def test_an_agent_that_ignores_sigterm_is_removed_all_the_same(run: Stress) -> None:
    """One that is stopped can't answer SIGTERM; it is made to, loses nothing of what it had issued, and leaves nothing."""
    stubborn = run.agent("stubborn")
    assert stubborn["events_stored"] == stubborn["events_issued"] > 0
    assert run.agent("stubborn")["cleanup"] == "confirmed"
    assert left(run.fleet.host("stubborn")) == []


def test_a_rebooted_host_does_not_resume_the_stress_and_cleans_itself(run: Stress) -> None:
    """Boot removes agent, unit, user, chunks and the reaper itself."""
    assert run.agent("rebooted")["verdict"] == "INCOMPLETE"
    assert left(run.fleet.host("rebooted")) == []


def test_a_host_without_power_is_named(run: Stress) -> None:
    """It is unreachable at the end, and the others are not held up by it."""
    dark = run.agent("dark")
    assert dark["verdict"] == "INCOMPLETE"
    assert dark["cleanup"] == "unconfirmed"
    assert "dark" in run.verdict()


def test_the_oracle_finds_nothing(run: Stress) -> None:
    """Acknowledged ⊆ stored ⊆ issued, nothing twice, the summary is the sum of what is stored."""
    assert judge(run)["doubled"] == 0


def test_a_dark_host_cleans_itself_when_it_has_power_again(run: Stress) -> None:
    """Its reaper was enabled before its agent started."""
    dark = run.fleet.host("dark")
    dark.start()
    dark.wait_ready()
    deadline = time.monotonic() + 20
    while left(dark) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left(dark) == []


def test_hosts_clean_themselves_when_the_controller_is_gone(
    lab: None, stress: Callable[..., Stress], tmp_path: Path
) -> None:
    """kill -9 of the controller and its collector; the lease ends, and nothing is left, without anybody's help."""
    with Fleet([HostSpec("alone", "bookworm"), HostSpec("alone-too", "bullseye")]) as fleet:
        run = stress(fleet, seconds=5, drain_seconds=3, fury_barrier_seconds=15, fury_slack_seconds=5)
        run.await_output(r"^started: ")
        collector = run.collector()
        run.kill()
        os.kill(collector.pid, signal.SIGKILL)
        assert all(left(host) for host in fleet.hosts)
        lease_s = 5 + 3 + 15 + 5
        time.sleep(lease_s)
        deadline = time.monotonic() + 20
        while any(left(host) for host in fleet.hosts) and time.monotonic() < deadline:
            time.sleep(1)
        for host in fleet.hosts:
            assert left(host) == []


def test_an_interrupted_run_on_real_hosts_is_gathered_and_cleaned(lab: None, stress: Callable[..., Stress]) -> None:
    """Ctrl-C: INCOMPLETE with whole results of what was, and nothing left."""
    with Fleet([HostSpec("deb12", "bookworm")]) as fleet:
        run = stress(fleet, seconds=120)
        run.await_output(r"^started: ")
        time.sleep(2)
        run.interrupt()
        assert run.finish(60) != 0
        assert run.verdict().startswith("INCOMPLETE: "), run.output
        judge(run)
        assert left(fleet.host("deb12")) == []
