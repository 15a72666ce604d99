"""The agent's whole life with a collector: the barrier, the events and their sums, and a collector that fails it."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest

from fury_agent.histogram import Histogram
from tests.agent.conftest import AgentProcess
from tests.agent.peer import Answer, Peer

Run = Callable[..., AgentProcess]


def arguments(directory: Path, peer: Peer, *more: str, seconds: int = 1) -> List[str]:
    return [
        *("alecto", "--chunk-mb", "5", "--seconds", str(seconds), "--directory", str(directory), "--json"),
        *(
            "--run-id",
            "r1",
            "--collector-url",
            peer.url,
            "--plain-http",
            "--heartbeat-seconds",
            "1",
            "--sample-seconds",
            "1",
            *more,
        ),
    ]


def of_kind(peer: Peer, kind: str) -> List[Dict[str, Any]]:
    return [event for _, event in sorted(peer.stored.items()) if event["kind"] == kind]


def test_what_it_reports_adds_up(run_agent: Run, peer: Peer, tmp_path: Path) -> None:
    """start first, final last, numbers without a gap, and the final's sums are those of rollovers and samples."""
    agent = run_agent(*arguments(tmp_path, peer, seconds=2))
    assert agent.code == 0, agent.out + agent.err
    kinds = peer.kinds()
    assert sorted(peer.stored) == list(range(len(kinds)))
    assert kinds[0] == "start"
    assert kinds[-1] == "final"
    assert kinds.count("heartbeat") >= 1
    assert kinds.count("sample") >= 2
    (final,) = of_kind(peer, "final")
    rollovers = of_kind(peer, "rollover")
    assert final["verdict"] == "PASS"
    assert final["rollovers"] == len(rollovers) == kinds.count("rollover")
    assert [rollover["chunk"] for rollover in rollovers] == list(range(len(rollovers)))
    assert final["written_bytes"] == sum(rollover["bytes"] for rollover in rollovers) + final["tail_bytes"]
    for name in ("write_histogram", "fsync_histogram"):
        buckets: Dict[str, int] = {}
        for sample in of_kind(peer, "sample"):
            for index, count in sample[name]["buckets"].items():
                buckets[index] = buckets.get(index, 0) + count
        assert buckets == final[name]["buckets"], name
        assert set(final[name]) == set(Histogram().to_dict())
    assert of_kind(peer, "sample")[-1]["written_bytes"] == final["written_bytes"]
    assert (agent.summary["events_issued"], agent.summary["events_stored"]) == (len(kinds), len(kinds))
    assert list(tmp_path.iterdir()) == []


def test_payloads_have_the_contracts_keys(run_agent: Run, peer: Peer, tmp_path: Path) -> None:
    """Kind by kind as in the table of docs/protocol.md."""
    run_agent(*arguments(tmp_path, peer, seconds=2))
    table = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text().split("| kind | payload |")[1]
    for kind in ("start", "rollover", "sample", "heartbeat", "final"):
        row = next(line for line in table.splitlines() if line.startswith(f"| `{kind}` |"))
        payload = re.sub(r"\([^)]*\)", "", row.split("|", 2)[2])
        names = set(re.findall(r"`([a-z0-9_]+)`", payload))
        event = of_kind(peer, kind)[0]
        assert set(event) == names | {"seq", "kind", "t_mono_ns", "t_wall"}, kind
    ask = peer.asks[0]
    assert set(ask) - {"path"} == {
        *("v", "epoch", "metrics_address", "metrics_port", "chunk_bytes", "seconds", "calibrated_bytes_per_second"),
        *("host", "agent_version", "after"),
    }
    assert re.fullmatch(r"[0-9a-f]{16}", ask["epoch"])
    assert {batch["epoch"] for batch in peer.batches} == {ask["epoch"]}


def test_it_waits_at_the_barrier_and_starts_at_the_instant(run_agent: Run, peer: Peer, tmp_path: Path) -> None:
    """It says whom it waits for, writes nothing before the start, and begins within 50 ms of the instant."""
    instants: List[float] = []

    def ready(ask: Dict[str, Any]) -> Answer:
        if len(peer.asks) < 4:
            return 200, peer.waiting()
        now = time.monotonic()
        if not instants:
            instants.append(now + 0.7)
        return 200, {"state": "start", "start_in_s": instants[0] - now, "collector_mono_s": now}

    peer.ready = ready
    agent = run_agent(*arguments(tmp_path, peer))
    assert agent.code == 0, agent.out
    assert "waiting for megaera" in agent.lines
    (start,) = of_kind(peer, "start")
    assert abs(start["start_collector_mono_s"] - instants[0]) < 0.05
    assert start["rtt_s"] < 0.5


def test_a_late_agent_starts_at_once(run_agent: Run, peer: Peer, tmp_path: Path) -> None:
    """An instant that is past already means now, for the full time."""
    peer.ready = lambda ask: (200, peer.start(-30.0))
    agent = run_agent(*arguments(tmp_path, peer))
    assert agent.code == 0, agent.out
    assert agent.summary["seconds"] > 0.95


