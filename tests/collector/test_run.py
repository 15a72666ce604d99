"""The life of a run under a clock the test holds: barrier, start, liveness, end, restart."""

from __future__ import annotations

import statistics
import time

import pytest
import sqlalchemy as sa

from fury_collector import wire
from fury_collector.run import Run

from .conftest import CHUNK, EPOCH, NAMES, RUN, Clock, Collector, Open, event, life, over_both_stores, plan, ready

OTHER = "00000000000000bb"


def texts(collector: Collector) -> list[str]:
    return [message["text"] for message in collector.state()["messages"]]


def health(collector: Collector) -> dict[str, str]:
    return {agent["name"]: agent["health"] for agent in collector.state()["agents"]}


def settle(collector: Collector) -> None:
    """Bring to disk what the run has to record, as the server does after every tick."""
    written = collector.app.extensions["fury_recorder"].flush()
    assert written is not None
    written.result(10)


def beat(collector: Collector, *names: str) -> None:
    """One more heartbeat of each named agent, at the clock's time."""
    for name in names:
        assert collector.push(name, event(int(collector.clock.now * 10), "heartbeat")).status_code == 200


def test_the_barrier_names_who_is_missing_and_opens_for_all_at_one_instant(collector: Collector) -> None:
    """Every agent is told the same instant, 0.8 s and 10 ms an agent after the last one was ready."""
    answer = collector.ready("alecto").get_json()
    assert answer == {
        "state": "waiting",
        "missing": ["megaera", "tisiphone"],
        "missing_count": 2,
        "ask_in_s": 0.5,
        "collector_mono_s": collector.clock.now,
        "held_s": 0.0,
    }
    collector.ready("megaera")
    assert collector.state()["state"] == "arming"
    last = collector.ready("tisiphone").get_json()
    assert last["state"] == "start"
    assert last["start_in_s"] == pytest.approx(0.83)
    assert collector.state()["state"] == "starting"
    collector.clock.now += 0.4
    other = collector.ready("alecto").get_json()
    assert other["collector_mono_s"] + other["start_in_s"] == pytest.approx(last["collector_mono_s"] + 0.83)
    collector.pass_time(2)
    assert collector.state()["state"] == "running"
    assert collector.ready("megaera").get_json()["start_in_s"] < 0


def test_a_large_fleet_asks_less_often_and_has_time_to_ask_again_before_the_start(collector_at: Open) -> None:
    """At most 2,000 questions a second together; the start is further ahead than the next question."""
    names = tuple(f"agent-{number:05}" for number in range(6000))
    collector = collector_at(plan(names))
    run: Run = collector.app.extensions["fury_run"]
    words = wire.ready(ready())
    took: list[float] = []
    for name in names:
        began = time.perf_counter()
        answer = run.ready(name, words)
        took.append(time.perf_counter() - began)
        if name == names[0]:
            assert (answer["ask_in_s"], answer["missing_count"], len(answer["missing"])) == (3.0, 5999, 50)
    assert answer["state"] == "start"
    assert answer["start_in_s"] == pytest.approx(5.0)
    # What an answer costs does not grow with the fleet: the last one, which opens the barrier, looks at everybody once.
    assert statistics.median(took) < 0.0002


def test_the_barrier_does_not_open_over_an_agent_that_fell_silent(collector: Collector) -> None:
    """Being ready once is not being ready: who has not asked for 10 s is missing again."""
    collector.ready("alecto")
    for _ in range(24):
        collector.pass_time(0.5)
        collector.ready("megaera")
    answer = collector.ready("tisiphone").get_json()
    assert answer["missing"] == ["alecto"]
    assert health(collector)["alecto"] == "late"
    assert collector.ready("alecto").get_json()["state"] == "start"


def test_a_barrier_that_times_out_aborts_the_run_and_names_the_missing(collector: Collector) -> None:
    """Those who wait are told to abort and why."""
    for _ in range(601):
        collector.pass_time(0.5)
        collector.ready("alecto")
    state = collector.state()
    assert state["state"] == "aborted"
    assert state["reason"] == "not all agents were ready within 300 s; never ready: megaera, tisiphone"
    answer = collector.ready("alecto").get_json()
    assert answer["state"] == "abort"
    assert "megaera" in answer["reason"]
    assert collector.ready("megaera").get_json()["state"] == "abort"


