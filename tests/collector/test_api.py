"""The HTTP face, held against docs/protocol.md over a real database."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fury_collector import wire

from .conftest import CHUNK, EPOCH, GAMMA, NAMES, RUN, Collector, event, histogram, life, over_both_stores, ready

EVENTS = f"/api/v1/runs/{RUN}/agents/alecto/events"


GOLDEN = Path(__file__).parent / "metrics.golden"


def counts(collector: Collector) -> dict[str, int]:
    """How many events are stored of each agent."""
    run = collector.database.read_run(RUN)
    return {agent.name: sum(epoch.stored for epoch in agent.epochs) for agent in run.agents}


@over_both_stores
def test_a_batch_is_stored_and_acknowledged_with_the_contracts_keys(collector: Collector) -> None:
    """The acknowledgement has the four keys of the protocol and the events are in the database."""
    answer = collector.push("alecto", event(0, "start"), event(1, "rollover"))
    assert answer.status_code == 200
    assert answer.get_json() == {"stored": 2, "duplicates": 0, "receipt": False, "command": None}
    assert counts(collector) == {"alecto": 2, "megaera": 0, "tisiphone": 0}


@pytest.mark.parametrize("kind", ["start", "rollover", "sample", "heartbeat", "error", "final"])
@over_both_stores
def test_every_kind_comes_back_as_a_duplicate_when_sent_again(collector: Collector, kind: str) -> None:
    """Sending the same event twice stores it once, whatever its kind."""
    collector.arm_and_start()
    assert collector.push("alecto", event(0, kind)).get_json()["stored"] == 1
    assert collector.push("alecto", event(0, kind)).get_json() == {
        "stored": 0,
        "duplicates": 1,
        "receipt": kind == "final",
        "command": None,
    }
    assert counts(collector)["alecto"] == 1


@over_both_stores
def test_whole_numbers_are_the_same_body_as_their_floats(collector: Collector) -> None:
    """A sender that writes 1 where it wrote 1.0 before has not changed the event."""
    collector.push("alecto", event(0, "rollover", seconds=1, t_wall=5))
    assert collector.push("alecto", event(0, "rollover", seconds=1.0, t_wall=5.0)).get_json()["duplicates"] == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (event(3, "rollover"), event(3, "rollover", bytes=1)),
        (event(3, "rollover"), event(3, "heartbeat")),
        (event(3, "heartbeat"), event(3, "heartbeat", pending_events=9)),
        (event(3, "sample"), event(3, "sample", write_histogram=histogram(0.5))),
    ],
)
@over_both_stores
def test_the_same_key_with_another_body_is_refused_whole_and_raises_the_alarm(
    collector: Collector, first: dict[str, Any], second: dict[str, Any]
) -> None:
    """A changed body is a 409 naming the event, nothing of its batch is stored, and people are told."""
    collector.push("alecto", first)
    answer = collector.push("alecto", event(4, "rollover"), second)
    assert answer.status_code == 409
    assert answer.get_json()["field"] == "events[1].seq"
    assert counts(collector)["alecto"] == 1
    alarm = collector.state()["messages"][-1]
    assert alarm["level"] == "error"
    assert alarm["text"].startswith("ALARM: a push of alecto was refused: event 3")
    assert collector.push("alecto", event(4, "rollover")).get_json()["stored"] == 1


@over_both_stores
def test_one_number_twice_in_a_batch_counts_once_or_is_refused(collector: Collector) -> None:
    """Within a batch the same rules hold as between batches."""
    answer = collector.push("alecto", event(0, "rollover"), event(0, "rollover"))
    assert answer.get_json()["stored"] == 1
    assert answer.get_json()["duplicates"] == 1
    assert collector.push("alecto", event(1, "rollover"), event(1, "heartbeat")).status_code == 409
    assert counts(collector)["alecto"] == 1


@over_both_stores
def test_a_receipt_needs_every_event_up_to_the_final_one(collector: Collector) -> None:
    """The receipt is given with the event that closes the last gap, also when the final one came first."""
    words = life(2)
    assert collector.push("alecto", words[-1]).get_json()["receipt"] is False
    assert collector.push("alecto", *words[1:-1]).get_json()["receipt"] is False
    assert collector.push("alecto", words[0]).get_json()["receipt"] is True
    assert collector.push("alecto", words[0]).get_json()["receipt"] is True


@over_both_stores
def test_nothing_may_follow_a_final_event(collector: Collector) -> None:
    """An event after the final one, or a final one below stored events, contradicts what is stored."""
    collector.push("alecto", event(0, "final"))
    assert collector.push("alecto", event(1, "rollover")).status_code == 409
    collector.push("megaera", event(5, "rollover"))
    assert collector.push("megaera", event(3, "final")).status_code == 409


def broken(**changes: Any) -> dict[str, Any]:
    body = {**event(1, "rollover"), **changes}
    return {key: value for key, value in body.items() if value is not ...}


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (broken(seq=-1), "events[1].seq"),
        (broken(seq=1.5), "events[1].seq"),
        (broken(seq="1"), "events[1].seq"),
        (broken(seq=True), "events[1].seq"),
        (broken(seq=2**60), "events[1].seq"),
        (broken(bytes=...), "events[1].bytes"),
        (broken(bytes=2**63), "events[1].bytes"),
        (broken(seconds=-0.1), "events[1].seconds"),
        (broken(seconds=None), "events[1].seconds"),
        (broken(t_wall="now"), "events[1].t_wall"),
        (broken(kind="rolover"), "events[1].kind"),
        (broken(kind=["rollover"]), "events[1].kind"),
        (broken(color="red"), "events[1].color"),
        (broken(ramp_bytes=...), "events[1].ramp_bytes"),
        (broken(ramp_bytes=CHUNK + 1), "events[1].ramp_bytes"),
        (broken(read_seconds=...), "events[1].read_seconds"),
        (broken(read_seconds=-1), "events[1].read_seconds"),
        (event(1, "heartbeat", phase="asleep"), "events[1].phase"),
        (event(1, "final", verdict="FINE"), "events[1].verdict"),
        (event(1, "error", message="a\0b"), "events[1].message"),
        (event(1, "error", message="\ud800"), "events[1].message"),
        (event(1, "error", message="x" * 5000), "events[1].message"),
        (event(1, "start", facts=["x"]), "events[1].facts"),
        (event(1, "start", facts={"x": {}}), "events[1].facts.x"),
        (event(1, "final", honesty=None), "events[1].honesty"),
        (event(1, "final", honesty={"io_used": ["direct"]}), "events[1].honesty.io_used"),
        (event(1, "final", honesty={"x": 10**400}), "events[1].honesty.x"),
        (event(1, "final", honesty={str(n): n for n in range(201)}), "events[1].honesty"),
        (event(1, "final", notes="slow"), "events[1].notes"),
        (event(1, "final", notes=["slow"] * 21), "events[1].notes"),
        (event(1, "final", notes=["slow", None]), "events[1].notes[1]"),
        (event(1, "final", notes=["x" * 1001]), "events[1].notes[0]"),
        (event(1, "final", ramp_bytes=None), "events[1].ramp_bytes"),
        (event(1, "final", read_bytes=-1), "events[1].read_bytes"),
        (event(1, "final", read_histogram={}), "events[1].read_histogram.gamma"),
        (event(1, "sample", read_bytes=None), "events[1].read_bytes"),
        (event(1, "sample", read_histogram={}), "events[1].read_histogram.gamma"),
        (event(1, "sample", write_histogram={}), "events[1].write_histogram.gamma"),
        (event(1, "sample", write_histogram={**histogram(1.0), "count": 7}), "events[1].write_histogram.count"),
        (event(1, "sample", write_histogram={**histogram(1.0), "gamma": 1}), "events[1].write_histogram.gamma"),
        (event(1, "sample", write_histogram={**histogram(1.0), "min": None}), "events[1].write_histogram.min"),
        (
            event(1, "sample", fsync_histogram={**histogram(1), "buckets": {"x": 1}}),
            "events[1].fsync_histogram.buckets",
        ),
        ("rollover", "events[1]"),
        (None, "events[1]"),
    ],
)
def test_one_malformed_event_refuses_the_whole_batch(collector: Collector, bad: Any, field: str) -> None:
    """A 400 names the field in one sentence, and the good event before it is not stored either."""
    answer = collector.push("alecto", event(0, "start"), bad)
    assert answer.status_code == 400
    assert answer.get_json()["field"] == field
    assert "\n" not in answer.get_json()["error"]
    assert counts(collector)["alecto"] == 0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"v": 2, "epoch": EPOCH, "events": []}, "v"),
        ({"v": True, "epoch": EPOCH, "events": []}, "v"),
        ({"epoch": EPOCH, "events": []}, "v"),
        ({"v": 1, "epoch": "xyz", "events": [event(0, "start")]}, "epoch"),
        ({"v": 1, "epoch": EPOCH.upper(), "events": [event(0, "start")]}, "epoch"),
        ({"v": 1, "epoch": EPOCH, "events": []}, "events"),
        ({"v": 1, "epoch": EPOCH, "events": {}}, "events"),
        ({"v": 1, "epoch": EPOCH, "events": [event(n, "heartbeat") for n in range(501)]}, "events"),
        ({"v": 1, "epoch": EPOCH, "events": [event(0, "start")], "extra": 1}, "extra"),
        ([], "body"),
        (None, "body"),
    ],
)
def test_a_malformed_batch_is_refused(collector: Collector, body: Any, field: str) -> None:
    """The envelope is checked as strictly as the events."""
    answer = collector.client.post(EVENTS, data=json.dumps(body), content_type="application/json")
    assert answer.status_code == 400
    assert answer.get_json()["field"] == field


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"v": NaN}',
        b"[" * 100_000,
        b'{"v":' * 50_000,
        b'{"v": ' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_not_json_is_refused_in_json(collector: Collector, raw: bytes) -> None:
    """Broken, hostile and badly encoded bodies are a 400 with a sentence."""
    answer = collector.client.post(EVENTS, data=raw, content_type="application/json")
    assert answer.status_code == 400
    assert answer.get_json()["error"]


def test_the_wrong_path_method_type_and_size_are_told_in_json(collector: Collector) -> None:
    """404, 405, 413 and 415 carry the same kind of JSON as a refused field."""
    client = collector.client
    events = EVENTS
    big = b" " * (wire.MAX_BODY_BYTES + 1)
    for answer, status in (
        (client.get("/nowhere"), 404),
        (client.post("/api/v1/runs/other/agents/alecto/events", json={}), 404),
        (client.get("/api/v1/runs/other"), 404),
        (collector.push("nobody", event(0, "start")), 404),
        (client.get(events), 405),
        (client.post(events, data=b"{}", content_type="text/plain"), 415),
        (client.post(events, data=b"{}", content_type="application/json", headers={"Content-Encoding": "gzip"}), 415),
        (client.post(events, data=big, content_type="application/json"), 413),
    ):
        assert answer.status_code == status
        assert set(answer.get_json()) == {"error", "field"}
        assert answer.content_type == "application/json"
    assert "POST" in client.get(events).headers["Allow"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"epoch": "0"}, "epoch"),
        ({"metrics_port": 65536}, "metrics_port"),
        ({"seconds": 0}, "seconds"),
        ({"host": 7}, "host"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_malformed_ready_is_refused(collector: Collector, changes: dict[str, Any], field: str) -> None:
    """Ready is checked field by field too, and the agent stays missing."""
    answer = collector.post("agents/alecto/ready", {**ready(), **changes})
    assert answer.status_code == 400
    assert answer.get_json()["field"] == field
    assert "alecto" in collector.state()["missing"]


def test_the_state_has_the_contracts_keys(collector: Collector) -> None:
    """The controller and the page rely on these names."""
    state = collector.state()
    assert set(state) >= {
        *("run_id", "state", "reason", "elapsed_s", "total_s", "start_skew_s"),
        *("fleet", "health", "writing", "missing", "agents", "messages"),
    }
    assert set(state["fleet"]) == {"agents_expected", "written_bytes", "bytes_per_second", "rollovers"}
    assert set(state["health"]) == {"waiting", "green", "late", "suspect", "lost", "finished"}
    assert set(state["agents"][0]) == {
        *("name", "host", "health", "phase", "written_bytes", "bytes_per_second"),
        *("rollovers", "verdict", "reason", "receipt"),
    }
    assert set(state["messages"][0]) == {"n", "t_wall", "level", "text"}


def test_service_discovery_lists_agents_from_ready_until_finished(collector: Collector) -> None:
    """Prometheus scrapes an agent only while it can answer."""
    assert collector.client.get("/api/v1/targets").get_json() == []
    collector.ready("alecto", metrics_address="10.0.0.2")
    collector.ready("megaera", metrics_address="fd00::2")
    assert collector.client.get("/api/v1/targets").get_json() == [
        {"targets": ["10.0.0.2:41231"], "labels": {"agent": "alecto", "host": "host1"}},
        {"targets": ["[fd00::2]:41231"], "labels": {"agent": "megaera", "host": "host1"}},
    ]
    collector.arm_and_start()
    collector.push("alecto", *life())
    left = collector.client.get("/api/v1/targets").get_json()
    assert [target["labels"]["agent"] for target in left] == list(NAMES[1:])


def told(collector: Collector) -> str:
    """The collector's own metrics, without those of its process and without what a clock made."""
    text = collector.client.get("/metrics").get_data(as_text=True)
    varying = ("fury_collector_push_duration_seconds_bucket", "fury_collector_push_duration_seconds_sum")
    lines = [line for line in text.splitlines() if "process_" not in line and not line.startswith(varying)]
    return "\n".join(lines) + "\n"


