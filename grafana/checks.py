"""What can be known of a dashboard without Grafana or Prometheus: checks return sentences, none when all is well."""

from __future__ import annotations

import itertools
import json
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
TRANSFORMATIONS = {"joinByField", "organize", "groupingToMatrix", "sortBy"}
WINDOWS = {"$__rate_interval", "$__range", "$__range:2s"}  # 2s is the scrape interval: no step misses a scrape
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


def marks(dashboard: Tree) -> Iterator[tuple[str, Tree]]:
    """Yields name and query of every annotation, in the keys of a panel's target."""
    for mark in dashboard["annotations"]["list"]:
        yield f"annotation {mark.get('name')}", {**mark, "legendFormat": mark.get("textFormat")}


def substitute(expr: str, values: dict[str, str]) -> str:
    """Returns `expr` with `$name` and `${name}` replaced by the values, the way Grafana does before it asks."""
    for name, value in values.items():
        expr = re.sub(r"\$\{" + name + r"(:\w+)?\}|\$" + name + r"\b", lambda _, v=value: v, expr)  # type: ignore[misc]
    return expr


def example_values(dashboard: Tree) -> dict[str, str]:
    """Returns a value for every variable of the dashboard and for Grafana's own."""
    own = {"__rate_interval": "8s", "__interval": "2s", "__range": "900s"}
    return own | {variable["name"]: "x" for variable in dashboard["templating"]["list"]}


def label_query(variable: Tree) -> tuple[str, str] | None:
    """Returns selector and label of a variable's `label_values(selector, label)`, None where it is something else."""
    match = re.fullmatch(r"label_values\((.+), *(\w+)\)", str(variable.get("query")))
    return (match[1], match[2]) if match else None


def metrics_of(contract: str) -> set[str]:
    """Returns the metric names that docs/protocol.md (its text) promises."""
    return set(re.findall(r"fury_[a-z_]+", contract))


def check_dashboard(dashboard: Tree, metrics: set[str]) -> list[str]:
    """Returns what is wrong with a dashboard whose queries may use `metrics`, `up` and process_*."""
    problems = [*_check_frame(dashboard), *_check_layout(dashboard), *_check_variables(dashboard)]
    problems += [*_check_datasources(dashboard), *_check_marks(dashboard)]
    for panel in panels(dashboard):
        problems += _check_panel(panel)
    for where, target in itertools.chain(expressions(dashboard), marks(dashboard)):
        problems += _check_expression(where, str(target.get("expr", "")), dashboard, metrics)
    return problems


def check_links(dashboards: list[Tree]) -> list[str]:
    """Returns what is wrong with the ways between these dashboards."""
    problems = []
    by_uid = {dashboard["uid"]: dashboard for dashboard in dashboards}
    if len(by_uid) != len(dashboards):
        problems.append(f"uids {sorted(dashboard['uid'] for dashboard in dashboards)} are not unique")
    tags = {tag for dashboard in dashboards for tag in dashboard["tags"]}
    for dashboard in dashboards:
        for link in dashboard.get("links", []):
            if link["type"] != "dashboards" or not set(link["tags"]) <= tags or not link["includeVars"]:
                problems.append(f"{dashboard['title']}: link {link['title']} leads nowhere, or drops the variables")
        for url in re.findall(r'"url": "(/[^"]*)"', json.dumps(dashboard["panels"])):
            where, _, arguments = url.partition("?")
            there = by_uid.get(where.removeprefix("/d/"))
            known = {variable["name"] for variable in there["templating"]["list"]} if there else set()
            named = re.findall(r"var-(\w+)=|\$\{(\w+):queryparam\}", arguments)
            if not there or not {a or b for a, b in named} <= known:
                problems.append(f"{dashboard['title']}: {url} leads to no dashboard or sets a variable that it has not")
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
        if bool(variable.get("multi")) != bool(variable.get("includeAll")):
            yield f"variable {name}: has to offer one, or several and all"
        if variable.get("multi") and variable.get("allValue") != ".+":
            yield f"variable {name}: all has to ask for any, not list every name"
    if by_name.get("datasource", {}).get("current", {}).get("value") != DATASOURCE_UID:
        yield "variable datasource: does not start with the provisioned data source"


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
        yield from _check_labels(str(title), target)
        yield from _check_unit(panel, target)
    yield from _check_transformations(panel, refs)


