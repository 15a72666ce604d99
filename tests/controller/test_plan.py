"""What a run may be asked for, judged before any host is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fury_collector import wire
from fury_controller.plan import BadInput, make_plan

LOCAL: dict[str, Any] = {"ansible_connection": "local", "chunk_mb": 20, "minutes": 1}


def plan(hostvars: dict[str, dict[str, Any]], **more: Any) -> dict[str, Any]:
    """A plan over all hosts of ``hostvars``."""
    arguments: dict[str, Any] = {"agents": list(hostvars), "hostvars": hostvars, "collectors": [], "extra_vars": {}}
    return make_plan(**{**arguments, "repo": Path("/repo"), **more})


def problems(hostvars: dict[str, dict[str, Any]], **more: Any) -> list[str]:
    """What is wrong with a run over all hosts of ``hostvars``."""
    with pytest.raises(BadInput) as caught:
        plan(hostvars, **more)
    return caught.value.problems


def test_text_of_digits_is_a_number_since_extra_vars_arrive_as_text() -> None:
    """``-e chunk_mb=20`` and ``chunk_mb: 20`` mean the same."""
    made = plan({"alecto": {**LOCAL, "chunk_mb": "20", "minutes": "2"}})
    assert made["agents"]["alecto"]["config"]["chunk_mb"] == 20
    assert made["agents"]["alecto"]["config"]["seconds"] == 120


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("chunk_mb", value)
        for value in (
            "",
            " ",
            "0",
            0,
            -1,
            "-1",
            20.5,
            "20.5",
            "0x14",
            "1e3",
            "twenty",
            10**7,
            True,
            "２０",
            [20],
            "20 ",
        )
    ]
    + [("minutes", value) for value in (0, -1, "1.5", 10081, "one")]
    + [("seconds", value) for value in (0, "0", 604801)]
    + [
        ("directory", value)
        for value in ("relative", "/", "/proc", "/proc/self", "/dev/shm", "/sys", "/etc/x", "//", "/usr/..")
    ]
    + [("block_kb", value) for value in (0, 3, 6, 65540)]
    + [("keep", 0), ("keep", 1001), ("free_floor_mb", -1), ("allow_few_rollovers", "perhaps"), ("metrics_port", 65536)]
    + [("fury_collector_port", value) for value in (0, 65536, "http", "")]
    + [("fury_barrier_seconds", value) for value in (0, "soon", 86401)]
    + [("fury_slow_percent", value) for value in (0, 100, "-1", 20.5, "", "many")]
    + [("io", value) for value in ("", "mmap", "Direct", 1)]
    + [("jobs", 0), ("jobs", 65), ("rate_mb_s", 0), ("ramp_seconds", -1), ("ramp_seconds", 86401)]
    + [("files", "append"), ("verify", "md5"), ("verify", True)]
    + [("compress_percent", 101), ("dedupe_percent", -1), ("seed", -1), ("seed", 2**32)]
    + [
        ("fury_mode", "docker"),
        *(
            ("fury_grafana_url", bad)
            for bad in ("grafana:3000", "ftp://x", "http://", "http://a b", "http://u:p@x", "http://x:0")
        ),
        ("fury_base", "here"),
        ("fury_results", "results"),
        ("fury_collector_address", "http://x:1"),
    ],
)
def test_a_value_that_is_not_allowed_is_named_with_what_is(name: str, value: object) -> None:
    """Field, value and allowed range are in one sentence with an example to copy."""
    given = {**LOCAL, name: value}
    if name == "seconds":
        del given["minutes"]
    found = problems({"alecto": given})
    assert len(found) == 1
    assert found[0].startswith(f"{name}: ")
    assert "is not allowed; " in found[0]
    assert f"-e {name}" in found[0]


def test_what_is_missing_is_said() -> None:
    """Neither chunk size nor duration has a default: a stress test does not start by accident."""
    assert problems({"a": {"ansible_connection": "local", "minutes": 1}})[0].startswith("chunk_mb is missing")
    assert problems({"a": {"ansible_connection": "local", "chunk_mb": 1}})[0].startswith("minutes is missing")


def test_minutes_and_seconds_together_are_refused() -> None:
    """Which of the two should hold can't be guessed."""
    assert "both given" in problems({"a": {**LOCAL, "seconds": 5}})[0]


def test_a_misspelt_extra_var_is_an_error_with_a_suggestion() -> None:
    """Otherwise something else than asked for would run."""
    assert (
        problems({"a": LOCAL}, extra_vars={"chunk_mbs": 1})[0]
        == "chunk_mbs is not a parameter of Fury; did you mean chunk_mb?"
    )


