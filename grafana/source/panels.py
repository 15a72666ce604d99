"""What all dashboards share: panels with the house's defaults, queries joined to a run, layout, JSON.

The Foundation SDK has no useful types to check against and adds keys that Grafana does not know at their place, so
builders are `Any` here and `render` removes those keys.
"""

from __future__ import annotations

import json
from typing import Any

from grafana_foundation_sdk.builders import bargauge, common, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import prometheus as queries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as query_models

DATASOURCE = common_models.DataSourceRef(type_val="prometheus", uid="${datasource}")
DATASOURCE_UID = "fury-prometheus"  # the provisioned one; the variable starts with it
SCHEMA_VERSION = 42

Step = tuple[float | None, str]
Panel = tuple[Any, int, int]  # builder, width, height


# Queries. Only the info metrics carry the run id, so every other one is joined to them by its target.


def of_run(metric: str, window: str | None = "$__rate_interval", function: str = "rate") -> str:
    """Returns `metric` of the chosen agents and run: `function` over `window`, or as it is where the window is None."""
    selector = f'{metric}{{agent=~"$agent"}}'
    if window is None:
        return f'{selector} * on (job, instance) group_left () fury_run_info{{run_id="$run"}}'
    # Over the whole range the join has to look as far back as the value, or agents that have gone would drop out.
    info = 'fury_run_info{run_id="$run"}'
    if window == "$__range":
        info = f"max_over_time({info}[$__range])"
    return f"{function}({selector}[{window}]) * on (job, instance) group_left () {info}"


def of_collector(metric: str, window: str | None = "$__rate_interval") -> str:
    """Returns the collector's `metric` while it serves the chosen run."""
    value = metric if window is None else f"rate({metric}[{window}])"
    return f'{value} * on (job, instance) group_left () (fury_collector_run_info{{run_id="$run"}} == 1)'


def quantile(q: float, value: str, by: str = "") -> str:
    """Returns the `q` quantile of histogram rates; where nothing was observed there is a gap and not a NaN."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({q}, sum by ({labels}) ({value})) >= 0"


def target(expr: str, legend: str, ref: str = "A") -> Any:
    """Returns a query over the dashboard's time range."""
    return queries.Dataquery().expr(expr).legend_format(legend).ref_id(ref).datasource(DATASOURCE).range()


def instant(expr: str, legend: str, ref: str = "A") -> Any:
    """Returns a query at the end of the dashboard's time range."""
    return queries.Dataquery().expr(expr).legend_format(legend).ref_id(ref).datasource(DATASOURCE).instant()


def columns(expr: str, ref: str) -> Any:
    """Returns a query at the end of the time range, as rows of a table."""
    query = queries.Dataquery().expr(expr).ref_id(ref).datasource(DATASOURCE).instant()
    return query.format(query_models.PromQueryFormat.TABLE)


# Panels. Each has title, description and unit; thresholds are always set, because Grafana's default is "red from 80".


def graph(title: str, description: str, unit: str, *targets: Any, stacked: bool = False) -> Any:
    """Returns a time series whose legend is a table of last, mean and max, and whose colours go by name."""
    legend = common.VizLegendOptions().display_mode(common_models.LegendDisplayMode.TABLE)
    legend = legend.placement(common_models.LegendPlacement.BOTTOM).show_legend(True)
    legend = legend.calcs(["lastNotNull", "mean", "max"])
    tooltip = common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI)
    panel = timeseries.Panel().line_width(1).fill_opacity(30 if stacked else 8).min(0).legend(legend)
    panel = panel.tooltip(tooltip.sort(common_models.SortOrder.DESCENDING))
    panel = panel.show_points(common_models.VisibilityMode.AUTO).span_nulls(False)
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL).group("A"))
    return _finish(panel, title, description, unit, [(None, "green")], "palette-classic-by-name", targets)


def number(
    title: str, description: str, unit: str, *targets: Any, steps: list[Step] | None = None, words: bool = False
) -> Any:
    """Returns one big number (`words`: the series' name instead), coloured by `steps`."""
    mode = common_models.BigValueTextMode.NAME if words else common_models.BigValueTextMode.VALUE
    panel = stat.Panel().reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False).fields(""))
    panel = panel.color_mode(common_models.BigValueColorMode.VALUE).text_mode(mode)
    panel = panel.graph_mode(common_models.BigValueGraphMode.NONE)
    return _finish(panel, title, description, unit, steps or [(None, "text")], "thresholds", targets)


def bars(title: str, description: str, unit: str, *targets: Any, colours: dict[str, str] | None = None) -> Any:
    """Returns horizontal bars, one per series; `colours` gives series of these names their own."""
    panel = bargauge.Panel().reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False).fields(""))
    panel = panel.orientation(common_models.VizOrientation.HORIZONTAL)
    panel = panel.display_mode(common_models.BarGaugeDisplayMode.BASIC).min(0)
    for name, colour in (colours or {}).items():
        fixed = models.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": colour})
        panel = panel.override_by_name(name, [fixed])
    return _finish(panel, title, description, unit, [(None, "blue")], "thresholds", targets)