def _check_marks(dashboard: Tree) -> Iterator[str]:
    names = [name for name, _ in marks(dashboard)]
    if len(set(names)) != len(names) or not names:
        yield f"annotations {names} are none or not unique"
    for name, mark in marks(dashboard):
        for key in ("name", "iconColor", "enable", "datasource", "titleFormat", "textFormat"):
            if not mark.get(key):
                yield f"{name}: no {key}"
        if mark.get("step") != "2s":
            yield f"{name}: step {mark.get('step')}; without 2s Grafana looks once a minute"
        yield from _check_labels(name, mark)


def _check_labels(where: str, target: Tree) -> Iterator[str]:
    grouped = re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", target["expr"])))
    for label in re.findall(r"\{\{\s*(\w+)\s*\}\}", target.get("legendFormat") or ""):
        if label not in grouped:
            yield f"{where}: legend label {label} is not in the result of {target['expr']}"


def _check_unit(panel: Tree, target: Tree) -> Iterator[str]:
    """Says where a query's unit is not that of its metric, as Prometheus' names have it."""
    expr, ref = target["expr"], target["refId"]
    unit = panel["fieldConfig"]["defaults"].get("unit")
    for transformation in panel.get("transformations", []):
        column = transformation["options"].get("renameByName", {}).get(f"Value #{ref}")
        for override in panel["fieldConfig"]["overrides"]:
            if override["matcher"]["options"] == column:
                unit = next((each["value"] for each in override["properties"] if each["id"] == "unit"), unit)
    rated, shares = "rate(" in expr, ") / " in expr
    of_metric = {
        r"_(ratio|cpu_seconds_total|duration_seconds_sum)\b": {"percentunit"},
        r"_bytes(_total)?\b": {"percentunit"} if shares else {"Bps"} if rated else {"decbytes", "bytes"},
        r"_seconds(_bucket)?\b": {"s"},
        r"_total\b": {"cps", "eps"} if rated else {"short"},
    }
    fitting = next((units for pattern, units in of_metric.items() if re.search(pattern, expr)), {unit})
    if unit not in fitting and not expr.startswith("count"):
        yield f"{panel['title']}: unit {unit} of query {ref} is not among {sorted(fitting)}, as its metric wants"


def _check_transformations(panel: Tree, refs: list[Any]) -> Iterator[str]:
    columns: set[str] = set()
    for transformation in panel.get("transformations", []):
        if transformation["id"] not in TRANSFORMATIONS:
            yield f"{panel['title']}: transformation {transformation['id']} is unknown"
        columns |= set(transformation["options"].get("renameByName", {}))
    for column in sorted(columns):
        if column.startswith("Value #") and column.removeprefix("Value #") not in refs:
            yield f"{panel['title']}: column {column} has no query"


def _check_expression(where: str, expr: str, dashboard: Tree, metrics: set[str]) -> Iterator[str]:
    for window in re.findall(r"\[([^]]*)\]", expr):
        if window not in WINDOWS:
            yield f"{where}: window [{window}] is not among {sorted(WINDOWS)}"
    several = {variable["name"] for variable in dashboard["templating"]["list"] if variable.get("multi")}
    for operator, name in re.findall(r'([=~!]+) *"\$(\w+)"', expr):
        if operator != ("=~" if name in several else "="):
            yield f"{where}: ${name} is {'several' if name in several else 'one'} and can't be compared by {operator}"
    plain = substitute(expr, example_values(dashboard))
    if "$" in plain:
        yield f"{where}: unknown variable in {plain}"
        return
    try:
        promql_parser.parse(plain)
    except ValueError as error:
        yield f"{where}: does not parse: {error}: {plain}"
        return
    for metric in sorted(_names(plain)):
        base = re.sub(r"_(bucket|sum|count)$", "", metric)
        histogram = base in metrics and base.endswith("_seconds")
        if metric not in metrics and metric != "up" and not metric.startswith("process_") and not histogram:
            yield f"{where}: metric {metric} is not in docs/protocol.md"


def _names(expr: str) -> set[str]:
    """Returns the metrics that a valid expression selects."""
    found: set[str] = set()

    def walk(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.add(str(node.name))
        for part in ("expr", "lhs", "rhs", "vector_selector"):
            if hasattr(node, part):
                walk(getattr(node, part))
        for argument in getattr(node, "args", None) or []:
            walk(argument)

    walk(promql_parser.parse(expr))
    return found


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
