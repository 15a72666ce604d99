"""What a run amounts to, from rows alone."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any, Optional

import pytest

from fury_collector import report, wire
from fury_collector.rows import AgentRows, EpochRows, RunRows, RunState, Transition

from .conftest import CHUNK, RUN, event, histogram, ready

HISTOGRAMS = ("write_histogram", "fsync_histogram", "read_histogram")


def word(seq: int, kind: str, **changes: Any) -> wire.Event:
    checked = wire.batch({"v": 1, "epoch": "0" * 16, "events": [event(seq, kind, **changes)]})
    return checked.events[0]


def epoch(*, name: str = "0" * 16, final: Optional[dict[str, Any]] = None, **changes: Any) -> EpochRows:
    """A process that started, rolled over three times and, with `final`, ended."""
    rows = EpochRows(
        epoch=name,
        stored=6 if final is not None else 4,
        top_seq=5 if final is not None else 3,
        final_seq=5 if final is not None else None,
        last_t_mono_ns=13_300_000_000,
        start=word(0, "start"),
        heartbeat=None,
        final=None if final is None else word(5, "final", written_bytes=3 * CHUNK, rollovers=3, **final),
        rollovers=3,
        rollover_bytes=3 * CHUNK,
    )
    return replace(rows, **changes)


def agent(name: str, *epochs: EpochRows, **changes: Any) -> AgentRows:
    rows = AgentRows(
        id=1,
        name=name,
        host="host1",
        chunk_mb=20,
        seconds=60,
        directory="/var/tmp",
        ready=None,
        health=None,
        reachable=None,
        cleanup=None,
        cleanup_detail=None,
        epochs=epochs,
    )
    return replace(rows, **changes)


def run(*agents: AgentRows, **state: Any) -> RunRows:
    return RunRows(
        id=1,
        run_id=RUN,
        created_at="",
        parameters={"chunk_mb": 20},
        state=RunState(**{"state": "finished", "start_wall": 1.79e9, **state}),
        agents=agents,
        messages=(),
        next_message=0,
    )


def judged(*agents: AgentRows, **state: Any) -> report.Result:
    return report.judge(run(*agents, **state), ())


def test_a_good_run_passes_and_says_how_much_and_how_fast() -> None:
    """The sentence counts agents, gigabytes and megabytes per second."""
    result = judged(agent("alecto", epoch(final={})), agent("megaera", epoch(final={})))
    assert result.sentence == "PASS: 2 of 2 agents finished, 0.1 GB at 2.0 MB/s"


def test_an_agent_without_a_final_word_is_incomplete_and_named() -> None:
    """Its reason says how long it was heard, its bytes are those of its stored rollovers."""
    lost = [agent(f"web{n}", epoch()) for n in (3, 7, 9)]
    result = judged(*(agent(f"web{n + 10}", epoch(final={})) for n in range(37)), *lost)
    assert result.sentence == "INCOMPLETE: 37 of 40 agents finished; lost: web3, web7, web9"
    assert result.agents[-1].reason == "lost after 12.3 s"
    assert result.agents[-1].written_bytes == 3 * CHUNK


def test_a_final_word_with_missing_events_is_incomplete() -> None:
    """A PASS with holes is none."""
    result = judged(agent("alecto", epoch(final={}, stored=4)))
    assert result.verdict == "INCOMPLETE"
    assert result.agents[0].reason == "2 of 6 events are missing"


@pytest.mark.parametrize("index", range(len(report.SEVERITY) - 1))
def test_the_run_is_as_bad_as_its_worst_agent(index: int) -> None:
    """Each verdict outweighs all that come after it in the order of severity."""
    worse, *others = report.SEVERITY[index:]
    result = judged(
        *(agent(f"a{n}", epoch(final={"verdict": v, "reason": "why"})) for n, v in enumerate([*others, worse]))
    )
    assert result.verdict == worse
    assert set(report.SEVERITY) == set(wire.VERDICTS)


def test_a_bad_verdict_names_the_agent_and_its_reason() -> None:
    """The last sentence of a failed run tells where to look."""
    bad = epoch(final={"verdict": "DISK_ERROR", "reason": "fsync: EIO"})
    result = judged(agent("alecto", epoch(final={})), agent("megaera", bad))
    assert result.sentence == "DISK_ERROR: megaera: fsync: EIO"


@pytest.mark.parametrize(
    ("verdict", "finished"), [("PASS", 1), ("SLO_MISSED", 1), ("DATA_CORRUPTION", 0), ("DISK_ERROR", 0)]
)
def test_only_who_wrote_to_the_end_has_finished(verdict: str, finished: int) -> None:
    """What is read back wrong ends an agent at once."""
    rows = agent("alecto", epoch(final={"verdict": verdict, "reason": "why"}))
    assert report.summary(judged(rows))["fleet"]["agents_finished"] == finished


def test_a_stopped_run_is_incomplete_even_if_all_said_pass() -> None:
    """Nobody compares a run that was cut short."""
    result = judged(agent("alecto", epoch(final={})), stop_reason="Ctrl-C")
    assert result.sentence == "INCOMPLETE: Ctrl-C after 60.0 of 60 s; 1 agent wrote 60 MB"


def test_an_aborted_run_says_why() -> None:
    """Who was never ready is told apart from who was."""
    armed = wire.ready(ready())
    result = judged(agent("alecto", ready=armed), agent("megaera"), state="aborted", reason="not all were ready")
    assert [one.reason for one in result.agents] == ["was ready, but the run was aborted", "never got ready"]
    assert result.sentence == "INCOMPLETE: 0 of 2 agents finished; the run was aborted: not all were ready"


def test_what_the_controller_saw_of_the_hosts_counts() -> None:
    """An unconfirmed cleanup spoils a PASS and nothing worse; an unreachable host explains a missing agent."""
    result = judged(
        agent("alecto", epoch(final={}), cleanup="unconfirmed", cleanup_detail="ssh timed out"),
        agent("megaera", epoch(final={}), cleanup="confirmed"),
    )
    assert result.verdict == "CLEANUP_UNCONFIRMED"
    assert "ssh timed out" in result.reason
    assert report.summary(result)["agents"][1]["cleanup"] == "confirmed"
    gone = judged(agent("alecto", reachable=False, cleanup_detail="no route to host"))
    assert gone.agents[0].reason == "its host could not be reached: no route to host"


def test_several_processes_of_an_agent_add_up() -> None:
    """A crash costs nothing of what was durable before it, and is told."""
    result = judged(agent("alecto", epoch(name="a" * 16), epoch(name="b" * 16, final={"seconds": 40.0})))
    one = result.agents[0]
    assert one.verdict == "PASS"
    assert one.reason == "restarted 1x"
    assert (one.epochs, one.written_bytes, one.rollovers) == (2, 6 * CHUNK, 6)
    assert one.seconds == pytest.approx(52.3)
    assert (one.events_issued, one.events_stored) == (10, 10)


def test_the_last_process_without_a_final_word_is_incomplete() -> None:
    """A final word of an earlier process does not speak for the later one."""
    result = judged(agent("alecto", epoch(name="a" * 16, final={}), epoch(name="b" * 16)))
    assert result.verdict == "INCOMPLETE"


def test_a_restart_is_in_the_sentence_and_under_the_table() -> None:
    """A PASS with a restart is one, and nobody overlooks it."""
    twice = agent("alecto", epoch(name="a" * 16), epoch(name="b" * 16, final={"seconds": 40.0}))
    result = judged(twice, agent("megaera", epoch(final={"seconds": 26.0})))
    assert result.sentence == "PASS: 2 of 2 agents finished, 0.2 GB at 4.5 MB/s; alecto restarted 1x"
    assert report.table(result).splitlines()[-3:-1] == ["alecto: restarted 1x", ""]
    both = judged(twice, replace(twice, name="megaera"))
    assert both.sentence.endswith("; alecto, megaera restarted")


def test_a_crashed_process_with_a_gap_is_incomplete() -> None:
    """It said no last number, but a number that is missing below its highest one is an event that is missing."""
    result = judged(agent("alecto", epoch(name="a" * 16, stored=3), epoch(name="b" * 16, final={})))
    assert result.agents[0].verdict == "INCOMPLETE"
    assert result.agents[0].reason == "1 of 10 events are missing; restarted 1x"


def test_a_process_that_never_wrote_does_not_spoil_the_word_of_the_one_before() -> None:
    """It crashed while delivering: its successor had nothing to do but deliver."""
    told_off = word(0, "final", verdict="INCOMPLETE", reason="the run is over for this agent")
    idle = replace(epoch(name="b" * 16), start=None, final=told_off, final_seq=0, top_seq=0, stored=1, rollovers=0)
    idle = replace(idle, rollover_bytes=0)
    result = judged(agent("alecto", epoch(name="a" * 16, final={}), idle))
    assert result.verdict == "PASS"
    refused = replace(idle, final=word(0, "final", verdict="PRECONDITION", reason="no room"))
    result = judged(agent("alecto", epoch(name="a" * 16), refused))
    assert (result.verdict, result.agents[0].reason) == ("PRECONDITION", "no room; restarted 1x")


def test_the_sentence_of_a_stopped_run_is_short() -> None:
    """Who stopped as told is not listed; who has another trouble is."""
    stopped = epoch(final={"verdict": "INCOMPLETE", "reason": "stopped by the collector after 6.8 of 60 s"})
    stopped = replace(stopped, final=word(5, "final", **{**stopped.final.payload, "seconds": 6.9}))  # type: ignore[union-attr]
    agents = [agent(name, stopped) for name in ("alecto", "megaera", "tisiphone")]
    result = judged(*agents, stop_reason="interrupted by the user")
    assert result.sentence == "INCOMPLETE: interrupted by the user after 6.9 of 60 s; 3 agents wrote 0.2 GB"
    result = judged(*agents, agent("web1", epoch()), stop_reason="interrupted by the user")
    assert result.sentence.endswith("after 12.3 of 60 s; 4 agents wrote 0.2 GB; lost: web1")


def test_agents_with_the_same_reason_are_named_together_in_at_most_160_characters() -> None:
    """Figures that differ do not make another reason, and names give way."""
    long = "stopped by SIGTERM after {} of 60 s"
    some = [
        agent(f"a-rather-long-host-name-{n}", epoch(final={"verdict": "INCOMPLETE", "reason": long.format(n)}))
        for n in range(60)
    ]
    sentence = judged(*some).sentence
    assert len(sentence) <= report.SENTENCE
    assert sentence.startswith(
        "INCOMPLETE: 0 of 60 agents finished; stopped by SIGTERM after 0 of 60 s: a-rather-long-"
    )
    assert sentence.endswith(" more")
    holes = judged(*(agent(f"w{n}", epoch(final={}, stored=n)) for n in (2, 3, 4)))
    assert holes.sentence == "INCOMPLETE: 0 of 3 agents finished; events are missing: w2, w3, w4"
    many = [agent(f"w{n}", epoch(final={"verdict": "INCOMPLETE", "reason": f"reason {chr(97 + n)}"})) for n in range(9)]
    assert judged(*many).sentence.endswith("; reason c: w2; 6 agents for other reasons")


def test_the_fleet_is_as_fast_as_its_bytes_over_its_time() -> None:
    """From the earliest first write to the latest last one: not the sum of rates that were not there at one time."""
    later = epoch(final={"seconds": 60.0})
    later = replace(later, start=word(0, "start", start_collector_mono_s=8123.5 + 60))
    result = judged(agent("alecto", epoch(final={"seconds": 60.0})), agent("megaera", later))
    assert result.seconds == pytest.approx(120)
    fleet = report.summary(result)["fleet"]
    assert fleet["throughput_bytes_per_second"] == pytest.approx(6 * CHUNK / 120)


RAMP = {"ramp_bytes": 2 * CHUNK, "seconds": 60.0}


def test_the_ramp_is_no_part_of_the_fleets_time() -> None:
    """Who has none is measured from the start, who has one from its end: the fleet's time holds both."""
    late = agent("megaera", epoch(final=RAMP), seconds=90, ramp_seconds=30)
    result = judged(agent("alecto", epoch(final={"seconds": 60.0})), late)
    assert result.seconds == pytest.approx(90)
    assert result.skew_s == pytest.approx(0.0004)
    assert [one.seconds for one in result.agents] == [60, 60]
    assert report.summary(result)["agents"][1]["ramp_bytes"] == 2 * CHUNK
    both = judged(replace(late, name="alecto"), late)
    assert both.seconds == pytest.approx(60)
    stopped = judged(replace(late, name="alecto"), late, stop_reason="Ctrl-C")
    assert "Ctrl-C after 60.0 of 60 s" in stopped.sentence
    ramping = agent("megaera", epoch(final={**RAMP, "seconds": 0.0}), seconds=90, ramp_seconds=30)
    assert judged(agent("alecto", epoch(final={"seconds": 5.0})), ramping).seconds == pytest.approx(5)
    assert judged(ramping).seconds == 0