def test_a_barrier_that_never_opens_names_who_is_missing(run_agent: Run, peer: Peer, tmp_path: Path) -> None:
    """After barrier_seconds it ends, and its final is number 0."""
    peer.ready = lambda ask: (200, peer.waiting())
    agent = run_agent(*arguments(tmp_path, peer, "--barrier-seconds", "1"))
    assert agent.code == 6
    assert "missing at the end: megaera" in agent.lines[-2]
    assert peer.kinds() == ["final"]
    assert of_kind(peer, "final")[0]["verdict"] == "INCOMPLETE"
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_called_off_ends_with_the_reason(run_agent: Run, peer: Peer, tmp_path: Path) -> None:
    """abort carries the collector's reason to the last line."""
    now = time.monotonic()
    peer.ready = lambda ask: (200, {"state": "abort", "reason": "megaera refused", "collector_mono_s": now})
    agent = run_agent(*arguments(tmp_path, peer))
    assert agent.code == 6
    assert "called the run off: megaera refused" in agent.lines[-2]


@pytest.mark.parametrize("status", [404, 409])
def test_a_collector_that_does_not_know_it_is_a_precondition(
    run_agent: Run, peer: Peer, tmp_path: Path, status: int
) -> None:
    """It ends at once with the collector's sentence, not after the barrier's time."""
    peer.ready = lambda ask: (status, {"error": "no such agent"})
    peer.events = lambda batch: (status, {"error": "no such agent"})
    agent = run_agent(*arguments(tmp_path, peer))
    assert agent.code == 3
    assert f"no such agent ({status})" in agent.lines[-2]
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_before_the_start_is_reported_as_the_final(run_agent: Run, peer: Peer, tmp_path: Path) -> None:
    """The collector learns of a PRECONDITION, so that nobody waits for this agent."""
    agent = run_agent(*arguments(tmp_path, peer, "--free-floor-mb", "1000000000"))
    assert agent.code == 3
    assert peer.kinds() == ["final"]
    (final,) = of_kind(peer, "final")
    assert (final["verdict"], final["written_bytes"], final["seq"]) == ("PRECONDITION", 0, 0)
    assert "bytes are needed" in final["reason"]
    assert not peer.asks


def test_the_collector_stops_it(run_agent: Run, peer: Peer, tmp_path: Path) -> None:
    """command: stop ends the writing with the next answer; statistics and final come as ever."""
    peer.events = lambda batch: peer.store(batch, command="stop")
    agent = run_agent(*arguments(tmp_path, peer, seconds=60))
    assert agent.code == 6
    assert re.search(r"stopped by the collector after \d+\.\d of 60 s", agent.lines[-2])
    assert peer.kinds()[-1] == "final"


def test_an_outage_while_it_writes_costs_nothing(run_agent: Run, peer: Peer, tmp_path: Path) -> None:
    """A collector that fails for a second in the middle gets everything afterwards, once, and the run passes."""
    began = time.monotonic()

    def events(batch: Dict[str, Any]) -> Answer:
        elapsed = time.monotonic() - began
        if 2.0 < elapsed < 3.0:
            return "drop" if int(elapsed * 10) % 2 else (503, {})
        return peer.store(batch)

    peer.events = events
    agent = run_agent(*arguments(tmp_path, peer, seconds=3))
    assert agent.code == 0, agent.out
    assert sorted(peer.stored) == list(range(len(peer.stored)))
    assert agent.summary["events_stored"] == agent.summary["events_issued"] == len(peer.stored)


def test_a_collector_that_never_comes_back_makes_it_incomplete(run_agent: Run, peer: Peer, tmp_path: Path) -> None:
    """Written, but not told: the drain ends at its deadline and says what did not get through."""
    peer.events = lambda batch: (500, {"error": "disk full"})
    began = time.monotonic()
    agent = run_agent(*arguments(tmp_path, peer, "--drain-seconds", "1"))
    assert time.monotonic() - began < 10
    assert agent.code == 6
    assert re.search(r"did not get \d+ events of \d+: disk full \(500\)", agent.lines[-2])
    assert agent.summary["written_bytes"] > 0
    assert agent.summary["events_stored"] == 0
    assert list(tmp_path.iterdir()) == []


def test_refused_events_fail_the_run(run_agent: Run, peer: Peer, tmp_path: Path) -> None:
    """A 4xx is set aside, counted, and costs the PASS."""
    peer.events = lambda batch: (400, {"error": "seq is missing"})
    agent = run_agent(*arguments(tmp_path, peer))
    assert agent.code == 6
    assert re.search(r"refused \d+ events: seq is missing \(400\)", agent.lines[-2])


def test_a_disk_error_is_an_event_of_its_own(start_agent: Run, peer: Peer, tmp_path: Path) -> None:
    """error with call, path and errno, then the final with the same verdict."""
    agent = start_agent(*arguments(tmp_path, peer, seconds=60))
    agent.wait_for("rollover 1:")
    (tmp_path / "fury-alecto" / "chunk-0.dat").unlink()
    agent.finish()
    assert agent.code == 4
    (error,) = of_kind(peer, "error")
    assert (error["operation"], error["errno"]) == ("open", 2)
    assert error["path"] == f"{tmp_path}/fury-alecto/chunk-0.dat"
    (final,) = of_kind(peer, "final")
    assert (final["verdict"], final["errors"]) == ("DISK_ERROR", 1)
