"""Agent, collector and docs/protocol.md agree. This is the only place that sees both programs."""

from __future__ import annotations

import ast
import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fury_agent import histogram as agent_histogram
from fury_agent.config import FIELDS
from fury_agent.honesty import Honesty
from fury_agent.verdict import EXIT_CODES, Verdict
from fury_agent.writer import Rollover
from fury_collector import histogram as collector_histogram
from fury_collector import wire
from tests.agent.conftest import AgentProcess
from tests.agent.peer import Peer

REPO = Path(__file__).parents[1]
PROTOCOL = (REPO / "docs" / "protocol.md").read_text()
COMMON = {"seq", "t_mono_ns", "t_wall"}


def imports(path: Path) -> set[str]:
    """The modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize(
    ("package", "never"),
    [("fury_agent", ("fury_collector", "fury_controller")), ("fury_collector", ("fury_agent", "fury_controller"))],
)
def test_the_two_programs_never_import_each_other(package: str, never: tuple[str, ...]) -> None:
    """They meet on the wire only."""
    for path in (REPO / package).rglob("*.py"):
        assert not [name for name in imports(path) if name.startswith(never)], path


def test_the_agents_leaves_never_import_each_other() -> None:
    """Config, chunks, writer and their like take plain values; agent puts them together. Two have parts of their own."""
    leaves = {"config", "chunks", "writer", "metrics", "events", "journal", "channel", "console", "deadline", "honesty"}
    shared = {"verdict", "histogram"}
    parts = {
        "writer": {"data", "steady"},
        "channel": {"credentials"},
        "metrics": {"credentials"},
        "honesty": {"machine", "pagecache", "steady"},
    }
    for module in leaves | {"data", "steady", "machine", "pagecache", "credentials"}:
        ours = {
            name.split(".")[1]
            for name in imports(REPO / "fury_agent" / f"{module}.py")
            if name.startswith("fury_agent.")
        }
        assert ours <= shared | parts.get(module, set()), module


def test_the_agent_needs_nothing_but_the_standard_library_and_its_two_libraries() -> None:
    """What a target has to have is Python."""
    import sys

    allowed = {*sys.stdlib_module_names, "psutil", "prometheus_client", "fury_agent", "__future__"}
    for path in [*(REPO / "fury_agent").glob("*.py"), REPO / "plugins/module_utils/fury_host.py"]:
        assert {name.split(".")[0] for name in imports(path)} <= allowed, path


def documented_payloads() -> dict[str, set[str]]:
    """The fields of each kind of event, as the page has them."""
    table = PROTOCOL.split("| kind | payload |")[1].split("\n\n")[0]
    documented = {}
    for line in table.splitlines()[2:]:
        _, kind, payload, _ = (part.strip() for part in line.split("|"))
        payload = re.sub(r"\([^()]*\)", "", payload)  # what is said of a field beside its name
        documented[kind.strip("`")] = set(re.findall(r"`(\w+)`", payload))
    return documented


def test_event_kinds_have_the_documented_fields() -> None:
    """The table of the page is the collector's table, and a rollover is what the writer tells."""
    assert documented_payloads() == {kind: set(fields) - COMMON for kind, fields in wire._KINDS.items()}
    assert {field.name for field in dataclasses.fields(Rollover)} == documented_payloads()["rollover"]