def rows(title: str, description: str, key: str, names: dict[str, tuple[str, str]], *targets: Any) -> Any:
    """Returns a table with a row per `key`; `names` gives each query's column its title and unit, by ref id."""
    panel = table.Panel().with_transformation(
        models.DataTransformerConfig(id_val="joinByField", options={"byField": key, "mode": "outer"})
    )
    # Joining numbers the columns that several queries have: "Time 1", "Time 2", …
    hidden = {"Time": True} | {f"Time {n}": True for n in range(1, len(targets) + 1)}
    titles = {f"Value #{ref}": name for ref, (name, _) in names.items()} | {key: key.capitalize(), "host": "Host"}
    order = {column: n for n, column in enumerate([key, "host", *(f"Value #{ref}" for ref in names)])}
    options = {"excludeByName": hidden, "renameByName": titles, "indexByName": order}
    panel = panel.with_transformation(models.DataTransformerConfig(id_val="organize", options=options))
    for name, unit in names.values():
        panel = panel.override_by_name(name, [models.DynamicConfigValue(id_val="unit", value=unit)])
    return _finish(panel, title, description, "short", [(None, "text")], "thresholds", targets)


def _finish(
    panel: Any, title: str, description: str, unit: str, steps: list[Step], colour: str, targets: tuple[Any, ...]
) -> Any:
    thresholds = builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE)
    panel = panel.thresholds(thresholds.steps([models.Threshold(value=value, color=name) for value, name in steps]))
    panel = panel.color_scheme(builders.FieldColor().mode(models.FieldColorModeId(colour)))
    for query in targets:
        panel = panel.with_target(query)
    return panel.title(title).description(description).unit(unit).datasource(DATASOURCE)


# Dashboards.


def variables() -> list[Any]:
    """Returns the three variables every dashboard starts with: data source, run (the newest first) and agents."""
    chosen = models.VariableOption(text="Fury Prometheus", value=DATASOURCE_UID)
    source = builders.DatasourceVariable("datasource").label("Data source").type("prometheus").current(chosen)
    run = builders.QueryVariable("run").label("Run").datasource(DATASOURCE)
    run = run.query("label_values(fury_collector_run_info, run_id)").sort(models.VariableSort.ALPHABETICAL_DESC)
    run = run.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).current(models.VariableOption(text="", value=""))
    agent = builders.QueryVariable("agent").label("Agent").datasource(DATASOURCE)
    agent = agent.query('label_values(fury_run_info{run_id="$run"}, agent)').sort(models.VariableSort.ALPHABETICAL_ASC)
    agent = agent.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).multi(True).include_all(True)
    # A list of a thousand names in every query would be slow: "All" asks for any agent.
    agent = agent.all_value(".+").current(models.VariableOption(text=["All"], value=["$__all"]))
    return [source, run, agent]


def lay_out(dashboard: Any, sections: dict[str, list[Panel]]) -> Any:
    """Returns `dashboard` with a row per section and its panels flowing left to right inside the 24 columns.

    The ids of a section's panels start at its own hundred, so that a panel added in one does not renumber the others.
    """
    y = 0
    for section, (title, panels) in enumerate(sections.items(), start=1):
        row = builders.Row(title).id(section * 100).grid_pos(models.GridPos(h=1, w=24, x=0, y=y))
        dashboard = dashboard.with_row(row)
        x, y, line_height = 0, y + 1, 0
        for n, (panel, width, height) in enumerate(panels, start=1):
            if x + width > 24:
                x, y, line_height = 0, y + line_height, 0
            position = models.GridPos(h=height, w=width, x=x, y=y)
            dashboard = dashboard.with_panel(panel.id(section * 100 + n).grid_pos(position))
            x, line_height = x + width, max(line_height, height)
        y += line_height
    return dashboard


def render(dashboard: Any) -> str:
    """Returns the JSON of a built dashboard as it is committed."""
    tree: dict[str, Any] = json.loads(JSONEncoder().encode(dashboard.build()))
    tree["schemaVersion"] = SCHEMA_VERSION
    tree["annotations"].setdefault("list", [])
    for variable in tree["templating"]["list"]:
        if variable["type"] != "interval":
            for key in ("auto", "auto_count", "auto_min"):
                variable.pop(key, None)
    for panel in tree["panels"]:
        if "repeat" not in panel:
            panel.pop("repeatDirection", None)
        if panel["type"] == "table":
            panel["options"].pop("footer", None)
    return json.dumps(tree, indent=2, sort_keys=True) + "\n"
