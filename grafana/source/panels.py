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

HEADINGS = {"agent": "Agent", "host": "Host", "run_id": "Run", "version": "Version", "directory": "Directory"}
WIDTHS = {"agent": 120, "run_id": 190, "dateTimeAsIso": 170}  # of a table's columns, by key or unit
_HERE = "${datasource:queryparam}&${__url_time_range}"
_TO_AGENT = "/d/fury-agent?var-agent=${__value.raw}&${run:queryparam}&" + _HERE
_TO_FLEET = "/d/fury-fleet?var-run=${__value.raw}&" + _HERE
LINKS = {
    "agent": {"title": "This agent in depth", "url": _TO_AGENT},
    "run_id": {"title": "This run's fleet", "url": _TO_FLEET},
}

Step = tuple[float | None, str]
Panel = tuple[Any, int, int]  # builder, width, height

WRITTEN = "fury_written_bytes_total"
ROLLOVERS = "fury_rollovers_total"
WRITE = "fury_write_duration_seconds_bucket"
FSYNC = "fury_fsync_duration_seconds_bucket"
READ = "fury_read_duration_seconds_bucket"
QUANTILES = {"A": 0.5, "B": 0.95, "C": 0.99}

SEVERAL_AGENTS, ONE_AGENT, EVERY_AGENT = '{agent=~"$agent"}', '{agent="$agent"}', ""
ONE_RUN, SEVERAL_RUNS = '{run_id="$run"}', '{run_id=~"$run"}'

# Queries. Only the info metrics carry the run id, so every other one is joined to them by its target.


def of_run(
    metric: str,
    window: str | None = "$__rate_interval",
    function: str = "rate",
    *,
    agents: str = SEVERAL_AGENTS,
    runs: str = ONE_RUN,
) -> str:
    """Returns `metric` of the chosen agents and runs: `function` over `window`, or as it is where the window is None."""
    value, info = f"{metric}{agents}", f"fury_run_info{runs}"
    if window is not None:
        value = f"{function}({value}[{window}])"
    # Over the whole range the join has to look as far back as the value, or agents that have gone would drop out.
    if window == "$__range":
        info = f"max_over_time({info}[$__range])"
    return f"{value} * on (job, instance) group_left (run_id) {info}"


def of_collector(metric: str, window: str | None = "$__rate_interval", *, runs: str = ONE_RUN, offset: str = "") -> str:
    """Returns the collector's `metric` while it serves a chosen run, or did so `offset` ago."""
    value = metric if window is None else f"rate({metric}[{window}])"
    info = f"fury_collector_run_info{runs}"
    if offset:
        value, info = f"{value} offset {offset}", f"{info} offset {offset}"
    return f"{value} * on (job, instance) group_left (run_id) ({info} == 1)"


def running(runs: str, offset: str = "") -> str:
    """Returns 1 for every chosen run while it runs, and nothing before and after."""
    state = of_collector('fury_collector_run_state{state="running"}', None, runs=runs, offset=offset)
    return f"max by (run_id) ({state}) == 1"


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
    """Returns a time series whose legend is a table of last, mean and max."""
    legend = common.VizLegendOptions().display_mode(common_models.LegendDisplayMode.TABLE)
    legend = legend.placement(common_models.LegendPlacement.BOTTOM).show_legend(True)
    legend = legend.calcs(["lastNotNull", "mean", "max"])
    tooltip = common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI)
    panel = timeseries.Panel().line_width(1).fill_opacity(30 if stacked else 8).min(0).legend(legend)
    panel = panel.tooltip(tooltip.sort(common_models.SortOrder.DESCENDING))
    panel = panel.show_points(common_models.VisibilityMode.AUTO).span_nulls(False)
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL).group("A"))
    return _finish(panel, title, description, unit, [(None, "green")], "palette-classic", targets)


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
    panel = panel.text(common.VizTextDisplayOptions().title_size(13).value_size(18))
    for name, colour in (colours or {}).items():
        fixed = models.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": colour})
        panel = panel.override_by_name(name, [fixed])
    return _finish(panel, title, description, unit, [(None, "blue")], "thresholds", targets)


def rows(
    title: str,
    description: str,
    key: str,
    names: dict[str, tuple[str, str]],
    *targets: Any,
    words: tuple[str, ...] = (),
) -> Any:
    """Returns a table with a row per `key`; `names` gives each query's column its title and unit, by ref id.

    `words` are labels of the first query that become columns too.
    """
    panel = table.Panel().min_width(90)  # with Grafana's own 150 nine columns would not fit
    join = {"byField": key, "mode": "outer"}
    panel = panel.with_transformation(models.DataTransformerConfig(id_val="joinByField", options=join))
    # Joining numbers the columns that several queries have: "Time 1", "Time 2", …
    hidden = {"Time": True} | {f"Time {n}": True for n in range(1, len(targets) + 1)}
    titles = {f"Value #{ref}": name for ref, (name, _) in names.items()} | {
        label: HEADINGS[label] for label in (key, *words)
    }
    order = {column: n for n, column in enumerate([key, *words, *(f"Value #{ref}" for ref in names)])}
    shown = {"excludeByName": hidden, "renameByName": titles, "indexByName": order}
    panel = panel.with_transformation(models.DataTransformerConfig(id_val="organize", options=shown))
    for name, unit in names.values():
        options = [models.DynamicConfigValue(id_val="unit", value=unit)]
        if unit in WIDTHS:
            options.append(models.DynamicConfigValue(id_val="custom.width", value=WIDTHS[unit]))
        panel = panel.override_by_name(name, options)
    link = models.DynamicConfigValue(id_val="links", value=[LINKS[key]])
    width = models.DynamicConfigValue(id_val="custom.width", value=WIDTHS[key])
    panel = panel.override_by_name(HEADINGS[key], [link, width])
    return _finish(panel, title, description, "short", [(None, "text")], "thresholds", targets)


