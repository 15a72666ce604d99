"""Agent, collector and docs/protocol.md agree. This is the only place that sees both programs."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fury_agent import histogram as agent_histogram
from fury_agent.config import FIELDS
from fury_agent.verdict import EXIT_CODES, Verdict
from fury_collector import histogram as collector_histogram
from fury_collector import wire

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
    """Config, chunks, writer and their like take plain values; agent puts them together."""
    leaves = {"config", "chunks", "writer", "metrics", "events", "journal", "channel", "console", "deadline"}
    shared = {"verdict", "histogram"}
    for leaf in leaves:
        ours = {
            name.split(".")[1] for name in imports(REPO / "fury_agent" / f"{leaf}.py") if name.startswith("fury_agent.")
        }
        assert ours <= shared, leaf


def test_the_agent_needs_nothing_but_the_standard_library_and_its_two_libraries() -> None:
    """What a target has to have is Python."""
    import sys

    allowed = {*sys.stdlib_module_names, "psutil", "prometheus_client", "fury_agent", "__future__"}
    for path in [*(REPO / "fury_agent").glob("*.py"), REPO / "plugins/module_utils/fury_host.py"]:
        assert {name.split(".")[0] for name in imports(path)} <= allowed, path


def test_event_kinds_have_the_documented_fields() -> None:
    """The table of the page is the collector's table."""
    table = PROTOCOL.split("| kind | payload |")[1].split("\n\n")[0]
    documented = {}
    for line in table.splitlines()[2:]:
        _, kind, payload, _ = (part.strip() for part in line.split("|"))
        payload = re.sub(r"\([^()]*\)", "", payload)  # what is said of a field beside its name
        documented[kind.strip("`")] = set(re.findall(r"`(\w+)`", payload))
    assert documented == {kind: set(fields) - COMMON for kind, fields in wire._KINDS.items()}


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