def test_a_crashed_process_is_measured_without_its_ramp_too() -> None:
    """Bytes and seconds of the ramp are both left out; its successor has what is left of it."""

    def again(after_s: float) -> EpochRows:
        start = word(0, "start", t_mono_ns=int((1 + after_s) * 1e9), start_collector_mono_s=8123.5 + after_s)
        final = {"seconds": 40.0, "ramp_bytes": 5, "read_bytes": CHUNK}
        return replace(epoch(name="b" * 16, final=final), start=start)

    crashed = epoch(name="a" * 16, ramp_bytes=CHUNK, read_bytes=2 * CHUNK)
    result = judged(agent("alecto", crashed, again(13), seconds=70, ramp_seconds=10))
    one = result.agents[0]
    assert one.seconds == pytest.approx(12.3 - 10 + 40)
    assert result.seconds == pytest.approx(13 + 40 - 10)
    assert (one.written_bytes, one.ramp_bytes, one.read_bytes) == (6 * CHUNK, CHUNK + 5, 3 * CHUNK)
    early = replace(crashed, last_t_mono_ns=4 * 10**9, rollovers=0, rollover_bytes=0)
    result = judged(agent("alecto", early, again(4), seconds=70, ramp_seconds=10))
    assert [result.agents[0].seconds, result.seconds] == pytest.approx([40, 40])
    lost = judged(agent("alecto", early, seconds=70, ramp_seconds=10)).agents[0]
    assert (lost.reason, lost.seconds, lost.rate) == ("lost after 3.0 s", 0, 0)


