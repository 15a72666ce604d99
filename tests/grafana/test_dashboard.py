"""The committed dashboards and their provisioning, without Grafana or Prometheus."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from grafana import build, checks
from tests.grafana.seeded import Tree, panel, put

ROOT = Path(__file__).resolve().parents[2]
DASHBOARDS = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in ROOT.glob("grafana/dashboards/*.json")
}
METRICS = checks.metrics_of((ROOT / "docs/protocol.md").read_text(encoding="utf-8"))


def test_committed_dashboards_are_current() -> None:
    """Every committed JSON is exactly what its source makes, and none lacks a source."""
    assert build.outdated() == []
    assert build.main(["--check"]) == 0


@pytest.mark.parametrize("name", build.DASHBOARDS)
def test_a_dashboard_has_no_static_defect(name: str) -> None:
    """Ids, layout, texts, units, legends, thresholds, data sources, variables, annotations and PromQL hold."""
    assert checks.check_dashboard(DASHBOARDS[name.removesuffix(".json")], METRICS) == []


def test_the_ways_between_the_dashboards_lead_somewhere() -> None:
    """Every link names a dashboard that is shipped, and sets only variables that it has."""
    assert checks.check_links([*DASHBOARDS.values()]) == []
    assert "/d/fury-agent?" in json.dumps(DASHBOARDS["fleet"]["panels"])


def test_provisioning_fits_what_is_shipped() -> None:
    """Provider, data source, scrape configuration and README name exactly the files and figures shipped."""
    assert checks.check_provisioning(ROOT / "grafana") == []


def test_fleet_asks_for_every_metric_of_the_agents() -> None:
    """No metric that the contract promises of agent or collector is forgotten on the dashboard."""
    used = " ".join(target["expr"] for _, target in checks.expressions(DASHBOARDS["fleet"]))
    promised = {name for name in METRICS if name not in ("fury_agent", "fury_collector", "fury_chunk_bytes")}
    assert [name for name in sorted(promised) if name not in used] == []


def set_expr(title: str, old: str, new: str) -> Callable[[Tree], None]:
    """Returns a defect: `old` becomes `new` in the panel's first query."""

    def mutate(dashboard: Tree) -> None:
        target = panel(dashboard, title)["targets"][0]
        assert old in target["expr"]
        target["expr"] = target["expr"].replace(old, new)

    return mutate


def mark(name: str, key: str, value: object) -> Callable[[Tree], None]:
    """Returns a defect: `key` of the annotation `name` becomes `value`."""

    def mutate(dashboard: Tree) -> None:
        (found,) = [each for each in dashboard["annotations"]["list"] if each["name"] == name]
        assert found[key] != value
        found[key] = value

    return mutate


def variable(name: str, key: str, value: object) -> Callable[[Tree], None]:
    """Returns a defect: `key` of the dashboard's variable `name` becomes `value`."""

    def mutate(dashboard: Tree) -> None:
        (found,) = [each for each in dashboard["templating"]["list"] if each["name"] == name]
        assert found.get(key) != value
        found[key] = value

    return mutate


