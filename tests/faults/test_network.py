"""The network between agents and collector breaks in every way it can here, one way on each host, all in one run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.stress import Stress, judge, left
from tests.hosts.lab import Fleet, Host, HostSpec

pytestmark = pytest.mark.hosts

SECONDS = 60
OUTAGE_S = 30.0
HEALED = ("cable", "halfopen", "blackhole", "unreachable", "prohibit")


def half_open(host: Host, *, heal: bool) -> None:
    """The host's packets to the controller go to a card that is not there: connections stay open and nothing arrives."""
    to = [host._fleet.address, "dev", "eth0"]
    if heal:
        host.net(["ip", "neigh", "del", *to])
    else:
        host.net(["ip", "neigh", "replace", to[0], "lladdr", "02:00:00:00:00:99", *to[1:], "nud", "permanent"])


def route(host: Host, kind: str, *, heal: bool) -> None:
    """A route that swallows or refuses what is sent to the controller."""
    host.net(["ip", "route", "del" if heal else "add", kind, f"{host._fleet.address}/32"])


def slow(host: Host) -> None:
    """64 kbit/s towards the controller."""
    host.net(["tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "64kbit", "burst", "8kb", "latency", "2s"])


def fault(host: Host, *, heal: bool) -> None:
    """Break or mend the way from ``host`` to the controller in the way the host is named after."""
    if host.name in ("cable", "pulled"):
        (host.link_up if heal else host.link_down)()
    elif host.name == "halfopen":
        half_open(host, heal=heal)
    elif host.name in ("blackhole", "unreachable", "prohibit"):
        route(host, host.name, heal=heal)


@pytest.fixture(scope="module")
def run(lab: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stress]:
    """One run: at 5 s every way breaks, at 35 s all but one mend; the cable of `pulled` stays out to the end."""
    suites = ("bookworm", "trixie", "bullseye", "bookworm", "trixie", "bookworm", "trixie")
    names = (*HEALED, "pulled", "slow")
    with Fleet([HostSpec(name, suite) for name, suite in zip(names, suites, strict=True)]) as fleet:
        stress = Stress(fleet, tmp_path_factory.mktemp("network"), {"seconds": SECONDS, "chunk_mb": 4, "rate_mb_s": 40})
        stress.start()
        try:
            stress.await_output(r"^started: ")
            time.sleep(5)
            slow(fleet.host("slow"))
            for name in (*HEALED, "pulled"):
                fault(fleet.host(name), heal=False)
            time.sleep(OUTAGE_S)
            for name in HEALED:
                fault(fleet.host(name), heal=True)
            stress.finish()
            yield stress
        finally:
            stress.kill()
            fleet.host("pulled").link_up()
            stress.teardown()


@pytest.mark.parametrize("name", [*HEALED, "slow"])
def test_what_heals_costs_nothing(run: Stress, name: str) -> None:
    """Every event arrives, exactly once, and the agent passes; it never wrote less for it."""
    agent = run.agent(name)
    assert agent["verdict"] == "PASS", run.output
    assert agent["events_stored"] == agent["events_issued"]
    assert left(run.fleet.host(name)) == []


@pytest.mark.parametrize("name", HEALED)
def test_an_outage_is_in_the_results_with_its_times(run: Stress, name: str) -> None:
    """Late, suspect, and recovered when the way was mended."""
    seen = [step["health"] for step in run.agent(name)["liveness"]]
    for health in ("late", "suspect", "recovered"):
        assert health in seen, seen


def test_a_host_that_stays_away_is_named_and_the_others_are_whole(run: Stress) -> None:
    """INCOMPLETE, with the name of the one that is missing; what it had sent before is there."""
    assert run.process is not None
    assert run.process.returncode != 0
    assert run.verdict().startswith("INCOMPLETE: 6 of 7 agents"), run.verdict()
    assert "pulled" in run.verdict()
    pulled = run.agent("pulled")
    assert pulled["verdict"] == "INCOMPLETE"
    assert pulled["cleanup"] == "unconfirmed"
    assert pulled["rollovers"] > 0


def test_the_oracle_finds_nothing(run: Stress) -> None:
    """Acknowledged ⊆ stored ⊆ issued, nothing twice, the summary is the sum of what is stored."""
    counts = judge(run)
    assert counts["doubled"] == 0
    assert counts["lost"] == 0


def test_after_it_all_a_run_passes_and_nothing_is_left(run: Stress, tmp_path: Path) -> None:
    """teardown.yml cleans the host that was away; then every host can be used again."""
    fleet = run.fleet
    fleet.host("pulled").link_up()
    done = run.teardown()
    assert done.returncode == 0, done.stdout + done.stderr
    fleet.host("slow").net(["tc", "qdisc", "del", "dev", "eth0", "root"])
    again = Stress(fleet, tmp_path, {"seconds": 3})
    again.start()
    assert again.finish() == 0, again.output
    judge(again)
    for host in fleet.hosts:
        assert left(host) == []