def fleet_of(*seconds: float) -> list[AgentRows]:
    """Agents that wrote the same in so many seconds."""
    return [agent(f"web{n}", epoch(final={"seconds": one})) for n, one in enumerate(seconds)]


def test_an_agent_far_below_the_median_is_named_as_slow() -> None:
    """Under the table with its figures, in the sentence of a PASS, and in the summary."""
    result = judged(*fleet_of(10, 10, 16, 12.4))
    assert result.sentence == "PASS: 4 of 4 agents finished, 0.2 GB at 15.0 MB/s; slow: web2"
    assert report.table(result).splitlines()[-3] == "web2 is slow: 3.8 MB/s, 31 % below the fleet's median"
    summary = report.summary(result)
    assert summary["fleet"]["slow_agents"] == ["web2"]
    assert summary["fleet"]["median_throughput_bytes_per_second"] == pytest.approx(
        (3 * CHUNK / 10 + 3 * CHUNK / 12.4) / 2
    )
    assert [one["slow"] for one in summary["agents"]] == [False, False, True, False]
    assert summary["agents"][2]["below_median_ratio"] == pytest.approx(0.308, abs=0.001)
    assert summary["agents"][0]["below_median_ratio"] == pytest.approx(-0.107, abs=0.001)


def test_slow_is_more_than_the_asked_for_percentage_below() -> None:
    """Exactly as far is not."""
    rows = run(*fleet_of(8, 8, 10))
    assert [one.below_median_ratio for one in report.judge(rows, ()).agents][2] == pytest.approx(0.2)
    assert report.judge(replace(rows, slow_percent=20), ()).slow == []
    assert [one.name for one in report.judge(replace(rows, slow_percent=19), ()).slow] == ["web2"]