def test_a_misspelt_inventory_variable_is_an_error_but_foreign_ones_are_not() -> None:
    """Inventories hold variables of other roles too."""
    assert "chunk_mbs (inventory, a)" in problems({"a": {**LOCAL, "chunk_mbs": 1}})[0]
    assert "ramp_secs (inventory, a)" in problems({"a": {**LOCAL, "ramp_secs": 1}})[0]
    foreign = {"nginx_port": 80, "ansible_user": "root", "speed": 10, "file": "a", "job": "backup", "seeds": []}
    assert plan({"a": {**LOCAL, **foreign}})["agents"]


def test_everything_wrong_is_said_at_once() -> None:
    """Nobody wants to mend one typo a try."""
    found = problems({"a": {**LOCAL, "chunk_mb": 0, "minutes": 0}, "b": {**LOCAL, "keep": 0}})
    assert [sentence.split(":")[0] for sentence in found] == ["chunk_mb", "minutes", "keep"]
    assert found[0].endswith("(inventory, a)")
    assert found[2].endswith("(inventory, b)")


def test_what_is_wrong_with_many_agents_is_one_sentence() -> None:
    """A hundred hosts with the same mistake are one mistake."""
    found = problems({f"web{number}": {**LOCAL, "keep": 0} for number in range(100)})
    assert len(found) == 1
    assert found[0].endswith("(inventory, web0 and 99 more)")


def test_a_duration_given_with_e_replaces_the_inventorys_in_either_unit() -> None:
    """-e seconds=2 over minutes=10 of the inventory is two seconds."""
    given = {"seconds": "2"}
    made = plan({"a": {**LOCAL, "minutes": 10, **given}}, extra_vars=given)
    assert made["agents"]["a"]["config"]["seconds"] == 2


def test_agents_that_share_a_directory_need_room_for_all_their_rings() -> None:
    """Each alone would fit where all together don't."""
    made = plan({"a": LOCAL, "b": LOCAL, "c": {**LOCAL, "directory": "/srv"}})["agents"]
    assert made["a"]["need_bytes"] == made["b"]["need_bytes"] == 4 * 20_000_768 + 2 * 4096 + 500_000_000
    assert made["c"]["need_bytes"] == 2 * 20_000_768 + 4096 + 500_000_000


def test_every_job_has_a_ring_of_its_own() -> None:
    """All of them lie on the disk at once."""
    made = plan({"a": {**LOCAL, "jobs": "4", "keep": 3}})["agents"]
    assert made["a"]["ring_bytes"] == 4 * 3 * 20_000_768 + 4096


def test_the_ramp_is_time_on_top() -> None:
    """The run, its leases and the collector's plan last so much longer; the longest agent counts, not the longest time."""
    hosts = {"a": {**LOCAL, "ramp_seconds": "30"}, "b": {**LOCAL, "minutes": None, "seconds": 80}}
    made = plan(hosts)
    assert made["running_seconds"] == 90 + 60 + 15
    assert made["lease_seconds"] == 300 + 90 + 60 + 300
    entries = made["collector_plan"]["agents"]
    assert [(entry["seconds"], entry["ramp_seconds"]) for entry in entries] == [(90, 30), (80, 0)]
    assert (made["agents"]["a"]["config"]["seconds"], made["agents"]["a"]["config"]["ramp_seconds"]) == (60, 30)
    assert made["collector_plan"]["parameters"]["seconds"] == [60, 80]
    assert plan({"a": hosts["a"]})["summary"].endswith(
        ": 1 agent on 1 host, 20 MB chunks, 1 minute after a ramp of 30 seconds"
    )
    assert plan({"a": LOCAL})["summary"].endswith(", 1 minute")


def test_an_agent_is_told_what_was_asked_for_in_its_own_words() -> None:
    """Every setting of an agent that a run does not give it can be given for a run."""
    given = {
        "io": "direct",
        "jobs": 4,
        "rate_mb_s": 100,
        "ramp_seconds": 5,
        "files": "new",
        "verify": "readback",
        "compress_percent": 50,
        "dedupe_percent": 30,
        "seed": 42,
    }
    made = plan({"a": {**LOCAL, **{key: str(value) for key, value in given.items()}}}, extra_vars=given)
    assert {key: made["agents"]["a"]["config"][key] for key in given} == given
    parameters = made["collector_plan"]["parameters"]
    assert {key: parameters[key] for key in given} == given
    for own in ("name", "run_id", "collector_url", "barrier_seconds", "lease_seconds", "state_directory"):
        assert f"{own} is not a parameter of Fury" in problems({"a": LOCAL}, extra_vars={own: "1"})[0]


def test_the_runs_parameters_are_the_distinct_values_of_its_agents() -> None:
    """One where all agree; null is one of them."""
    parameters = plan({"a": LOCAL, "b": {**LOCAL, "rate_mb_s": 50, "chunk_mb": 10}})["collector_plan"]["parameters"]
    assert parameters["rate_mb_s"] == [None, 50]
    assert parameters["chunk_mb"] == [10, 20]
    assert (parameters["io"], parameters["verify"], parameters["minutes"]) == ("buffered", "none", 1)
    assert plan({"a": LOCAL})["collector_plan"]["parameters"]["rate_mb_s"] is None