def test_the_honesty_checks_are_the_documented_ones() -> None:
    """In the page's order, and of the types that the page allows."""
    table = PROTOCOL.split("| key | what it says |")[1].split("\n\n")[0]
    documented = [name for line in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert documented == [field.name for field in dataclasses.fields(Honesty)]
    assert set(dataclasses.asdict(Honesty()).values()) == {None}


def test_what_an_agent_sends_is_what_the_collector_takes(tmp_path: Path) -> None:
    """Every batch of a run with jobs, ramp and reading back passes the collector's checks, and its sums are the page's."""
    peer = Peer()
    line = f"alecto --chunk-mb 1 --seconds 2 --directory {tmp_path} --collector-url {peer.url} --plain-http"
    more = (
        "--jobs 2 --ramp-seconds 1 --verify readback --rate-mb-s 20 --block-kb 64 "
        "--heartbeat-seconds 1 --sample-seconds 1 --drain-seconds 10"
    )
    try:
        agent = AgentProcess([*line.split(), *more.split()]).finish()
    finally:
        peer.close()
    assert agent.code == 0, agent.out + agent.err
    wire.ready({key: value for key, value in peer.asks[0].items() if key != "path"})
    for batch in peer.batches:
        wire.batch({key: value for key, value in batch.items() if key != "path"})
    events: dict[str, list[dict[str, Any]]] = {}
    for _, event in sorted(peer.stored.items()):
        events.setdefault(event["kind"], []).append(event)
        assert set(event) - COMMON - {"kind"} == documented_payloads()[event["kind"]]
    (start,), (final,) = events["start"], events["final"]
    assert start["planned_seconds"] == peer.asks[0]["seconds"] == 3
    rollovers, last = events["rollover"], events["sample"][-1]
    counted = sum(rollover["bytes"] - rollover["ramp_bytes"] for rollover in rollovers)
    assert final["written_bytes"] == counted + final["tail_bytes"] > 0
    assert final["ramp_bytes"] == sum(rollover["ramp_bytes"] for rollover in rollovers) > 0
    assert final["rollovers"] == sum(rollover["bytes"] > rollover["ramp_bytes"] for rollover in rollovers)
    assert last["written_bytes"] == final["written_bytes"] + final["ramp_bytes"]
    assert last["read_bytes"] == final["read_bytes"]
    assert final["seconds"] == pytest.approx(2, abs=0.3)
    for name in ("write_histogram", "fsync_histogram", "read_histogram"):
        merged = collector_histogram.Histogram()
        for sample in events["sample"]:
            merged.add(sample[name])
        assert merged.count == final[name]["count"] > 0, name
    assert list(final["honesty"]) == [field.name for field in dataclasses.fields(Honesty)]
    assert all(isinstance(note, str) for note in final["notes"])


def test_the_agents_settings_have_the_documented_names_and_defaults() -> None:
    """The table of the page is the agent's table."""
    table = PROTOCOL.split("| key | type | allowed | default |")[1].split("\n\n")[0]
    documented = {}
    for line in table.splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        documented[cells[0].strip("`")] = cells[3]
    assert list(documented) == [field.name for field in FIELDS]
    for field in FIELDS:
        if isinstance(field.default, bool):
            assert documented[field.name] == str(field.default).lower(), field.name
        elif field.default is not None:
            assert documented[field.name] == str(field.default), field.name


def test_verdicts_and_exit_codes_are_the_documented_ones() -> None:
    """Three places name them: the page, the agent, the collector."""
    sentence = PROTOCOL.split("one per verdict:")[1].split("\n\n")[0]
    documented = {name: int(code) for name, code in re.findall(r"`(\w+)` (\d+)", sentence)}
    assert documented == {verdict.value: code for verdict, code in EXIT_CODES.items()}
    assert set(wire.VERDICTS) == {verdict.value for verdict in Verdict}
    results = (REPO / "docs" / "results.md").read_text()
    assert {name: int(code) for name, code in re.findall(r"^\| `([A-Z_]+)` \| (\d+) \|", results, re.M)} == documented


latencies = st.lists(st.floats(min_value=1e-7, max_value=3600), min_size=1, max_size=200)


@given(st.lists(latencies, min_size=1, max_size=5))
def test_merged_histograms_give_the_percentiles_of_all_values(parts: list[list[float]]) -> None:
    """What agents send and the collector merges is within 1 % of one histogram over everything, at every percentile."""
    merged = collector_histogram.Histogram()
    for part in parts:
        one = agent_histogram.Histogram()
        for value in part:
            one.add(value)
        merged.add(one.to_dict())
    values = sorted(value for part in parts for value in part)
    for _, ratio in collector_histogram.PERCENTILES:
        exact = values[math.ceil(ratio * len(values)) - 1]
        assert merged.quantile(ratio) == pytest.approx(exact, rel=0.0101)
    assert merged.high == max(values)
