"""What can be known of a dashboard without Grafana or Prometheus: checks return sentences, none when all is well."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import yaml
from grafana_foundation_sdk.models import units

from grafana.source.panels import DATASOURCE_UID, SCHEMA_VERSION

Tree = dict[str, Any]

# Those that Grafana's own libraries can render here.
PANEL_TYPES = {"timeseries", "stat", "bargauge", "table", "text", "row"}
TRANSFORMATIONS = {"joinByField", "organize"}
UNITS = {value for name, value in vars(units).items() if name[0].isupper() and isinstance(value, str)}
MOUNT = "/etc/grafana/fury/dashboards"  # where README.md tells to mount grafana/dashboards


def panels(dashboard: Tree) -> list[Tree]:
    """Returns every panel, those inside collapsed rows included."""
    return [panel for outer in dashboard["panels"] for panel in (outer, *outer.get("panels", []))]


def expressions(dashboard: Tree) -> Iterator[tuple[str, Tree]]:
    """Yields the title and the target of every query of every panel."""
    for panel in panels(dashboard):
        for target in panel.get("targets", []):
            yield f"{panel.get('title')} {target.get('refId')}", target


def substitute(expr: str, values: dict[str, str]) -> str:
    """Returns `expr` with `$name` and `${name}` replaced by the values, the way Grafana does before it asks."""
    for name, value in values.items():
        expr = re.sub(r"\$\{" + name + r"(:\w+)?\}|\$" + name + r"\b", lambda _, v=value: v, expr)  # type: ignore[misc]
    return expr


def example_values(dashboard: Tree) -> dict[str, str]:
    """Returns a value for every variable of the dashboard and for Grafana's own."""
    own = {"__rate_interval": "8s", "__interval": "2s", "__range": "900s"}
    return own | {variable["name"]: "x" for variable in dashboard["templating"]["list"]}


def metrics_of(contract: str) -> set[str]:
    """Returns the metric names that docs/protocol.md (its text) promises."""
    return set(re.findall(r"fury_[a-z_]+", contract))


def check_dashboard(dashboard: Tree, metrics: set[str]) -> list[str]:
    """Returns what is wrong with a dashboard whose queries may use `metrics` and process_*."""
    problems = [*_check_frame(dashboard), *_check_layout(dashboard), *_check_variables(dashboard)]
    problems += _check_datasources(dashboard)
    for panel in panels(dashboard):
        problems += _check_panel(panel)
    values = example_values(dashboard)
    for where, target in expressions(dashboard):
        problems += _check_expression(where, str(target.get("expr", "")), values, metrics)
    return problems


def _check_frame(dashboard: Tree) -> Iterator[str]:
    if dashboard.get("schemaVersion") != SCHEMA_VERSION:
        yield f"schemaVersion is {dashboard.get('schemaVersion')}, not {SCHEMA_VERSION}"
    for key in ("uid", "title", "description", "refresh"):
        if not dashboard.get(key):
            yield f"the dashboard has no {key}"


def _check_layout(dashboard: Tree) -> Iterator[str]:
    ids = [panel.get("id") for panel in panels(dashboard)]
    for number in sorted({str(n) for n in ids if ids.count(n) > 1 or not isinstance(n, int)}):
        yield f"panel id {number} is not unique"
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard["panels"]:
        at, title = panel["gridPos"], str(panel.get("title"))
        if at["x"] < 0 or at["y"] < 0 or at["w"] < 1 or at["h"] < 1 or at["x"] + at["w"] > 24:
            yield f"{title}: gridPos {at} is outside the 24 columns"
        cells = itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"]))
        for other in sorted({taken[cell] for cell in cells if cell in taken}):
            yield f"{title}: overlaps {other}"
        cells = itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"]))
        taken |= dict.fromkeys(cells, title)


def _check_variables(dashboard: Tree) -> Iterator[str]:
    by_name = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    for name in ("datasource", "run", "agent"):
        if name not in by_name:
            yield f"variable {name} is missing"
    for name, variable in by_name.items():
        if not variable.get("label") or not variable.get("current"):
            yield f"variable {name}: has no label or no current value"
        if any(key.startswith("auto") for key in variable):
            yield f"variable {name}: has the SDK's auto keys"
        if variable["type"] == "query" and not label_query(variable):
            yield f"variable {name}: its query is not label_values(metric, label)"
    agent = by_name.get("agent", {})
    if not (agent.get("multi") and agent.get("includeAll")):
        yield "variable agent: has to offer several and all"
    if by_name.get("datasource", {}).get("current", {}).get("value") != DATASOURCE_UID:
        yield "variable datasource: does not start with the provisioned data source"


def label_query(variable: Tree) -> tuple[str, str] | None:
    """Returns selector and label of a variable's `label_values(selector, label)`, None where it is something else."""
    match = re.fullmatch(r"label_values\((.+), *(\w+)\)", str(variable.get("query")))
    return (match[1], match[2]) if match else None


def _check_datasources(tree: Any, path: str = "dashboard") -> Iterator[str]:
    if isinstance(tree, dict):
        source = tree.get("datasource")
        if source is not None and source != {"type": "prometheus", "uid": "${datasource}"}:
            yield f"{tree.get('title') or path}: datasource is {source}, not ${{datasource}}"
        for key, value in tree.items():
            yield from _check_datasources(value, f"{path}.{key}")
    elif isinstance(tree, list):
        for n, value in enumerate(tree):
            yield from _check_datasources(value, f"{path}[{n}]")


