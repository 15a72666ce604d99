"""The collector dies, hangs and runs out of disk while agents write."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.stress import Stress, judge, left
from tests.hosts.lab import Fleet, HostSpec

pytestmark = pytest.mark.hosts


@pytest.fixture(scope="module")
def fleet(lab: None) -> Iterator[Fleet]:
    """Two hosts of different age."""
    with Fleet([HostSpec("deb11", "bullseye"), HostSpec("deb12", "bookworm")]) as fleet:
        yield fleet


def check(run: Stress) -> None:
    """Whole results all the same: every event that was issued is stored, once, and nothing is left."""
    assert judge(run)["lost"] == 0
    for agent in run.summary()["agents"]:
        assert agent["verdict"] == "PASS", run.output
        assert agent["events_issued"] == agent["events_stored"] > 0
    for host in run.fleet.hosts:
        assert left(host) == []


def test_a_collector_dead_from_the_first_second_loses_nothing(fleet: Fleet, stress: Callable[..., Stress]) -> None:
    """kill -9 right after the start: agents write to their end, and what they have is fetched, stored and said."""
    run = stress(fleet, seconds=15, drain_seconds=5)
    run.await_output(r"^started: ")
    run.collector().kill()
    assert run.finish() == 0, run.output
    assert "rescued" in run.verdict(), run.output
    check(run)


def test_a_host_that_is_away_while_its_journal_is_to_be_fetched_loses_nothing(
    fleet: Fleet, stress: Callable[..., Stress]
) -> None:
    """The collector is dead, and the host's cable is out until the first fetch has failed: it is asked once more."""
    run = stress(fleet, seconds=10, drain_seconds=5)
    run.await_output(r"^started: ")
    run.collector().kill()
    time.sleep(12)
    away = fleet.host("deb12")
    away.link_down()
    try:
        run.await_output(r"deb12 could not be reached .* once more", timeout_s=180)
    finally:
        away.link_up()
    assert run.finish() == 0, run.output
    check(run)


def test_a_collector_that_hangs_for_a_minute_loses_nothing(fleet: Fleet, stress: Callable[..., Stress]) -> None:
    """SIGSTOP for 60 s: connections stay open and nothing is answered; after it everything arrives by itself."""
    run = stress(fleet, seconds=75)
    run.await_output(r"^started: ")
    collector = run.collector()
    collector.suspend()
    time.sleep(60)
    collector.resume()
    assert run.finish() == 0, run.output
    assert "rescued" not in run.verdict()
    check(run)


def test_a_collector_without_room_for_its_database_loses_nothing(
    fleet: Fleet, stress: Callable[..., Stress], tmp_path: Path
) -> None:
    """Its file system fills up for 15 s: agents keep what is not acknowledged, and deliver when there is room again."""
    small = tmp_path / "results"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(small)], check=True)
    try:
        run = stress(fleet, seconds=30)
        run.await_output(r"^started: ")
        filler = small / "filler"
        with filler.open("wb") as file:
            try:
                while True:
                    file.write(b"\0" * 65536)
                    file.flush()
            except OSError:
                pass
        time.sleep(15)
        filler.unlink()
        assert run.finish() == 0, run.output
        check(run)
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)