def test_the_median_is_of_those_that_wrote() -> None:
    """Who never wrote is not slow, and one alone is compared with nobody."""
    alone = judged(*fleet_of(10), agent("idle"), agent("gone", reachable=False))
    summary = report.summary(alone)
    assert summary["fleet"]["median_throughput_bytes_per_second"] == pytest.approx(3 * CHUNK / 10)
    assert [one["below_median_ratio"] for one in summary["agents"]] == [None, None, None]
    assert summary["fleet"]["slow_agents"] == []
    two = report.summary(judged(*fleet_of(10, 30), agent("idle")))
    assert [one["slow"] for one in two["agents"]] == [False, True, False]
    assert report.summary(judged(agent("idle")))["fleet"]["median_throughput_bytes_per_second"] is None


def test_many_slow_agents_are_named_the_slowest_first_and_cut() -> None:
    """Ten lines and five names at most: the sentence stays one that a person reads."""
    result = judged(*fleet_of(*[10] * 20, *(20 + n for n in range(12))))
    assert len(result.sentence) <= report.SENTENCE
    assert result.sentence.endswith(
        "; slow: web31, web30, web29, web28, web27, web26, web25, web24, web23, web22 and 2 more"
    )
    below = report.table(result).splitlines()[-13:-2]
    assert below[0].startswith("web31 is slow: 1.9 MB/s, 6")
    assert below[-1] == "and 2 more that are slow, see summary.json"