def test_an_agent_that_refuses_before_the_start_aborts_the_run(collector: Collector) -> None:
    """The reason names who and why, and the others are told to abort."""
    collector.ready("megaera")
    collector.push("alecto", event(0, "final", verdict="PRECONDITION", reason="needs 2.0 GB, has 1.0 GB", seconds=0.0))
    state = collector.state()
    assert state["state"] == "aborted"
    assert state["reason"] == "alecto ended before the start: PRECONDITION: needs 2.0 GB, has 1.0 GB"
    assert collector.ready("megaera").get_json()["state"] == "abort"
    assert collector.push("megaera", event(0, "heartbeat")).get_json()["command"] == "stop"


def test_an_aborted_run_waits_for_the_ready_ones_to_say_their_last_word(collector: Collector) -> None:
    """The collector may exit 3 s after the abort, a little later for those who still talk, never more than 15 s."""
    collector.ready("megaera")
    collector.push("alecto", event(0, "final", verdict="PRECONDITION", reason="x"))
    collector.pass_time(4)
    assert not collector.run.over
    collector.push("megaera", event(0, "final", verdict="INCOMPLETE", reason="aborted"))
    assert collector.run.over


def test_a_second_process_of_a_running_agent_is_refused(collector: Collector) -> None:
    """Two live processes under one name are a mistake that the second one hears of."""
    collector.arm_and_start()
    collector.push("alecto", event(0, "start"))
    answer = collector.ready("alecto", OTHER)
    assert answer.status_code == 409
    assert "another live process of alecto" in answer.get_json()["error"]


def test_a_crashed_agent_comes_back_as_a_new_process_and_starts_at_once(collector: Collector) -> None:
    """After the old process has been silent for 10 s the new one is let in, and the old one no more."""
    collector.arm_and_start()
    collector.push("alecto", event(0, "start"), event(1, "rollover"))
    collector.pass_time(11)
    answer = collector.ready("alecto", OTHER).get_json()
    assert answer["state"] == "start"
    assert answer["start_in_s"] < -10
    collector.push("alecto", *life(2), epoch=OTHER)
    assert collector.ready("alecto").status_code == 409
    alecto = collector.state()["agents"][0]
    assert alecto["health"] == "finished"
    assert alecto["rollovers"] == 3
    assert alecto["written_bytes"] == 3 * CHUNK


def test_silence_is_judged_in_steps_and_a_late_beat_restores(collector: Collector) -> None:
    """Late after 10 s, suspect after 20 s, lost after 40 s, green again with one beat; all of it is told."""
    collector.arm_and_start()
    beat(collector, *NAMES)
    seen: list[str] = []
    for _ in range(41):
        collector.pass_time(1)
        beat(collector, "alecto", "megaera")
        if not seen or seen[-1] != health(collector)["tisiphone"]:
            seen.append(health(collector)["tisiphone"])
    assert seen == ["green", "late", "suspect", "lost"]
    beat(collector, "tisiphone")
    assert health(collector)["tisiphone"] == "green"
    told = [text for text in texts(collector) if text.startswith("tisiphone")]
    assert told[-4:] == [
        "tisiphone is late: nothing heard for 10.5 s",
        "tisiphone is suspect: nothing heard for 20.5 s",
        "tisiphone is lost: nothing heard for 40.5 s",
        "tisiphone is back after 41.0 s of silence",
    ]


def test_silence_of_all_at_once_is_called_collector_or_network(collector: Collector) -> None:
    """Where nobody is heard any more, the likely cause is named instead of everybody's death."""
    collector.arm_and_start()
    beat(collector, *NAMES)
    collector.pass_time(25)
    told = texts(collector)
    assert "nothing heard from any of 3 agents for 10.5 s: collector or network" in told
    assert not [text for text in told if "suspect" in text]