def test_the_exposition_is_the_golden_one(collector: Collector) -> None:
    """A change of that file is a change of the contract with dashboards: names, help texts, labels, no _created series.

    The run id is on the info series only.
    """
    collector.arm_and_start()
    for name in NAMES:
        collector.push(name, event(0, "start"))
    collector.push("alecto", event(1, "heartbeat", pending_events=7))
    collector.clock.now += 2.5
    collector.push("megaera", event(1, "heartbeat", pending_events=2))
    collector.push("tisiphone", event(1, "final", verdict="DISK_ERROR", reason="x"))
    collector.push("tisiphone", {})
    assert told(collector) == GOLDEN.read_text()
    assert "process_open_fds " in collector.client.get("/metrics").get_data(as_text=True)


def test_what_is_pending_and_silent_ends_with_the_run(collector: Collector) -> None:
    """Nothing is pending of who is through, nobody who has finished is silent."""
    collector.arm_and_start()
    collector.push("alecto", event(0, "start"), event(1, "heartbeat", pending_events=7))
    collector.clock.now += 3
    assert "fury_collector_events_pending 7.0" in told(collector)
    collector.push("alecto", event(2, "heartbeat", pending_events=6))
    silent = float(told(collector).split("\nfury_collector_silence_seconds ")[1].split()[0])
    assert 3 <= silent < 10, "of those who were heard last at the start"
    collector.push("alecto", event(3, "final"))
    for name in NAMES[1:]:
        collector.push(name, event(0, "start"), event(1, "final"))
    collector.clock.now += 3
    assert "fury_collector_events_pending 0.0" in told(collector)
    assert "fury_collector_silence_seconds 0.0" in told(collector)
    assert float(told(collector).split("\nfury_collector_start_skew_seconds ")[1].split()[0]) == pytest.approx(0.0004)