def test_what_was_read_back_is_told_for_the_fleet() -> None:
    """Bytes are added, latencies merged; without reading back there is no line."""
    quick = epoch(final={"read_bytes": 51_000_000_000, "read_histogram": histogram(*[0.001] * 98)})
    slow = epoch(final={"read_bytes": 300_000_000, "read_histogram": histogram(0.1, 0.25)})
    result = judged(agent("alecto", quick), agent("megaera", slow))
    told = (
        "read back: 51.3 GB at 114508.9 MB/s a job, p50 1.00 ms, p99 99.2 ms, max 250 ms"  # 51.3 GB in 0.098 + 0.35 s
    )
    assert report.table(result).splitlines()[-3] == told
    summary = report.summary(result)
    assert summary["fleet"]["read_bytes"] == 51_300_000_000
    assert summary["fleet"]["read_latency_seconds"]["max"] == 0.25
    assert summary["agents"][1]["read_bytes"] == 300_000_000
    assert summary["agents"][1]["read_latency_seconds"]["p50"] == pytest.approx(0.1, rel=0.01)
    assert "read back" not in report.table(judged(agent("alecto", epoch(final={}))))


def test_notes_are_told_once_with_the_names_of_those_who_have_them() -> None:
    """On one line each, whatever is in them; all of them are in the summary."""
    cached = "97 % of its chunks were in the page cache:\n\n the figures are those of memory"
    fleet = [agent(f"web{n}", epoch(final={"notes": [cached]})) for n in range(5)]
    odd = agent("db1", epoch(final={"notes": [cached, "its rate was not steady", "x" * 999]}))
    result = judged(*fleet, odd)
    lines = report.table(result).splitlines()
    assert lines[-5:-2] == [
        "web0, web1, web2 and 3 more: 97 % of its chunks were in the page cache: the figures are those of memory",
        "db1: its rate was not steady",
        f"db1: {'x' * (report.NOTE - 1)}…",
    ]
    assert report.summary(result)["agents"][5]["notes"] == [cached, "its rate was not steady", "x" * 999]
    many = judged(*(agent(f"web{n}", epoch(final={"notes": [f"note {chr(97 + n)}"]})) for n in range(12)))
    assert report.table(many).splitlines()[-4:-2] == ["web9: note j", "and 2 more notes, see summary.json"]


