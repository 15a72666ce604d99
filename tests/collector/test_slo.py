"""Objectives: read before anything starts, held against the figures when it is over, and told to people and CI systems."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest

from fury_collector import report, slo
from fury_collector.errors import BadInput
from fury_collector.junit import junit

from .conftest import histogram
from .test_report import agent, epoch, run

GOOD = {
    "throughput_mb_s": ">=1",
    "errors": "==0",
    "agent.write_p99_ms": "<= 50",
    "agent_spread_percent": ["<=20", ">=0"],
}


def judged(objectives: dict[str, Any], **finals: dict[str, Any]) -> report.Result:
    """A run whose agents ended with these final words, held against objectives; each wrote 60 MB in 30 s or as it says."""
    rows = run(*(agent(name, epoch(final=final)) for name, final in finals.items()))
    return report.judge(replace(rows, slo=slo.parse(objectives)), ())


def test_what_is_met_leaves_the_verdict_and_is_shown() -> None:
    """Each objective is a line under the table, with its figure."""
    result = judged(GOOD, alecto={}, megaera={})
    assert result.verdict == "PASS"
    assert [one.met for one in result.slo] == [True] * 6
    told = report.table(result).splitlines()
    assert "SLO fleet: throughput_mb_s >= 1: met (2.00008)" in told
    assert "SLO fleet: errors == 0: met (0)" in told
    assert sum(line.startswith("SLO alecto: write_p99_ms <= 50: met") for line in told) == 1


def test_a_missed_objective_of_the_fleet_is_the_runs_verdict() -> None:
    """The sentence says which, what it is and what was wanted; the agents themselves passed."""
    result = judged({"throughput_mb_s": ">=100", "errors": "==0"}, alecto={}, megaera={})
    assert result.sentence == "SLO_MISSED: 1 of 2 objectives missed: fleet: throughput_mb_s >= 100: missed (2.00008)"
    assert {one.verdict for one in result.agents} == {"PASS"}
    assert report.summary(result)["slo"][0] == {
        "objective": "throughput_mb_s >= 100", "agent": None, "value": pytest.approx(2.00008, rel=1e-4), "met": False
    }  # fmt: skip


def test_an_objective_of_each_agent_is_missed_by_those_that_miss_it() -> None:
    """A slow agent is SLO_MISSED, the other is not."""
    slow = {"write_histogram": histogram(*[0.08] * 100)}
    result = judged({"agent.write_p99_ms": "<=50"}, alecto={}, megaera=slow)
    assert [one.verdict for one in result.agents] == ["PASS", "SLO_MISSED"]
    assert result.agents[1].reason.startswith("write_p99_ms <= 50: missed (8")
    assert result.verdict == "SLO_MISSED"


def test_what_is_worse_than_a_missed_objective_stays_the_verdict() -> None:
    """INCOMPLETE outweighs it; the objectives are judged and shown all the same."""
    result = judged({"throughput_mb_s": ">=100"}, alecto={"verdict": "INCOMPLETE", "reason": "stopped"}, megaera={})
    assert result.verdict == "INCOMPLETE"
    assert any(
        line.startswith("SLO fleet: throughput_mb_s >= 100: missed") for line in report.table(result).splitlines()
    )


def test_a_missing_figure_misses_its_objective() -> None:
    """Nothing was read back, so nothing can be said of it."""
    result = judged({"read_p99_ms": "<=50"}, alecto={})
    assert result.slo[0].text == "fleet: read_p99_ms <= 50: missed (no figure)"


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (
            {"throughput_mbs": ">=1"},
            "'throughput_mbs' is not a figure that can be judged; did you mean throughput_mb_s?",
        ),
        ({"agent.agent_spread_percent": "<=1"}, "'agent.agent_spread_percent' is not a figure"),
        ({"nonsense": ">=1"}, "known are throughput_mb_s, "),
        ({"errors": "0"}, "slo.errors: '0' is not allowed; one of >= <= > < == and a number from 0 on"),
        ({"errors": "=>0"}, "slo.errors: '=>0' is not allowed"),
        ({"errors": ">=-1"}, "slo.errors: '>=-1' is not allowed"),
        ({"errors": ">=1e3"}, "slo.errors: '>=1e3' is not allowed"),
        ({"errors": 0}, "slo.errors: 0 is not allowed"),
        ({"errors": []}, "slo.errors: [] is not allowed"),
        ({1: ">=1"}, "1 is not a figure"),
        ({}, "slo: {} is not allowed; an object of 1 to 100 objectives is"),
        ([], "slo: [] is not allowed"),
        (">=100", "slo: '>=100' is not allowed"),
    ],
)
def test_a_typo_is_a_sentence(asked: object, named: str) -> None:
    """Name, value, what is allowed."""
    with pytest.raises(BadInput) as caught:
        slo.parse(asked)
    assert named in caught.value.message


@pytest.mark.parametrize(("sign", "met"), [(">=", True), ("<=", True), ("==", True), (">", False), ("<", False)])
def test_the_bound_itself_is_met_where_the_sign_says_so(sign: str, met: bool) -> None:
    """At exactly the bound."""
    objectives = slo.parse({"errors": f"{sign}2"})
    assert slo.judge(objectives, fleet={"errors": 2.0}, agents={})[0].met is met


def test_ci_systems_get_a_case_for_each_agent_and_objective() -> None:
    """Failures are told apart from errors, and no character can break the file."""
    broken = {"verdict": "INCOMPLETE", "reason": 'lost <b>"\x07\ufffe'}
    document = junit(judged({"throughput_mb_s": ">=100", "errors": "==0"}, alecto={}, megaera=broken))
    suite = ElementTree.fromstring(document.partition("\n")[2])
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("4", "1", "1")
    assert [case.get("name") for case in suite.iter("testcase")] == [
        "alecto", "megaera", "fleet: throughput_mb_s >= 100", "fleet: errors == 0"
    ]  # fmt: skip
    error = suite.find(".//error")
    assert error is not None
    assert error.get("type") == "INCOMPLETE"
    assert '<b>"⟨U+0007⟩\ufffd' in (error.get("message") or "")