def test_refused_and_repeated_pushes_are_counted(collector: Collector) -> None:
    """The counters tell refused batches and duplicates apart."""
    collector.push("alecto", event(0, "start"))
    collector.push("alecto", event(0, "start"))
    collector.push("alecto", event(0, "rollover"))
    collector.push("alecto", {})
    text = collector.client.get("/metrics").get_data(as_text=True)
    assert "fury_collector_pushes_total 2.0" in text
    assert "fury_collector_events_duplicate_total 1.0" in text
    assert "fury_collector_batches_refused_total 2.0" in text


def test_health_and_root_answer(collector: Collector) -> None:
    """A balancer and a curious person both get an answer."""
    assert collector.client.get("/healthz").status_code == 200
    assert RUN in collector.client.get("/").get_data(as_text=True)


def test_written_bytes_and_rates_come_from_the_heartbeats(collector: Collector) -> None:
    """The fleet's rate is the sum of what the agents' own clocks say."""
    collector.arm_and_start()
    for name in NAMES:
        collector.push(name, event(0, "start"), event(1, "heartbeat"), event(2, "heartbeat"))
    fleet = collector.state()["fleet"]
    assert fleet["bytes_per_second"] == pytest.approx(3 * CHUNK)
    assert fleet["written_bytes"] == 3 * 2 * CHUNK
    assert GAMMA > 1