def test_notes_that_differ_in_figures_only_are_put_together_where_there_are_too_many() -> None:
    """Ten agents' figures are shown; of more those of the first, so that other notes find room."""

    def below(number: int) -> list[str]:
        noted = [
            agent(f"web{n}", epoch(final={"notes": [f"its disk wrote {n}.5 times what it gave it", "unsteady"]}))
            for n in range(number)
        ]
        return report.table(judged(*noted)).splitlines()[number + 5 : -2]

    assert below(2) == [
        "web0: its disk wrote 0.5 times what it gave it",
        "web0, web1: unsteady",
        "web1: its disk wrote 1.5 times what it gave it",
    ]
    assert below(30) == [
        "web0, web1, web2 and 27 more: its disk wrote 0.5 times what it gave it (the figures are those of web0)",
        "web0, web1, web2 and 27 more: unsteady",
    ]


def test_what_an_agent_says_of_its_figures_is_that_of_the_process_whose_word_counts() -> None:
    """The last one's; of an agent without a final word nothing but the facts of its last start is known."""
    first = epoch(name="a" * 16, final={"honesty": {"steady": True}, "notes": ["first"]})
    second = epoch(name="b" * 16, final={"honesty": {"steady": False, "io_used": "direct"}, "notes": ["second"]})
    second = replace(second, start=word(0, "start", facts={"kernel": "6.19"}))
    both = agent("alecto", first, second)
    lost = agent("megaera", epoch())
    summary = report.summary(judged(both, lost, agent("tisiphone", first), agent("idle")))
    said = [(one["honesty"], one["notes"], one["facts"]) for one in summary["agents"]]
    assert said == [
        ({"steady": False, "io_used": "direct"}, ["second"], {"kernel": "6.19"}),
        ({}, [], {"kernel": "6.18", "cpus": 2}),
        ({"steady": True}, ["first"], {"kernel": "6.18", "cpus": 2}),
        ({}, [], {}),
    ]
    assert summary["fleet"]["steady_agents"] == 1


def test_liveness_is_in_the_summary() -> None:
    """Each change of health with its instant and the silence before it."""
    changes = (Transition(1, 1.79e9, "late", 10.5), Transition(1, 1.79e9 + 2, "recovered", 12.3456))
    result = judged(agent("alecto", epoch(final={}), liveness=changes))
    assert report.summary(result)["agents"][0]["liveness"] == [
        {"at": "2026-09-21T14:13:20.000Z", "health": "late", "silent_seconds": 10.5},
        {"at": "2026-09-21T14:13:22.000Z", "health": "recovered", "silent_seconds": 12.346},
    ]


def test_percentiles_of_the_fleet_come_from_merged_histograms() -> None:
    """Ten slow writes of one agent among ninety quick ones of another are the fleet's p95, not an average."""
    quick = epoch(final={"write_histogram": histogram(*[0.001] * 90)})
    slow = epoch(final={"write_histogram": histogram(*[0.1] * 10)})
    latency = report.summary(judged(agent("a", quick), agent("b", slow)))["fleet"]["write_latency_seconds"]
    assert latency["p50"] == pytest.approx(0.001, rel=0.01)
    assert latency["p95"] == pytest.approx(0.1, rel=0.01)
    assert latency["max"] == 0.1


def test_latencies_of_a_lost_agent_come_from_its_samples() -> None:
    """What was measured before the loss is not thrown away; samples beside a final word are not counted twice."""
    rows = run(agent("alecto", epoch()), agent("megaera", epoch(final={"write_histogram": histogram(0.5)})))
    measured = {name: histogram(value) for name, value in zip(HISTOGRAMS, (0.2, 0.3, 0.4))}
    samples = [{"agent": name, "epoch": "0" * 16, **measured} for name in ("alecto", "alecto", "megaera")]
    result = report.judge(rows, samples)
    assert result.agents[0].reads.quantile(0.5) == pytest.approx(0.4, rel=0.01)
    assert (result.agents[0].writes.count, result.agents[1].writes.count) == (2, 1)
    assert result.agents[0].fsyncs.quantile(0.5) == pytest.approx(0.3, rel=0.01)