def matrix(title: str, description: str, unit: str, query: Any) -> Any:
    """Returns a table with a row per agent and a column per run from a query by (agent, run_id)."""
    options = {"rowField": "agent", "columnField": "run_id", "valueField": "Value", "emptyValue": "null"}
    panel = table.Panel()
    for field in ("agent", "run_id"):  # rows and columns come in the order of the answer
        order = {"sort": [{"field": field, "desc": False}]}
        panel = panel.with_transformation(models.DataTransformerConfig(id_val="sortBy", options=order))
    panel = panel.with_transformation(models.DataTransformerConfig(id_val="groupingToMatrix", options=options))
    corner = {"renameByName": {"agent\\run_id": HEADINGS["agent"]}}
    panel = panel.with_transformation(models.DataTransformerConfig(id_val="organize", options=corner))
    return _finish(panel, title, description, unit, [(None, "text")], "thresholds", (query,))


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


def start(title: str, uid: str, description: str, *, agents: str = SEVERAL_AGENTS, runs: str = ONE_RUN) -> Any:
    """Returns a dashboard without panels: with variables for those runs and agents, their marks, and the way to the others."""
    board = builders.Dashboard(title).uid(uid).tags(["fury"]).editable().timezone("browser").description(description)
    board = board.time("now-15m", "now").tooltip(models.DashboardCursorSync.CROSSHAIR)
    links = builders.DashboardLink("Fury").type(models.DashboardLinkType.DASHBOARDS).tags(["fury"])
    board = board.link(links.include_vars(True).keep_time(True))
    for variable in _variables(agents=agents, runs=runs):
        board = board.with_variable(variable)
    for each in _marks(runs):
        board = board.annotation(each)
    return board


def _variables(*, agents: str, runs: str) -> list[Any]:
    """Returns the three variables of every dashboard: data source, run (the newest first) and agent."""
    chosen = models.VariableOption(text="Fury Prometheus", value=DATASOURCE_UID)
    source = builders.DatasourceVariable("datasource").label("Data source").type("prometheus").current(chosen)
    run = _chooser("run", "label_values(fury_collector_run_info, run_id)", several=runs == SEVERAL_RUNS)
    run = run.label("Run").sort(models.VariableSort.ALPHABETICAL_DESC)
    agent = _chooser("agent", f"label_values(fury_run_info{runs}, agent)", several=agents == SEVERAL_AGENTS)
    return [source, run, agent.label("Agent").sort(models.VariableSort.ALPHABETICAL_ASC)]


def _chooser(name: str, query: str, *, several: bool) -> Any:
    variable = builders.QueryVariable(name).datasource(DATASOURCE).query(query)
    variable = variable.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
    if not several:
        return variable.current(models.VariableOption(text="", value=""))
    # A list of a thousand names in every query would be slow: "All" asks for any.
    variable = variable.multi(True).include_all(True).all_value(".+")
    return variable.current(models.VariableOption(text=["All"], value=["$__all"]))


def _marks(runs: str) -> list[Any]:
    """Returns what every graph is marked with: start and end of the chosen runs, and their faults."""
    before = running(runs, "$__rate_interval")
    silent, lost = (
        of_collector(f"fury_collector_agents{{health=~{health}}}", None, runs=runs)
        for health in ('"late|suspect"', '"lost"')
    )
    failed = of_collector("delta(fury_collector_agents_failed[$__rate_interval])", None, runs=runs)
    return [
        mark("Start", "green", f"{running(runs)} unless {before}", "{{run_id}} starts"),
        mark("End", "blue", f"{before} unless {running(runs)}", "{{run_id}} ends"),
        mark(
            "Late agents",
            "orange",
            f"sum by (run_id) ({silent}) > 0",
            "{{run_id}}: agents not heard for more than 10 s",
        ),
        mark("Lost agents", "red", f"sum by (run_id) ({lost}) > 0", "{{run_id}}: agents not heard for more than 40 s"),
        mark("Failed agents", "red", f"sum by (run_id) ({failed}) > 0", "{{run_id}}: an agent failed"),
    ]


def mark(name: str, colour: str, expr: str, text: str) -> Any:
    """Returns an annotation from when `expr` begins to be above 0 until it ends; {{label}} in `text` is the label's value."""
    made = builders.AnnotationQuery().name(name).datasource(DATASOURCE).enable(True).icon_color(colour)
    return made.expr(expr).step("2s").title_format(name).text_format(text)


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