def test_many_agents_that_fall_silent_together_are_told_in_one_line(collector_at: Open) -> None:
    """A rack that goes dark does not scroll the terminal away."""
    names = tuple(f"web{n}" for n in range(40))
    collector = collector_at(plan(names))
    collector.arm_and_start(names)
    beat(collector, *names)
    collector.pass_time(8)
    beat(collector, "web0")
    collector.pass_time(4)
    late = [text for text in texts(collector) if "late" in text]
    assert late == [
        "39 agents are late: nothing heard for 10.5 s: "
        "web1, web2, web3, web4, web5, web6, web7, web8, web9, web10 and 29 more"
    ]


def test_a_ready_agent_that_stays_silent_is_judged_too(collector: Collector) -> None:
    """An agent that never started writing is lost like any other, and the run ends without it."""
    collector.arm_and_start()
    for _ in range(90):
        collector.pass_time(0.5)
        beat(collector, "alecto", "megaera")
    assert health(collector)["tisiphone"] == "lost"
    collector.push("alecto", event(10**6, "final"))
    assert collector.state()["state"] == "running"


def test_time_in_which_the_collector_itself_stood_still_is_nobodys_silence(collector: Collector) -> None:
    """After a SIGSTOP of the collector everyone gets that time back."""
    collector.arm_and_start()
    beat(collector, *NAMES)
    collector.clock.now += 60
    collector.run.tick()
    assert set(health(collector).values()) == {"green"}
    assert any("stood still for 60.0 s" in text for text in texts(collector))


def test_the_run_goes_from_running_to_draining_to_finished(collector: Collector) -> None:
    """Draining begins when the last one stops writing, the end is the last receipt, and the exit comes 3 s later."""
    collector.arm_and_start()
    for index, name in enumerate(NAMES):
        collector.push(name, event(0, "start", start_collector_mono_s=8001.5 + index / 1000))
    assert collector.state()["start_skew_s"] == pytest.approx(0.002 + 0.0004)  # half a round trip at either end
    assert "3 of 3 agents started within 2.4 ms" in texts(collector)
    for name in NAMES:
        collector.push(name, *life()[1:-1])
    assert collector.state()["state"] == "draining"
    for name in NAMES:
        collector.push(name, life()[-1])
    state = collector.state()
    assert state["state"] == "finished"
    assert state["health"]["finished"] == 3
    assert state["agents"][0]["verdict"] == "PASS"
    assert not collector.run.over
    collector.pass_time(3.5)
    assert collector.run.over
    assert collector.state()["elapsed_s"] == pytest.approx(state["elapsed_s"])


def test_a_run_whose_last_agents_are_lost_finishes_and_names_them(collector: Collector) -> None:
    """A dead host does not keep the run open for ever."""
    collector.arm_and_start()
    for name in NAMES:
        collector.push(name, event(0, "start"))
    for name in NAMES[:2]:
        collector.push(name, *life()[1:])
    collector.pass_time(130)
    assert collector.state()["state"] == "finished"
    assert texts(collector)[-1] == "the run has finished: 2 of 3 agents delivered everything; lost: tisiphone"


def test_a_stop_reaches_every_agent_with_its_next_answer(collector: Collector) -> None:
    """Also one that is still at the barrier, and the reason is kept."""
    collector.arm_and_start()
    collector.push("alecto", event(0, "start"))
    assert collector.post("stop", {"reason": "Ctrl-C"}).status_code == 200
    assert collector.push("alecto", event(1, "rollover")).get_json()["command"] == "stop"
    assert collector.ready("megaera").get_json()["state"] == "abort"
    assert collector.state()["reason"] == "Ctrl-C"
    assert collector.post("stop", {}).status_code == 400


def test_a_stop_before_the_start_aborts_the_run(collector: Collector) -> None:
    """There is nothing to drain then."""
    collector.post("stop", {"reason": "Ctrl-C"})
    assert collector.state()["state"] == "aborted"
    assert collector.ready("alecto").get_json()["state"] == "abort"


def test_close_lets_the_collector_exit_at_once(collector: Collector) -> None:
    """The controller need not wait for the last 3 s."""
    assert not collector.run.over
    collector.post("close", {})
    assert collector.run.over


