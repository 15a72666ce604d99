"""What a run may be asked for wrongly, judged as the controller judges it: extra-vars, inventories, objectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fury_controller.plan import BadInput, make_plan
from tests.bad_input import check

WHOLE = "a whole number"
# Nine lists, each of ten times the one before.
_LISTS = ", ".join(f"&a{n} [{', '.join([f'*a{n - 1}'] * 10 if n else ['ha'])}]" for n in range(9))
LAUGHS = f"{{errors: [[{_LISTS}]]}}"
LOCAL: dict[str, Any] = {"ansible_connection": "local", "chunk_mb": 20, "minutes": 1}

# What -e gives is text, or with -e '{…}' whatever JSON can say.
EXTRA_VARS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "empty": ({"chunk_mb": ""}, ["chunk_mb: ", WHOLE, "-e chunk_mb=20"]),
    "zero": ({"chunk_mb": "0"}, ["chunk_mb: 0", "1 to 1000000"]),
    "negative": ({"minutes": "-1"}, ["minutes: -1", "1 to 10080"]),
    "fraction": ({"chunk_mb": "20.5"}, ["chunk_mb: 20.5", WHOLE]),
    "fractional number": ({"chunk_mb": 20.5}, ["chunk_mb: 20.5", WHOLE]),
    "hexadecimal": ({"chunk_mb": "0x14"}, ["chunk_mb: 0x14", WHOLE]),
    "underscore": ({"chunk_mb": "1_0"}, ["chunk_mb: 1_0", WHOLE]),
    "text": ({"chunk_mb": "big"}, ["chunk_mb: big", WHOLE]),
    "huge": ({"chunk_mb": "9" * 20}, ["chunk_mb: 99999999999999999999", "1 to 1000000"]),
    "list": ({"chunk_mb": [20]}, ["chunk_mb: [20]", WHOLE]),
    "object": ({"minutes": {"a": 1}}, ['minutes: {"a": 1}', WHOLE]),
    "boolean": ({"minutes": True}, ["minutes: true", WHOLE]),
    "infinity": ({"minutes": float("inf")}, ["minutes: Infinity", WHOLE]),
    "a newline in it": ({"chunk_mb": "20\n"}, ["chunk_mb: ", WHOLE]),
    "misspelt": ({"chunk_mbs": "20"}, ["chunk_mbs is not a parameter", "did you mean chunk_mb?"]),
    "unknown": ({"zzz": "20"}, ["zzz is not a parameter", "known are chunk_mb"]),
    "unknown with a newline": ({"z\nz": "20"}, ["is not a parameter"]),
    "the run's own": ({"run_id": "mine"}, ["run_id is not a parameter"]),
    "both durations": ({"seconds": "60", "minutes": "1"}, ["minutes and seconds are both given"]),
    "relative directory": ({"directory": "var/tmp"}, ["directory: var/tmp", "absolute path"]),
    "the system's": ({"directory": "/etc/fury"}, ["directory: /etc/fury", "absolute path"]),
    "the root": ({"directory": "/"}, ["directory: /", "absolute path"]),
    "below proc": ({"directory": "/proc"}, ["directory: /proc", "absolute path"]),
    "a device": ({"directory": "/dev/sda"}, ["directory: /dev/sda", "absolute path"]),
    "around": ({"directory": "/var/../usr/x"}, ["directory: /var/../usr/x", "absolute path"]),
    "NUL": ({"directory": "/var/tmp\0"}, ["directory: ", "absolute path"]),
    "address as a port": ({"metrics_address": "10.0.0.1:80"}, ["metrics_address: 10.0.0.1:80", "an IP address"]),
    "port beyond": ({"fury_collector_port": "65536"}, ["fury_collector_port: '65536'", "a port from 1 to 65535"]),
    "port 0": ({"fury_collector_port": "0"}, ["fury_collector_port: ", "a port from 1 to 65535"]),
    "port in words": ({"fury_collector_port": "https"}, ["fury_collector_port: 'https'", "a port from 1 to 65535"]),
    "5000 characters": ({"fury_collector_port": "p" * 5000}, ["fury_collector_port: ", "a port from 1 to 65535"]),
    "mode": ({"fury_mode": "docker"}, ["fury_mode: 'docker'", "auto, systemd, process"]),
    "mode as a list": ({"fury_mode": ["auto"]}, ["fury_mode: ['auto']", "auto, systemd, process"]),
    "barrier": ({"fury_barrier_seconds": "86401"}, ["fury_barrier_seconds: '86401'", "1 to 86400"]),
    "slack": ({"fury_slack_seconds": "soon"}, ["fury_slack_seconds: 'soon'", "1 to 86400"]),
    "slow": ({"fury_slow_percent": "100"}, ["fury_slow_percent: 100", "1 to 99"]),
    "relative base": ({"fury_base": "here"}, ["fury_base: 'here'", "an absolute path"]),
    "base with a newline": ({"fury_base": "he\nre"}, ["fury_base: ", "an absolute path"]),
    "relative results": ({"fury_results": "../results"}, ["fury_results: '../results'", "an absolute path"]),
    "relative credentials": ({"fury_credentials": "~/fury"}, ["fury_credentials: '~/fury'", "an absolute path"]),
    "Grafana with a password": ({"fury_grafana_url": "https://u:p@h"}, ["fury_grafana_url: ", "without user"]),
    "Grafana elsewhere": ({"fury_grafana_url": "javascript:alert(1)"}, ["fury_grafana_url: ", "http or https"]),
    "address with a port": ({"fury_collector_address": "10.0.0.1:9475"}, ["fury_collector_address: ", "without port"]),
    "address with a scheme": ({"fury_collector_address": "https://h"}, ["fury_collector_address: ", "without port"]),
    "address as a list": ({"fury_collector_address": ["10.0.0.1"]}, ["fury_collector_address: ", "an IP address"]),
    "address of nobody": (
        {"fury_collector_address": "no-such-host.invalid"},
        ["fury_collector_address: no-such-host.invalid", "can't be resolved"],
    ),
}
INVENTORIES: dict[str, tuple[dict[str, dict[str, Any]], list[str]]] = {
    "no agent": ({}, ["inventory: the group fury_agents has no hosts", "name at least one agent"]),
    "a name with a format": ({"ale%cto": {}}, ["name: ", "ale%cto", "A-Z a-z 0-9"]),
    "a name of markup": ({"<script>": {}}, ["name: ", "<script>", "A-Z a-z 0-9"]),
    "a name too long": ({"x" * 65: {}}, ["name: ", "1 to 64"]),
    "one value wrong on one host": (
        {"alecto": {}, "megaera": {"chunk_mb": "20MB"}},
        ["chunk_mb: 20MB", WHOLE, "(inventory, megaera)"],
    ),
    "one value wrong on all hosts": (
        {name: {"jobs": 0} for name in ("alecto", "megaera", "tisiphone")},
        ["jobs: 0", "1 to 64", "(inventory, alecto and 2 more)"],
    ),
    "misspelt": ({"alecto": {"block_kbs": 4}}, ["block_kbs (inventory, alecto)", "did you mean block_kb?"]),
    "misspelt for the run": ({"alecto": {"fury_mod": "auto"}}, ["fury_mod (inventory, alecto)", "fury_mode?"]),
    "one port for two": (
        {"alecto": {"metrics_port": 9100}, "megaera": {"metrics_port": 9100}},
        ["metrics_port: 9100", "alecto and megaera", "0 for any free one"],
    ),
    "two modes": (
        {"alecto": {"fury_mode": "auto"}, "megaera": {"fury_mode": "process"}},
        ["fury_mode: auto, process", "holds for the whole run", "give it once"],
    ),
    "a host that nobody knows": (
        {"alecto": {"ansible_connection": "ssh", "ansible_host": "no-such-host.invalid"}},
        ["no-such-host.invalid", "can't be found out", "-e fury_collector_address="],
    ),
}
SLO: dict[str, tuple[Any, list[str]]] = {
    "a number": (7, ["slo: 7", "an object of 1 to 100 objectives"]),
    "a list": ([">=100"], ["slo: ", "an object of 1 to 100 objectives"]),
    "an empty object": ("{}", ["slo: {}", "an object of 1 to 100 objectives"]),
    "broken JSON": ('{"throughput_mb_s": ', ["slo: ", "give one object of JSON or YAML"]),
    "no file": ("/nowhere/slo.yml", ["slo: /nowhere/slo.yml cannot be read", "No such file"]),
    "a directory": ("/", ["slo: / cannot be read", "Is a directory"]),
    "NUL": ("/a\0b", ["slo: ", "cannot be read"]),
    "a newline": ("/a\nb", ["slo: ", "cannot be read"]),
    "a path of 5000 characters": ("/" + "x" * 5000, ["slo: ", "cannot be read", "too long"]),
    "misspelt": ({"throughput_mbs": ">=1"}, ["'throughput_mbs' is not a figure", "did you mean throughput_mb_s?"]),
    "unknown": ({"zzz": ">=1"}, ["'zzz' is not a figure", "known are throughput_mb_s"]),
    "not for each": ({"agent.start_skew_ms": "<=1"}, ["agent.start_skew_ms' is not a figure"]),
    "a number as name": ({7: ">=1"}, ["7 is not a figure"]),
    "no sign": ({"throughput_mb_s": "100"}, ["slo.throughput_mb_s: '100'", ">= <= > < ==", "a number from 0 on"]),
    "a number alone": ({"throughput_mb_s": 100}, ["slo.throughput_mb_s: 100", ">= <= > < =="]),
    "another sign": ({"throughput_mb_s": "=>100"}, ["slo.throughput_mb_s: '=>100'", ">= <= > < =="]),
    "a unit": ({"write_p99_ms": "<=50ms"}, ["slo.write_p99_ms: '<=50ms'", "a number from 0 on"]),
    "negative": ({"throughput_mb_s": ">=-1"}, ["slo.throughput_mb_s: '>=-1'", "a number from 0 on"]),
    "no number": ({"throughput_mb_s": ">=nan"}, ["slo.throughput_mb_s: '>=nan'", "a number from 0 on"]),
    "one of two wrong": ({"errors": ["==0", ""]}, ["slo.errors: ''", "a number from 0 on"]),
    "nested": ({"errors": [["==0"]]}, ["slo.errors: ['==0']", "a number from 0 on"]),
    "101 of them": ({f"x{n}": "<1" for n in range(101)}, ["slo: ", "an object of 1 to 100 objectives"]),
    "5000 characters": ({"errors": "=" * 5000}, ["slo.errors: '====", "a number from 0 on"]),
    "a billion laughs": (LAUGHS, ["slo.errors: ", "a number from 0 on"]),
    "nothing to read": ({"read_p99_ms": "<=1"}, ["slo: read_p99_ms <= 1", "-e verify=readback"]),
    "deep": ("{" + "[" * 2000, ["slo: ", "give one object of JSON or YAML"]),
    "a tag that would run code": ("{a: !!python/object/apply:os.getcwd []}", ["slo: ", "could not determine"]),
}


def refused(
    says: Sequence[str],
    *,
    hostvars: Mapping[str, Mapping[str, Any]],
    extra_vars: Mapping[str, Any],
) -> None:
    """The plan is refused in one sentence, and there is no other."""
    with pytest.raises(BadInput) as caught:
        make_plan(
            agents=list(hostvars),
            hostvars={name: {**LOCAL, **own, **extra_vars} for name, own in hostvars.items()},
            collectors=[],
            extra_vars=extra_vars,
            repo=Path("/repo"),
        )
    [sentence] = caught.value.problems
    check.one_sentence(sentence, says)


@pytest.mark.parametrize("case", EXTRA_VARS)
def test_a_bad_extra_var_is_one_sentence(case: str) -> None:
    """Field, value, what is allowed, and what to type instead."""
    given, says = EXTRA_VARS[case]
    refused(says, hostvars={"alecto": {}}, extra_vars=given)


@pytest.mark.parametrize("case", INVENTORIES)
def test_a_bad_inventory_is_one_sentence(case: str) -> None:
    """Which host it is is named too."""
    hostvars, says = INVENTORIES[case]
    refused(says, hostvars=hostvars, extra_vars={})


@pytest.mark.parametrize("case", SLO)
def test_a_bad_objective_is_one_sentence(case: str) -> None:
    """Figure, value, what is allowed: before anything starts."""
    given, says = SLO[case]
    refused(says, hostvars={"alecto": {}}, extra_vars={"slo": given})