def test_the_summary_has_the_contracts_keys() -> None:
    """Keys of summary.json may be added, never renamed."""
    summary = report.summary(judged(agent("alecto", epoch(final={}))))
    assert set(summary) >= {
        *("schema", "run_id", "verdict", "reason", "started_at", "seconds", "parameters", "fleet", "agents"),
    }
    assert summary["schema"] == 1
    assert summary["started_at"] == "2026-09-21T14:13:20.000Z"
    assert set(summary["fleet"]) >= {
        *("agents_expected", "agents_finished", "written_bytes", "rollovers", "throughput_bytes_per_second"),
        *("start_skew_seconds", "write_latency_seconds", "fsync_latency_seconds", "read_bytes", "read_latency_seconds"),
        *("median_throughput_bytes_per_second", "slow_agents", "steady_agents"),
    }
    assert set(summary["agents"][0]) >= {
        *("name", "host", "verdict", "reason", "epochs", "events_issued", "events_stored", "written_bytes"),
        *("rollovers", "seconds", "throughput_bytes_per_second", "write_latency_seconds", "fsync_latency_seconds"),
        *("device_written_bytes", "cleanup", "read_bytes", "read_latency_seconds", "ramp_bytes", "slow"),
        *("below_median_ratio", "honesty", "notes", "facts"),
    }
    assert set(summary["fleet"]["write_latency_seconds"]) == {"p50", "p95", "p99", "p999", "max"}


def test_the_table_fits_120_columns_with_the_longest_names_and_largest_figures() -> None:
    """Long names give way, figures don't."""
    huge = {
        "written_bytes": 10**16,
        "seconds": 604800.0,
        "write_histogram": histogram(0.000001, 3599.0),
        "fsync_histogram": histogram(3599.0),
        "verdict": "DATA_CORRUPTION",
        "reason": "",
    }
    final = {key: value for key, value in huge.items() if key != "written_bytes"}
    rows = [agent("n" * 64, epoch(final=final, rollovers=10**7), host="h" * 255), agent("b", epoch(), host="")]
    text = report.table(judged(*rows))
    lines = text.splitlines()
    assert max(len(line) for line in lines[:-1]) <= 120
    assert "n…" in text
    assert "DATA_CORRUPTION" in text
    assert "3599000" in text


def test_the_table_is_aligned_and_reads_well() -> None:
    """The general statistics as a user sees them."""
    text = report.table(judged(agent("alecto", epoch(final={})), agent("megaera", epoch())))
    assert text == (
        "                chunk                          write   write   write   fsync   fsync   fsync\n"
        "agent    host      MB  MB/s    GB  rollovers  p50 ms  p99 ms  max ms  p50 ms  p99 ms  max ms  verdict\n"
        "--------------------------------------------------------------------------------------------------------\n"
        "alecto   host1     20   1.0  0.06          3    2.01    3.00    3.00    10.0    10.0    10.0  PASS\n"
        "megaera  host1     20   4.9  0.06          3       -       -       -       -       -       -  INCOMPLETE\n"
        "--------------------------------------------------------------------------------------------------------\n"
        "fleet                   2.0  0.12          6    2.01    3.00    3.00    10.0    10.0    10.0  INCOMPLETE\n"
        "alecto is slow: 1.0 MB/s, 66 % below the fleet's median\n"
        "\n"
        "INCOMPLETE: 1 of 2 agents finished; lost: megaera"
    )


def test_csv_files_have_a_header_and_a_row_each() -> None:
    """Histograms become counts and percentiles."""
    row = {"agent": "alecto", "host": "h,1", "epoch": "0" * 16, **event(3, "sample")}
    file = io.StringIO()
    assert report.write_samples([row], file) == 1
    head, line = file.getvalue().splitlines()
    assert head.startswith("agent,host,epoch,seq,t_mono_ns,t_wall,interval_s,written_bytes,")
    assert line.startswith('alecto,"h,1",0000000000000000,3,')
    assert "histogram" not in head
    assert report.write_rollovers([], io.StringIO()) == 0