def test_rollovers_are_printed_at_most_once_a_second_and_summed_up(collector: Collector) -> None:
    """A fast fleet does not flood the terminal, and rollovers are not kept as messages."""
    collector.arm_and_start()
    before = len(collector.lines)
    collector.push("alecto", event(0, "start"), event(1, "rollover", chunk=0))
    collector.pass_time(1.2)
    for name in NAMES:
        collector.push(name, *(event(2 + n, "rollover") for n in range(4)))
    collector.pass_time(1.2)
    assert collector.lines[before + 1 :] == [
        "alecto rolled over chunk 0: 20 MB in 0.25 s, 80.0 MB/s",
        "12 rollovers in the last second (alecto 4, megaera 4, tisiphone 4)",
    ]
    assert not [text for text in texts(collector) if "roll" in text]


def test_errors_of_an_agent_are_shown_but_not_without_end(collector: Collector) -> None:
    """After 20 the rest is only stored."""
    collector.push("alecto", *(event(n, "error") for n in range(50)))
    assert len([line for line in collector.lines if line.startswith("alecto reports")]) == 20


@over_both_stores
def test_a_restarted_collector_takes_the_run_up_where_it_was(collector_at: Open) -> None:
    """Start instant, counts, receipts and messages are those of before, and everyone gets a full window."""
    clock = Clock()
    first = collector_at(clock=clock)
    first.arm_and_start()
    start = first.run.start_mono_s
    first.push("alecto", *life())
    first.push("megaera", event(0, "start"), event(1, "rollover"), event(2, "heartbeat"))
    before = first.state()
    first.pass_time(9)
    settle(first)
    clock.now += 60
    second = collector_at(clock=clock)
    after = second.state()
    assert second.run.start_mono_s == start
    assert after["state"] == "running"
    assert health(second) == {"alecto": "finished", "megaera": "green", "tisiphone": "green"}
    for key in ("written_bytes", "rollovers", "phase", "receipt", "verdict"):
        assert [agent[key] for agent in after["agents"]] == [agent[key] for agent in before["agents"]]
    assert after["messages"][: len(before["messages"])] == before["messages"]
    second.pass_time(9)
    assert health(second)["megaera"] == "green"
    assert second.push("megaera", event(1, "rollover")).get_json()["duplicates"] == 1
    assert second.ready("tisiphone").get_json()["start_in_s"] == pytest.approx(start - clock.now if start else 0)
    for name in NAMES[1:]:
        second.push(name, *life(), epoch="0123456789abcdef" if name == "tisiphone" else OTHER)
    assert health(second)["tisiphone"] == "finished"


@over_both_stores
def test_rollovers_of_the_ramp_do_not_count_before_and_after_a_restart(collector_at: Open) -> None:
    """They are told as they come and make a rate, but of what was written for good they are no part."""
    clock = Clock()
    first = collector_at(clock=clock)
    first.arm_and_start()
    ramp = [event(0, "start"), event(1, "rollover", ramp_bytes=CHUNK), event(2, "rollover", ramp_bytes=CHUNK - 4096)]
    first.push("alecto", *ramp)
    before = first.state()["agents"][0]
    assert (before["rollovers"], before["written_bytes"]) == (1, 4096)
    assert before["bytes_per_second"] == pytest.approx(CHUNK)
    settle(first)
    second = collector_at(clock=clock)
    after = second.state()["agents"][0]
    assert (after["rollovers"], after["written_bytes"]) == (1, 4096)
    second.push("alecto", event(3, "heartbeat", written_bytes=2 * CHUNK))
    second.push("alecto", event(4, "rollover"))
    assert second.state()["agents"][0]["bytes_per_second"] == pytest.approx(CHUNK)
    assert second.state()["agents"][0]["rollovers"] == 2


