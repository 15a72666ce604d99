"""A run's verdict as JUnit XML, for CI systems: a test case for each agent and for each objective."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from fury_collector.report import AgentResult, Result

# What XML 1.0 has no way to say.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(result: Result) -> str:
    """The document; an agent that did not pass and an objective that was missed are failures, INCOMPLETE and worse errors."""
    suite = ElementTree.Element("testsuite", name=f"fury {result.run_id}", time=f"{result.seconds:.3f}")
    if result.started_at:
        suite.set("timestamp", result.started_at.rstrip("Z"))
    counts = {"failure": 0, "error": 0}
    for agent in result.agents:
        case = ElementTree.SubElement(
            suite, "testcase", classname=_clean(f"fury.{agent.host}"), name=agent.name, time=f"{agent.seconds:.3f}"
        )
        if agent.verdict != "PASS":
            kind = _kind(agent)
            counts[kind] += 1
            problem = ElementTree.SubElement(case, kind, type=agent.verdict, message=_clean(agent.reason))
            problem.text = _clean(f"{agent.verdict}: {agent.reason}")
    for one in result.slo:
        case = ElementTree.SubElement(
            suite, "testcase", classname="fury.slo", name=f"{one.agent or 'fleet'}: {one.objective.text}"
        )
        if not one.met:
            counts["failure"] += 1
            ElementTree.SubElement(case, "failure", type="SLO_MISSED", message=_clean(one.text))
    suite.set("tests", str(len(result.agents) + len(result.slo)))
    suite.set("failures", str(counts["failure"]))
    suite.set("errors", str(counts["error"]))
    ElementTree.SubElement(suite, "system-out").text = _clean(result.sentence)
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def _kind(agent: AgentResult) -> str:
    return (
        "failure"
        if agent.verdict in ("SLO_MISSED", "CLEANUP_UNCONFIRMED", "DATA_CORRUPTION", "DISK_ERROR")
        else "error"
    )


def _clean(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