PER_AGENT = "Throughput per agent"
DEFECTS: dict[str, tuple[Callable[[Tree], None], str]] = {
    "misspelt metric": (set_expr(PER_AGENT, "written_bytes", "writen_bytes"), "fury_writen_bytes_total is not in docs"),
    "misspelt bucket": (set_expr("Push latency", "_bucket", "_buckets"), "_duration_seconds_buckets is not in docs"),
    "broken PromQL": (set_expr(PER_AGENT, "sum by", "sum be"), "does not parse"),
    "fixed window": (set_expr(PER_AGENT, "$__rate_interval", "1m"), "window [1m]"),
    "unknown variable": (set_expr(PER_AGENT, "$agent", "$agents"), "unknown variable"),
    "misspelt legend label": (put(PER_AGENT, "targets.0.legendFormat", "{{agnet}}"), "legend label agnet"),
    "no legend": (put(PER_AGENT, "targets.0.legendFormat", ""), "has no legend"),
    "hidden legend": (put(PER_AGENT, "options.legend.showLegend", False), "no legend"),
    "unknown unit": (put(PER_AGENT, "fieldConfig.defaults.unit", "bytes/s"), "unit bytes/s"),
    "unit of another metric": (put(PER_AGENT, "fieldConfig.defaults.unit", "s"), "unit s of query A is not among"),
    "bytes for a rate": (put(PER_AGENT, "fieldConfig.defaults.unit", "decbytes"), "unit decbytes of query A"),
    "unit of another column": (put("Agents", "fieldConfig.overrides.0.properties.0.value", "s"), "unit s of query A"),
    "no unit": (put(PER_AGENT, "fieldConfig.defaults.unit", None), "unit None"),
    "unknown unit of a column": (put("Agents", "fieldConfig.overrides.0.properties.0.value", "MB"), "unit MB"),
    "no description": (put(PER_AGENT, "description", ""), "no description"),
    "no title": (put(PER_AGENT, "title", ""), "has no title"),
    "panel type without a renderer": (put(PER_AGENT, "type", "heatmap"), "panel type heatmap"),
    "fixed data source": (put(PER_AGENT, "datasource.uid", "fury-prometheus"), "datasource is"),
    "fixed data source of a query": (put(PER_AGENT, "targets.0.datasource.uid", "abc"), "datasource is"),
    "same id twice": (put(PER_AGENT, "id", 201), "id 201 is not unique"),
    "overlap": (put(PER_AGENT, "gridPos.x", 11), "overlaps Fleet throughput"),
    "outside the grid": (put(PER_AGENT, "gridPos.w", 13), "outside the 24 columns"),
    "descending thresholds": (put("Start skew", "fieldConfig.defaults.thresholds.steps.1.value", 2), "do not ascend"),
    "thresholds from zero": (put("Start skew", "fieldConfig.defaults.thresholds.steps.0.value", 0), "do not ascend"),
    "unknown transformation": (put("Agents", "transformations.0.id", "joinByFeild"), "joinByFeild is unknown"),
    "column without a query": (put("Agents", "targets.6.refId", "X"), "column Value #G has no query"),
    "same ref id twice": (put("Push latency", "targets.1.refId", "A"), "are not unique"),
    "agent cannot be several": (variable("agent", "multi", False), "one, or several and all"),
    "one agent in queries of several": (
        lambda dashboard: (
            variable("agent", "multi", False)(dashboard) or variable("agent", "includeAll", False)(dashboard)
        ),
        "$agent is one and can't be compared by =~",
    ),
    "all lists every name": (variable("agent", "allValue", None), "all has to ask for any"),
    "several agents compared by equality": (set_expr(PER_AGENT, 'agent=~"', 'agent="'), "can't be compared by ="),
    "a metric of somebody else": (
        set_expr(PER_AGENT, "fury_written_bytes_total", "node_disk_written_bytes_total"),
        "is not in docs",
    ),
    "misspelt metric of a mark": (
        mark("Late agents", "expr", "sum by (run_id) (fury_collector_agent) > 0"),
        "fury_collector_agent is not in docs",
    ),
    "misspelt label of a mark": (mark("Start", "textFormat", "{{run}} starts"), "legend label run"),
    "mark looked for once a minute": (mark("Start", "step", ""), "once a minute"),
    "mark with a fixed data source": (mark("End", "datasource", {"type": "prometheus", "uid": "abc"}), "datasource is"),
    "same mark twice": (mark("End", "name", "Start"), "not unique"),
    "matrix of an unknown transformation": (put("Agents", "transformations.0.id", "groupingToMatrx"), "is unknown"),
    "odd variable query": (variable("run", "query", "query_result(up)"), "label_values"),
    "the SDK's extra keys": (variable("run", "auto", False), "auto keys"),
    "old schema": (lambda dashboard: dashboard.update(schemaVersion=36), "schemaVersion is 36"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_static_checks_catch_a_seeded_defect(defect: str) -> None:
    """Each seeded defect is reported in words that name it."""
    mutate, expected = DEFECTS[defect]
    dashboard = copy.deepcopy(DASHBOARDS["fleet"])
    mutate(dashboard)
    problems = checks.check_dashboard(dashboard, METRICS)
    assert any(expected in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"uid": "fury-agent"', '"uid": "fury-fleet"', "not unique"),
        ("/d/fury-agent?", "/d/fury-agents?", "leads to no dashboard"),
        ("?var-agent=", "?var-agents=", "sets a variable that it has not"),
        ('"tags": ["fury"], "targetBlank"', '"tags": ["furry"], "targetBlank"', "leads nowhere"),
        ('"includeVars": true', '"includeVars": false', "drops the variables"),
    ],
)
def test_link_check_catches_a_seeded_defect(old: str, new: str, expected: str) -> None:
    """A way that leads nowhere, or to the right dashboard without its run or agent, is reported."""
    text = json.dumps([*DASHBOARDS.values()])
    assert old in text
    problems = checks.check_links(json.loads(text.replace(old, new)))
    assert any(expected in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("provisioning/datasources/fury.yml", "timeInterval: 2s", "timeInterval: 15s", "timeInterval"),
        ("provisioning/datasources/fury.yml", "uid: fury-prometheus", "uid: prometheus", "uid"),
        ("provisioning/dashboards/fury.yml", "/etc/grafana/fury/dashboards\n", "/etc/grafana/dashboards\n", "path"),
        ("provisioning/dashboards/fury.yml", "fleet.json", "agents.json", "agents.json"),
        ("prometheus.yml", "scrape_interval: 2s", "scrape_interval: 5s", "timeInterval"),
        ("README.md", "compare.json", "compare", "compare.json"),
    ],
)
def test_provisioning_check_catches_a_seeded_defect(
    file: str, old: str, new: str, expected: str, tmp_path: Path
) -> None:
    """A provisioning that no longer fits the files shipped is reported."""
    shutil.copytree(ROOT / "grafana", tmp_path / "grafana")
    path = tmp_path / "grafana" / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    problems = checks.check_provisioning(tmp_path / "grafana")
    assert any(expected in problem for problem in problems), problems


def test_edited_or_stray_json_is_reported(tmp_path: Path) -> None:
    """A dashboard edited by hand, and one that no source makes, are both named."""
    shutil.copytree(ROOT / "grafana/dashboards", tmp_path, dirs_exist_ok=True)
    (tmp_path / "fleet.json").write_text(json.dumps(DASHBOARDS["fleet"]), encoding="utf-8")
    (tmp_path / "old.json").write_text("{}", encoding="utf-8")
    problems = build.outdated(tmp_path)
    assert len(problems) == 2
    assert "fleet.json" in problems[0]
    assert "old.json" in problems[1]
