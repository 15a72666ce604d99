"""The dashboards' JSON against the types that Grafana itself is written with."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.grafana import renderer
from tests.grafana.prometheus import need
from tests.grafana.seeded import Tree, panel, put

ROOT = Path(__file__).resolve().parents[2]
DASHBOARDS = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in ROOT.glob("grafana/dashboards/*.json")
}
GRAPH = "Fleet throughput"


def add(title: str, key: str) -> Callable[[Tree], None]:
    """Returns a defect: the panel's options have a key that Grafana does not know."""
    return lambda dashboard: panel(dashboard, title)["options"].update({key: "value"})


DEFECTS: dict[str, Callable[[Tree], None]] = {
    "misspelt option": add("State", "colourMode"),
    "misspelt option of a graph": add(GRAPH, "legends"),
    "misspelt field option": lambda dashboard: panel(dashboard, GRAPH)["fieldConfig"]["defaults"]["custom"].update(linewidth=1),
    "unknown legend": put(GRAPH, "options.legend.displayMode", "tabel"),
    "unknown legend's place": put(GRAPH, "options.legend.placement", "below"),
    "unknown order": put(GRAPH, "options.tooltip.sort", "down"),
    "unknown mode of thresholds": put(GRAPH, "fieldConfig.defaults.thresholds.mode", "absolut"),
    "unknown colour mode": put(GRAPH, "fieldConfig.defaults.color.mode", "palette"),
    "height in words": put(GRAPH, "gridPos.h", "9"),
    "a graph's options for bars": put("Slowest agents now", "options.displayMode", "table"),
    "query of another kind": lambda dashboard: panel(dashboard, GRAPH)["targets"][0].update(legend="fleet"),
    "fixed data source": put(GRAPH, "datasource.uid", "fury-prometheus"),
    "annotation of another kind": lambda dashboard: dashboard["annotations"]["list"][0].update(useValueAsTime=True),
    "unknown key of the dashboard": lambda dashboard: dashboard.update(refreshes="5s"),
    "unknown refresh of a variable": lambda dashboard: dashboard["templating"]["list"][1].update(refresh=7),
}  # fmt: skip


def test_dashboards_are_of_grafanas_types(tmp_path: Path) -> None:
    """TypeScript finds no key, word or number that @grafana/schema does not have."""
    need("node", "npm")
    assert renderer.against_schema(DASHBOARDS, tmp_path) == []


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What TypeScript says when each defect is in a copy of the Fleet dashboard."""
    need("node", "npm")
    seeded = {}
    for n, mutate in enumerate(DEFECTS.values()):
        seeded[f"defect{n}"] = copy.deepcopy(DASHBOARDS["fleet"])
        mutate(seeded[f"defect{n}"])
    return renderer.against_schema(seeded, tmp_path_factory.mktemp("schema"))


@pytest.mark.parametrize("defect", DEFECTS)
def test_types_catch_a_seeded_defect(findings: list[str], defect: str) -> None:
    """Each seeded defect is an error in its copy."""
    name = f"defect{list(DEFECTS).index(defect)}.ts"
    assert [line for line in findings if line.startswith(name)], findings