def test_how_slow_is_slow_is_told_to_the_collector() -> None:
    """A fifth below the median, or as asked for."""
    assert plan({"a": LOCAL})["collector_plan"]["slow_percent"] == 20
    assert plan({"a": {**LOCAL, "fury_slow_percent": "35"}})["collector_plan"]["slow_percent"] == 35


def test_the_collector_takes_the_plan_that_is_made_for_it() -> None:
    """Also one of the longest time with the longest ramp."""
    longest = {"ansible_connection": "local", "chunk_mb": 20, "seconds": 604_800, "ramp_seconds": 86_400}
    taken = wire.plan(plan({"a": longest})["collector_plan"])
    assert (taken.agents[0].seconds, taken.agents[0].ramp_seconds) == (691_200, 86_400)


def test_what_holds_for_the_whole_run_can_not_differ_between_agents() -> None:
    """Only one of two barriers could hold."""
    found = problems({"a": {**LOCAL, "fury_barrier_seconds": 10}, "b": {**LOCAL, "fury_barrier_seconds": 20}})
    assert "fury_barrier_seconds: 10, 20" in found[0]


def test_a_collector_address_that_nobody_knows_is_refused() -> None:
    """Hosts would look for it until the barrier times out."""
    assert "can't be resolved" in problems({"a": {**LOCAL, "fury_collector_address": "no-such-host.invalid"}})[0]


def test_an_agents_name_that_can_not_be_a_file_name_is_refused() -> None:
    """Names become directories, units and labels."""
    assert problems({"../x": LOCAL})[0].startswith("name: ")


def test_no_agents_and_two_collectors_are_refused() -> None:
    """One of each at least, one collector at most."""
    assert "fury_agents has no hosts" in problems({})[0]
    assert "fury_collector has 2 hosts" in problems({"a": LOCAL, "b": LOCAL}, collectors=["a", "b"])[0]


def test_two_agents_of_one_machine_can_not_have_the_same_metrics_port() -> None:
    """The second would not start."""
    assert (
        "metrics_port: 9100 is asked for by a and b"
        in problems({"a": {**LOCAL, "metrics_port": 9100}, "b": {**LOCAL, "metrics_port": 9100}})[0]
    )


def test_agents_on_this_machine_reach_the_collector_on_loopback() -> None:
    """Nothing of a run on one machine can be reached from outside."""
    collector = plan({"a": LOCAL})["collector"]
    assert (collector["listen"], collector["urls"]["a"]) == ("127.0.0.1", "https://127.0.0.1:9475")


def test_run_ids_sort_by_time_and_are_safe_in_a_file_name() -> None:
    """They name the results' directories."""
    made = plan({"a": LOCAL})
    assert made["results"] == f"/repo/results/{made['run_id']}"
    assert made["run_id"].replace("-", "").isalnum()


@pytest.mark.parametrize("given", [{"errors": "==0"}, '{"errors": "==0"}', "file.json", "file.yml", "wrapped.yml"])
def test_objectives_are_an_object_its_text_or_a_file(tmp_path: Path, given: Any) -> None:
    """All of them mean the same, and arrive in the collector's plan."""
    texts = {"file.json": '{"errors": "==0"}', "file.yml": "errors: '==0'", "wrapped.yml": "slo: {errors: '==0'}"}
    if given in texts if isinstance(given, str) else False:
        (tmp_path / given).write_text(texts[given])
        given = str(tmp_path / given)
    made = plan({"a": {**LOCAL, "slo": given}})
    assert made["collector_plan"]["slo"] == {"errors": "==0"}
    assert wire.plan(made["collector_plan"]).slo[0].text == "errors == 0"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"error": "==0"}, "did you mean errors?"),
        ("/nowhere/slo.json", "slo: /nowhere/slo.json cannot be read (No such file or directory)"),
        ("{", "give one object of JSON or YAML"),
        ({"read_p99_ms": "<=5"}, "read_p99_ms <= 5 needs something to be read; give -e verify=readback too"),
        (["errors"], "slo: ['errors'] is not allowed"),
    ],
)
def test_a_wrong_objective_is_told_before_anything_starts(given: Any, named: str) -> None:
    """BAD_INPUT with the name, and what would do."""
    assert named in "\n".join(problems({"a": {**LOCAL, "slo": given}}))


def test_objectives_about_reading_need_a_run_that_reads() -> None:
    """With readback they are fine."""
    made = plan({"a": {**LOCAL, "verify": "readback", "slo": {"agent.read_p99_ms": "<=5"}}})
    assert made["collector_plan"]["slo"] == {"agent.read_p99_ms": "<=5"}