def test_a_collector_restarted_at_the_barrier_waits_until_it_has_heard_everyone_again(collector_at: Open) -> None:
    """Who was ready before the restart may be dead by now."""
    clock = Clock()
    first = collector_at(clock=clock)
    first.ready("alecto")
    first.ready("megaera")
    second = collector_at(clock=clock)
    assert second.ready("tisiphone").get_json()["missing"] == ["alecto", "megaera"]
    second.ready("alecto")
    assert second.ready("megaera").get_json()["state"] == "start"


@over_both_stores
def test_a_finished_run_still_takes_late_events(collector_at: Open) -> None:
    """What was fetched over ssh is ingested by the same path after the end."""
    first = collector_at(plan(("alecto",)))
    first.arm_and_start(("alecto",))
    first.push("alecto", event(0, "start"))
    first.pass_time(130)
    assert first.state()["state"] == "finished"
    settle(first)
    second = collector_at(plan(("alecto",)))
    assert second.state()["state"] == "finished"
    assert second.push("alecto", *life()).get_json()["receipt"] is True
    assert second.database.read_run(RUN).agents[0].epochs[0].receipt


def test_after_a_reboot_the_wall_clock_finds_the_start_again(collector_at: Open) -> None:
    """Another boot has another monotonic clock; the run's elapsed time goes on all the same."""
    first = collector_at()
    first.arm_and_start()
    first.push("alecto", event(0, "start"))
    settle(first)
    elapsed = first.state()["elapsed_s"]

    def rebooted(connection: sa.Connection) -> None:
        connection.exec_driver_sql("UPDATE runs SET boot_id = 'another'")

    first.database.change(rebooted).result(10)
    wall = first.clock.now + 1e9
    second = collector_at(clock=Clock(20.0), wall_ahead=wall + 30 - 20.0)
    assert second.state()["elapsed_s"] == pytest.approx(elapsed + 30)