def test_a_host_that_hides_its_cpu_and_memory_is_told_as_null(collector: Collector) -> None:
    """The three figures of the host may be null in a sample, no other may, and a repetition is still a duplicate."""
    hidden = dict.fromkeys(("host_cpu_ratio", "host_memory_used_bytes", "host_memory_total_bytes"))
    sample = event(0, "sample", **hidden)
    assert collector.push("alecto", sample).get_json()["stored"] == 1
    assert collector.push("alecto", sample).get_json()["duplicates"] == 1
    assert [row["host_cpu_ratio"] for row in collector.database.samples(1)] == [None]
    for name in ("agent_cpu_ratio", "agent_rss_bytes", "disk_free_bytes", "written_bytes"):
        answer = collector.push("alecto", event(1, "sample", **{name: None}))
        assert (answer.status_code, answer.get_json()["field"]) == (400, f"events[0].{name}")


def test_what_was_read_back_and_what_an_agent_says_of_its_figures_is_stored_once(collector: Collector) -> None:
    """As much of it as is allowed; a repetition is still a duplicate."""
    words = [
        event(0, "rollover", ramp_bytes=CHUNK, read_seconds=0.25),
        event(1, "sample", read_bytes=CHUNK, read_histogram=histogram(0.004, 0.005)),
        event(
            2,
            "final",
            honesty={"io_used": "direct", "steady": None, "page_cache_ratio": 0.5, "handed_bytes": CHUNK, "ok": True},
            notes=["x" * 1000] * 20,
        ),
    ]
    assert collector.push("alecto", *words).get_json()["stored"] == 3
    assert collector.push("alecto", *words).get_json()["duplicates"] == 3
    assert [row["read_seconds"] for row in collector.database.rollovers(1)] == [0.25]
    assert [row["read_histogram"] for row in collector.database.samples(1)] == [words[1]["read_histogram"]]
    assert collector.push("alecto", {**words[0], "read_seconds": None}).status_code == 409


def test_an_agent_may_be_ready_for_the_longest_time_with_the_longest_ramp(collector: Collector) -> None:
    """Its seconds include both."""
    assert collector.ready("alecto", seconds=604_800 + 86_400).status_code == 200
    assert collector.ready("alecto", seconds=604_800 + 86_401).status_code == 400


def test_the_state_says_how_many_agents_write_and_counts_no_finished_one_as_green(collector: Collector) -> None:
    """Every agent is in exactly one state of health; who has delivered everything does not write."""
    collector.arm_and_start()
    assert (collector.state()["writing"], collector.state()["health"]["green"]) == (0, 3)
    for name in NAMES:
        collector.push(name, event(0, "start"))
    assert collector.state()["writing"] == 3
    collector.push("alecto", *life()[1:])
    collector.push("megaera", event(1, "heartbeat", phase="draining"))
    collector.ready("alecto")
    collector.push("alecto", life()[1])
    collector.pass_time(1)
    state = collector.state()
    assert state["writing"] == 1
    assert state["health"] == {"waiting": 0, "green": 2, "late": 0, "suspect": 0, "lost": 0, "finished": 1}