def test_columns_are_added_at_the_end() -> None:
    """Whoever reads them by number goes on to read what they were."""
    row = {"agent": "alecto", "host": "h", "epoch": "0" * 16}
    file = io.StringIO()
    report.write_rollovers([{**row, **event(3, "rollover", ramp_bytes=4096, read_seconds=0.5)}], file)
    head, line = (text.split(",") for text in file.getvalue().splitlines())
    assert head[-3:] == ["write_max_s", "ramp_bytes", "read_seconds"]
    assert line[-3:] == ["0.003", "4096", "0.5"]
    file = io.StringIO()
    measured = {name: histogram(*(n / 1000 for n in range(1, 2001))) for name in HISTOGRAMS}
    report.write_samples([{**row, **event(3, "sample", read_bytes=7, **measured)}], file)
    head, line = (text.split(",") for text in file.getvalue().splitlines())
    assert head[14:22] == [
        *("writes", "write_p50_s", "write_p99_s", "write_max_s", "fsyncs", "fsync_p50_s", "fsync_p99_s", "fsync_max_s")
    ]
    assert head[22:] == [
        *("write_p95_s", "write_p999_s", "fsync_p95_s", "fsync_p999_s", "read_bytes", "reads"),
        *("read_p50_s", "read_p95_s", "read_p99_s", "read_p999_s", "read_max_s"),
    ]
    values = dict(zip(head, line))
    assert (values["read_bytes"], values["reads"]) == ("7", "2000")
    for what in ("write", "fsync", "read"):
        for name, value in (("p50", 1.0), ("p95", 1.9), ("p99", 1.98), ("p999", 1.998), ("max", 2.0)):
            assert float(values[f"{what}_{name}_s"]) == pytest.approx(value, rel=0.0101)


def test_what_a_host_hides_is_an_empty_cell() -> None:
    """Not the word None, and not a zero."""
    row = {"agent": "alecto", "host": "h", "epoch": "0" * 16, **event(3, "sample", host_cpu_ratio=None)}
    file = io.StringIO()
    report.write_samples([row], file)
    head, line = (text.split(",") for text in file.getvalue().splitlines())
    assert line[head.index("host_cpu_ratio")] == ""
    assert line[head.index("host_memory_used_bytes")] == "1000000000"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        *((0.000012, "0.012"), (0.000152, "0.152"), (0.00123, "1.23"), (0.0123, "12.3"), (0.1334, "133")),
        *((0.0009996, "1.00"), (0.009996, "10.0"), (0.09996, "100"), (12.3456, "12346"), (0.0, "0.000"), (None, "-")),
    ],
)
def test_latencies_have_three_significant_digits(seconds: Optional[float], shown: str) -> None:
    """And never more than three places after the point, which is a microsecond."""
    assert report._ms(seconds) == shown


def test_above_1000_gb_the_table_and_the_sentence_count_in_tb() -> None:
    """Terabytes for all lines as soon as the fleet has written one, small agents still with three digits."""
    big = epoch(final={})
    assert big.final is not None
    big = replace(big, final=replace(big.final, payload={**big.final.payload, "written_bytes": 2_345_000_000_000}))
    result = judged(agent("alecto", big), agent("megaera", epoch(final={})))
    lines = report.table(result).splitlines()
    assert lines[1].split()[4] == "TB"
    assert [line.split()[4] for line in lines[3:5]] == ["2.35", "0.000"]
    assert lines[6].split()[2] == "2.35"
    assert "2 of 2 agents finished, 2.3 TB at" in result.sentence


@pytest.mark.parametrize("by", ["the collector", "SIGTERM"])
def test_an_interrupted_run_says_so_once_whatever_the_time_of_each_agent(by: str) -> None:
    """Who was ended by the clean-up after the interruption has no trouble of its own either, who ran out of space has."""

    def stopped(seconds: float) -> EpochRows:
        return epoch(
            final={"verdict": "INCOMPLETE", "reason": f"stopped by {by} after {seconds} of 60 s", "seconds": seconds}
        )

    agents = [agent(f"web{n}", stopped(6 + n / 10)) for n in range(10)]
    result = judged(*agents, stop_reason="interrupted by the user")
    assert result.sentence == "INCOMPLETE: interrupted by the user after 6.9 of 60 s; 10 agents wrote 0.6 GB"
    full = epoch(final={"verdict": "INCOMPLETE", "reason": "stopped after 5.0 of 60 s: 1 MB are free", "seconds": 5.0})
    result = judged(*agents, agent("full", full), stop_reason="interrupted by the user")
    assert result.sentence.endswith("; stopped after 5.0 of 60 s: 1 MB are free: full")