def test_what_could_not_be_recorded_is_recorded_later(collector: Collector) -> None:
    """While the database refuses nobody is told to start; afterwards nothing of the run is missing in it."""

    def run_sql(text: str) -> None:
        def work(connection: sa.Connection) -> None:
            connection.exec_driver_sql(text)

        collector.database.change(work).result(10)

    collector.ready("alecto")
    run_sql("CREATE TRIGGER full BEFORE INSERT ON messages BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
    for name in NAMES[1:]:
        refused = collector.ready(name)
        assert refused.status_code == 503
        assert refused.headers["Retry-After"] == "1"
        assert "disk is full" in refused.get_json()["error"]
    run_sql("DROP TRIGGER full")
    assert collector.ready("tisiphone").get_json()["state"] == "start"
    rows = collector.database.read_run(RUN)
    assert [agent.ready is not None for agent in rows.agents] == [True, True, True]
    assert [message.n for message in rows.messages] == list(range(rows.next_message))
    assert rows.next_message == 5
    assert rows.state.start_mono_s == collector.run.start_mono_s


def test_a_process_that_names_its_crashed_predecessor_takes_over_at_once(collector: Collector) -> None:
    """No need to wait until the old one has been silent for 10 s; the start is in the past, so it starts at once."""
    collector.arm_and_start()
    collector.push("alecto", event(0, "start"), event(1, "rollover"))
    assert collector.ready("alecto", OTHER, after="f" * 16).status_code == 409
    assert collector.ready("alecto", OTHER, after=None).status_code == 409
    answer = collector.ready("alecto", OTHER, after=EPOCH)
    assert answer.status_code == 200
    assert answer.get_json()["state"] == "start"
    assert answer.get_json()["start_in_s"] < 0
    assert "alecto restarted (1x)" in texts(collector)
    assert collector.ready("alecto", EPOCH).status_code == 409
    third = "00000000000000cc"
    assert collector.ready("alecto", third, after=OTHER).status_code == 200
    assert "alecto restarted (2x)" in texts(collector)


def test_a_newcomer_may_speak_before_it_is_admitted(collector: Collector) -> None:
    """What it pushes before it asks at the barrier does not make it one that was replaced."""
    collector.arm_and_start()
    collector.push("alecto", event(0, "start"))
    collector.push("alecto", event(0, "heartbeat", phase="armed"), epoch=OTHER)
    assert collector.ready("alecto", OTHER, after=EPOCH).get_json()["state"] == "start"


@over_both_stores
def test_what_a_predecessor_left_comes_later_and_turns_nothing_back(collector: Collector) -> None:
    """Batches of the crashed process are stored and added up; phase, rate and receipt are the new one's."""
    collector.arm_and_start()
    collector.push("alecto", event(0, "start"), event(1, "rollover"), event(2, "heartbeat", written_bytes=9 * CHUNK))
    collector.ready("alecto", OTHER, after=EPOCH)
    later = [{**word, "t_mono_ns": word["t_mono_ns"] + 10**11} for word in life()]
    collector.push("alecto", *later[:-1], epoch=OTHER)
    before = collector.state()["agents"][0]
    assert before["phase"] == "draining"
    assert before["written_bytes"] == (1 + 5) * CHUNK  # of the crashed process only what was durable
    answer = collector.push("alecto", event(3, "rollover"), event(4, "heartbeat"), event(5, "rollover")).get_json()
    assert answer["stored"] == 3
    after = collector.state()["agents"][0]
    assert (after["phase"], after["health"], after["receipt"]) == ("draining", "green", False)
    assert after["rollovers"] == before["rollovers"] + 2
    assert collector.push("alecto", later[-1], epoch=OTHER).get_json()["receipt"] is True
    assert health(collector)["alecto"] == "finished"
    assert collector.push("alecto", event(6, "rollover")).get_json()["stored"] == 1
    assert health(collector)["alecto"] == "finished"
    rows = collector.database.read_run(RUN).agents[0].epochs
    assert [(epoch.epoch, epoch.stored) for epoch in rows] == [(EPOCH, 7), (OTHER, 7)]


def test_a_final_word_that_was_left_ends_the_agent_although_a_new_process_asks(collector: Collector) -> None:
    """It crashed while it delivered: the newcomer is told that the run is over for it, and the old word counts."""
    collector.arm_and_start()
    collector.push("alecto", *life()[:-1])
    collector.ready("alecto", OTHER, after=EPOCH)
    assert collector.push("alecto", life()[-1]).get_json()["receipt"] is True
    assert collector.ready("alecto", OTHER, after=EPOCH).get_json()["state"] == "abort"
    alecto = collector.state()["agents"][0]
    assert (alecto["health"], alecto["verdict"], alecto["receipt"]) == ("finished", "PASS", True)


def test_a_process_that_wrote_on_while_nobody_answered_is_taken_for_the_newest(collector_at: Open) -> None:
    """The collector was down when it was restarted: it never asked, and its later clock says that it is the newest."""
    clock = Clock()
    first = collector_at(plan(("alecto",)), clock=clock)
    first.arm_and_start(("alecto",))
    first.push("alecto", *life()[:3])
    settle(first)
    second = collector_at(plan(("alecto",)), clock=clock)
    later = [{**word, "t_mono_ns": word["t_mono_ns"] + 10**11} for word in life()]
    second.push("alecto", *later[:4], epoch=OTHER)
    assert "alecto restarted (1x)" in texts(second)
    settle(second)
    third = collector_at(plan(("alecto",)), clock=clock)
    third.push("alecto", *later[4:], epoch=OTHER)
    assert health(third) == {"alecto": "finished"}
    assert third.state()["state"] == "finished"


def test_a_lost_agent_holds_the_run_open_until_it_could_have_delivered(collector_at: Open) -> None:
    """Its planned end and its own time to deliver; then the run is finished without it."""
    document = plan()
    document["agents"][2]["drain_seconds"] = 20
    collector = collector_at(document)
    collector.arm_and_start()
    for name in NAMES:
        collector.push(name, event(0, "start"))
    for name in NAMES[:2]:
        collector.push(name, *life()[1:])
    collector.pass_time(70)
    assert health(collector)["tisiphone"] == "lost"
    assert collector.state()["state"] == "draining"
    told = [text for text in texts(collector) if "held open" in text]
    assert told == ["lost, but possibly still writing: tisiphone; the run is held open for 39 s at most"]
    collector.pass_time(9)
    assert collector.state()["state"] == "draining"
    collector.pass_time(2)
    state = collector.state()
    assert state["state"] == "finished"
    assert state["elapsed_s"] == pytest.approx(80, abs=1)
    assert texts(collector)[-1] == "the run has finished: 2 of 3 agents delivered everything; lost: tisiphone"
    collector.pass_time(30)
    assert collector.state()["elapsed_s"] == state["elapsed_s"]


def test_a_run_is_running_while_its_lost_agents_may_write(collector: Collector) -> None:
    """Lost is what the collector knows, not what the agent does."""
    collector.arm_and_start()
    for name in NAMES:
        collector.push(name, event(0, "start"))
    collector.pass_time(50)
    assert set(health(collector).values()) == {"lost"}
    assert collector.state()["state"] == "running"
    assert [target["labels"]["agent"] for target in collector.client.get("/api/v1/targets").get_json()] == [*NAMES]


def test_all_agents_that_come_back_after_a_cut_link_end_the_run_well(collector: Collector) -> None:
    """All lost at once is the collector's or the network's: everything that was kept is delivered, nothing was ended."""
    collector.arm_and_start()
    for name in NAMES:
        collector.push(name, event(0, "start"))
    collector.pass_time(90)
    assert any("collector or network" in text for text in texts(collector))
    for name in NAMES:
        assert collector.push(name, *life()[1:]).get_json()["receipt"] is True
    state = collector.state()
    assert state["state"] == "finished"
    assert texts(collector)[-1] == "the run has finished: 3 agents delivered everything"
    settle(collector)
    assert {agent.speaker is not None for agent in collector.database.read_run(RUN).agents} == {True}


def test_a_stopped_run_is_not_held_open_to_its_planned_end(collector_at: Open) -> None:
    """A lost agent gets its time to deliver from the stop on, no more."""
    collector = collector_at(plan(seconds=3600))
    collector.arm_and_start()
    for name in NAMES:
        collector.push(name, event(0, "start"))
    collector.pass_time(50)
    collector.post("stop", {"reason": "Ctrl-C"})
    collector.pass_time(59)
    assert collector.state()["state"] == "running"
    collector.pass_time(2)
    assert collector.state()["state"] == "finished"


@over_both_stores
def test_every_change_of_health_is_recorded_with_time_and_silence(collector: Collector) -> None:
    """Green, late, suspect, lost, recovered, finished: when, and how long nothing had been heard."""
    collector.arm_and_start()
    collector.push("alecto", event(0, "start"))
    began = collector.clock.now + 1e9
    collector.pass_time(45)
    collector.push("alecto", *life()[1:])
    settle(collector)
    liveness = collector.database.read_run(RUN).agents[0].liveness
    assert [(one.health, one.silent_s) for one in liveness] == [
        ("green", 0.0),
        ("late", 10.5),
        ("suspect", 20.5),
        ("lost", 40.5),
        ("recovered", 45.0),
        ("finished", 0.0),
    ]
    assert [one.t_wall - began for one in liveness[1:]] == [10.5, 20.5, 40.5, 45.0, 45.0]


@over_both_stores
def test_who_was_silent_when_the_collector_was_restarted_recovers_with_its_first_word(collector_at: Open) -> None:
    """It gets a full window, but that it was silent is not forgotten."""
    clock = Clock()
    first = collector_at(clock=clock)
    first.arm_and_start()
    first.push("alecto", event(0, "start"))
    first.pass_time(15)
    settle(first)
    clock.now += 5
    second = collector_at(clock=clock)
    assert health(second)["alecto"] == "green"
    second.pass_time(9)
    assert health(second)["alecto"] == "green"
    second.push("alecto", event(1, "rollover"))
    settle(second)
    last = second.database.read_run(RUN).agents[0].liveness[-1]
    assert last.health == "recovered"
    assert last.silent_s == pytest.approx(29.0)
    assert "alecto is back after 29.0 s of silence" in texts(second)


@over_both_stores
def test_a_stop_is_kept_over_a_restart_of_the_collector(collector_at: Open) -> None:
    """Who has not heard of it yet hears of it from the next one."""
    clock = Clock()
    first = collector_at(clock=clock)
    first.arm_and_start()
    first.push("alecto", event(0, "start"))
    first.post("stop", {"reason": "Ctrl-C"})
    second = collector_at(clock=clock)
    assert second.push("alecto", event(1, "rollover")).get_json()["command"] == "stop"
    assert second.state()["reason"] == "Ctrl-C"


def test_a_finished_run_took_as_long_after_a_restart_as_before(collector_at: Open) -> None:
    """Its elapsed time does not go on with the clock."""
    clock = Clock()
    first = collector_at(plan(("alecto",)), clock=clock)
    first.arm_and_start(("alecto",))
    first.pass_time(10)
    first.push("alecto", *life())
    first.pass_time(1)
    settle(first)
    elapsed = first.state()["elapsed_s"]
    clock.now += 3600
    assert collector_at(plan(("alecto",)), clock=clock).state()["elapsed_s"] == pytest.approx(elapsed)


def levels(collector: Collector) -> dict[str, str]:
    """The level of each message by its text."""
    return {message["text"]: message["level"] for message in collector.state()["messages"]}


@pytest.mark.parametrize("by", ["the collector", "SIGTERM"])
def test_agents_that_end_because_the_user_stopped_the_run_raise_no_alarm(collector: Collector, by: str) -> None:
    """A thousand of them are not a thousand errors; an agent with a trouble of its own still is one."""
    collector.arm_and_start()
    for name in NAMES:
        collector.push(name, event(0, "start"))
    collector.post("stop", {"reason": "interrupted by the user"})
    told = {"verdict": "INCOMPLETE", "reason": f"stopped by {by} after 6.9 of 60 s", "seconds": 6.9}
    collector.push("alecto", event(1, "final", **told))
    collector.push("megaera", event(1, "final", verdict="DISK_ERROR", reason="fsync: EIO"))
    collector.push("tisiphone", event(1, "final", verdict="INCOMPLETE", reason="stopped after 5 of 60 s: full"))
    found = {text.split()[0]: level for text, level in levels(collector).items() if " stopped after " in text}
    assert found == {"alecto": "info", "megaera": "error", "tisiphone": "error"}


def test_an_agent_that_is_stopped_although_nobody_stopped_the_run_is_an_error(collector: Collector) -> None:
    """The same words mean trouble when they come by themselves."""
    collector.arm_and_start()
    collector.push("alecto", event(0, "start"))
    collector.push("alecto", event(1, "final", verdict="INCOMPLETE", reason="stopped by SIGTERM after 6.9 of 60 s"))
    assert [level for text, level in levels(collector).items() if "SIGTERM" in text] == ["error"]


def test_agents_that_end_because_the_run_was_aborted_raise_no_alarm(collector: Collector) -> None:
    """The one that refused is the error, and it is told once."""
    collector.ready("alecto")
    collector.ready("megaera")
    collector.push("tisiphone", event(0, "final", verdict="PRECONDITION", reason="no room", seconds=0.0))
    why = f"the collector called the run off: {collector.state()['reason']}"
    collector.push("megaera", event(0, "final", verdict="INCOMPLETE", reason=why, seconds=0.0))
    found = [(text.split()[0], level) for text, level in levels(collector).items() if level != "info"]
    assert found == [("tisiphone", "error")]


def test_a_stop_between_barrier_and_start_is_the_users_and_nobodys_fault(collector: Collector) -> None:
    """The run is aborted because it was stopped, not because the first agent obeyed."""
    for name in NAMES:
        collector.ready(name)
    assert collector.state()["state"] == "starting"
    collector.post("stop", {"reason": "interrupted by the user"})
    for name in NAMES:
        why = "the collector called the run off: the run was stopped: interrupted by the user"
        collector.push(name, event(0, "final", verdict="INCOMPLETE", reason=why, seconds=0.0))
    state = collector.state()
    assert (state["state"], state["reason"]) == (
        "aborted",
        "the run was stopped before it started: interrupted by the user",
    )
    assert "error" not in levels(collector).values()