def _check_panel(panel: Tree) -> Iterator[str]:
    title, kind = panel.get("title"), panel.get("type")
    if kind not in PANEL_TYPES:
        yield f"{title}: panel type {kind} is not among {sorted(PANEL_TYPES)}"
    if not title:
        yield f"panel {panel.get('id')} has no title"
    if kind == "row":
        return
    if not panel.get("description"):
        yield f"{title}: no description"
    if kind == "text":
        return
    defaults = panel["fieldConfig"]["defaults"]
    properties = [p for override in panel["fieldConfig"]["overrides"] for p in override["properties"]]
    used = [defaults.get("unit"), *(p["value"] for p in properties if p["id"] == "unit")]
    for unit in used:
        if unit not in UNITS:
            yield f"{title}: unit {unit} is not one of Grafana's"
    steps = [step["value"] for step in defaults.get("thresholds", {}).get("steps", [])]
    if not steps or steps[0] is not None or any(a >= b for a, b in itertools.pairwise(steps[1:])):
        yield f"{title}: thresholds {steps} do not ascend from null"
    if not panel.get("datasource") or not panel.get("targets"):
        yield f"{title}: no datasource or no query"
    refs = [target.get("refId") for target in panel.get("targets", [])]
    if len(set(refs)) != len(refs):
        yield f"{title}: refIds {refs} are not unique"
    if kind == "timeseries" and not panel.get("options", {}).get("legend", {}).get("showLegend"):
        yield f"{title}: no legend"
    for target in panel.get("targets", []):
        if not target.get("datasource"):
            yield f"{title}: query {target.get('refId')} has no datasource"
        if kind != "table" and not target.get("legendFormat"):
            yield f"{title}: query {target.get('refId')} has no legend"
        for label in re.findall(r"\{\{\s*(\w+)\s*\}\}", target.get("legendFormat") or ""):
            if label not in re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", target["expr"]))):
                yield f"{title}: legend label {label} is not in the result of {target['expr']}"
    yield from _check_transformations(panel, refs)


def _check_transformations(panel: Tree, refs: list[Any]) -> Iterator[str]:
    columns: set[str] = set()
    for transformation in panel.get("transformations", []):
        if transformation["id"] not in TRANSFORMATIONS:
            yield f"{panel['title']}: transformation {transformation['id']} is unknown"
        columns |= set(transformation["options"].get("renameByName", {}))
    for column in sorted(columns):
        if column.startswith("Value #") and column.removeprefix("Value #") not in refs:
            yield f"{panel['title']}: column {column} has no query"


def _check_expression(where: str, expr: str, values: dict[str, str], metrics: set[str]) -> Iterator[str]:
    for window in re.findall(r"\[([^]]*)\]", expr):
        if window not in ("$__rate_interval", "$__range"):
            yield f"{where}: window [{window}] is neither $__rate_interval nor $__range"
    plain = substitute(expr, values)
    if "$" in plain:
        yield f"{where}: unknown variable in {plain}"
        return
    try:
        promql_parser.parse(plain)
    except ValueError as error:
        yield f"{where}: does not parse: {error}: {plain}"
        return
    for metric in sorted(set(re.findall(r"\b(?:fury|process)_\w+", re.sub(r'"[^"]*"', "", plain)))):
        if metric not in metrics and not metric.startswith("process_"):
            base = re.sub(r"_(bucket|sum|count)$", "", metric)
            if base not in metrics or not base.endswith("_seconds"):
                yield f"{where}: metric {metric} is not in docs/protocol.md"


def check_provisioning(grafana: Path) -> list[str]:
    """Returns what does not fit together between the provisioning, prometheus.yml and the dashboards in `grafana`."""
    problems = []
    sources = yaml.safe_load((grafana / "provisioning/datasources/fury.yml").read_text(encoding="utf-8"))["datasources"]
    prometheus = yaml.safe_load((grafana / "prometheus.yml").read_text(encoding="utf-8"))
    provider_file = (grafana / "provisioning/dashboards/fury.yml").read_text(encoding="utf-8")
    providers = yaml.safe_load(provider_file)["providers"]
    if [(source["uid"], source["type"]) for source in sources] != [(DATASOURCE_UID, "prometheus")]:
        problems.append(f"provisioning/datasources/fury.yml: not exactly one prometheus with uid {DATASOURCE_UID}")
    intervals = {source.get("jsonData", {}).get("timeInterval") for source in sources}
    if intervals != {prometheus["global"]["scrape_interval"]}:
        problems.append("provisioning/datasources/fury.yml: timeInterval is not prometheus.yml's scrape_interval")
    if [provider["options"]["path"] for provider in providers] != [MOUNT]:
        problems.append(f"provisioning/dashboards/fury.yml: the path is not {MOUNT}")
    named = sorted(re.findall(r"\b([\w-]+\.json)\b", provider_file))
    shipped = sorted(path.name for path in (grafana / "dashboards").iterdir())
    if named != shipped:
        problems.append(f"provisioning/dashboards/fury.yml: names {named}, shipped are {shipped}")
    readme = (grafana / "README.md").read_text(encoding="utf-8")
    missing = [part for part in (MOUNT, "prometheus.yml", "provisioning", *shipped) if part not in readme]
    return problems + [f"README.md: does not say {part}" for part in missing]
